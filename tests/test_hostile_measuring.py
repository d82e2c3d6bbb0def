"""Careless or hostile calls of what measures text, and files that misbehave."""

from __future__ import annotations

import math
import os
import re
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import TALES, load

import gpt2c
from gpt2c import OptionError, OptionTypeError, TableError
from gpt2c.checks.untrusted import show
from gpt2c.cli.main import main
from gpt2c.files import whole_file
from gpt2c.tables import source

HUGE = 10**5000  # more digits than Python prints


class Unprintable:
    """An object whose repr raises."""

    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.fixture
def tales(backend):
    return load(TALES, backend)


@pytest.mark.parametrize("name", ["apart", "ignore"])
def test_a_pattern_of_bytes_is_refused(tales, name):
    with pytest.raises(OptionTypeError, match=f"{name} is re.compile"):
        gpt2c.surprisal(tales, ["a b"], **{name: re.compile(b"a")})


@pytest.mark.parametrize("order", [HUGE, 1e300], ids=["huge", "1e300"])
def test_a_huge_order_is_the_infinite_one(tales, order):
    found = tales.score("A cat sat.", renyi_orders=[order]).renyi_entropies
    expected = tales.score("A cat sat.", renyi_orders=[math.inf]).renyi_entropies
    np.testing.assert_array_equal(found, expected)


def test_messages_about_values_that_cannot_be_shown(tales):
    for options in (
        {"renyi_orders": [-HUGE]}, {"renyi_orders": [Unprintable()]}, {"id_sets": [HUGE]},
        {"id_sets": [Unprintable()]},
    ):  # fmt: skip
        with pytest.raises((OptionError, OptionTypeError), match="cannot be shown"):
            tales.score("A cat", **options)
    for spans in ([Unprintable()], [HUGE]):
        with pytest.raises(OptionError, match="cannot be shown"):
            gpt2c.surprisal(tales, "a b", spans=spans)


@pytest.mark.parametrize("stride", [HUGE, 0, Unprintable(), "9", True], ids=range(5))
def test_a_wrong_stride_of_surprisals(tales, stride):
    for texts in (["a b"], []):
        with pytest.raises((OptionError, OptionTypeError), match="stride is"):
            gpt2c.surprisal(tales, texts, stride=stride)


def test_a_message_is_one_line():
    assert show(np.eye(2)) == "array([[1., 0.], [0., 1.]])"


class Frame:
    """What pandas and polars frames have in common: iterating gives names or columns."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize("given", [{"a b": 1}, {"a b", "c"}, Frame()])
def test_texts_without_an_order_or_of_a_whole_frame_are_refused(tales, given):
    with pytest.raises(
        OptionTypeError, match=r"texts is of type \w+; it must be .*; choose a column"
    ):
        gpt2c.surprisal(tales, given)


@pytest.mark.parametrize("groups", [[1.0, math.nan], [("x", 1.0), ("x", math.nan)]])
def test_a_group_that_is_nan_is_refused(tales, groups):
    # NaN is not equal to itself: each row would be a text of its own.
    with pytest.raises(OptionError, match="in row 1; NaN equals no other row's group"):
        gpt2c.surprisal(tales, ["a", "b"], by=groups)


def test_an_endless_text_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(source, "MAX_TEXT_BYTES", 1 << 20)
    path = tmp_path / "long.txt"
    path.write_bytes(b"a " * (1 << 19) + b"b")
    with pytest.raises(TableError, match="more than 1 MiB"), gpt2c.tables.open_texts(path) as texts:
        list(texts)
    if os.path.exists("/dev/zero"):
        assert main(["surprisal", "/dev/zero"]) == 2
        assert "/dev/zero: found a text of more than 1 MiB" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_full_disk_is_named(tmp_path, capsys, format):
    path = tmp_path / "a.txt"
    path.write_text("A cat sat.", encoding="utf-8")
    arguments = ["detect", str(path), "--output", "/dev/full", "--format", format]
    assert main(arguments) == 2
    assert capsys.readouterr().err == "gpt2c: /dev/full: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_first_error_wins_over_a_full_disk():
    def fail() -> None:
        with whole_file("/dev/full") as file:
            file.write(b"a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()


@pytest.mark.parametrize("command", ["detect", "embed"])
def test_standard_input_can_be_given_once(command, capsys):
    assert main([command, "-", "-"]) == 2
    assert "standard input, -, is given more than once" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("command", ["detect", "embed"])
def test_a_named_pipe_among_several_files_is_read_once(command, tmp_path):
    pipe, path = tmp_path / "pipe", tmp_path / "a.txt"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    path.write_text("A cat sat.", encoding="utf-8")
    writer = threading.Thread(target=pipe.write_text, args=("A dog ran.", "utf-8"), daemon=True)
    writer.start()
    arguments = ["-m", "gpt2c", command, str(path), str(pipe), "--format", "jsonl"]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    writer.join(10)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    "span", [(0, math.inf), (0, math.nan), (0.5, 1), (False, True), "01", (0, HUGE), (0, None), 3],
    ids=range(8),
)  # fmt: skip
def test_a_span_has_whole_numbers(tales, span):
    with pytest.raises(OptionError, match="text 1: span 0 is "):
        gpt2c.surprisal(tales, "ab cd", spans=[span])


def test_spans_of_arrays_and_of_r(tales):
    expected = gpt2c.surprisal(tales, ["ab cd"], spans=[[(0, 2)]]).to_dict()
    for spans in ([np.array([[0, 2]])], [[(0.0, 2.0)]]):
        assert gpt2c.surprisal(tales, ["ab cd"], spans=spans).to_dict() == expected


@pytest.mark.parametrize("orders", [[HUGE], [1e300]], ids=["huge", "1e300"])
def test_a_column_of_a_huge_order_has_a_name(tales, orders):
    names = list(gpt2c.surprisal(tales, "a b", renyi_orders=orders).to_dict())
    assert names[-1] in ("renyi_inf", "renyi_1e+300")


@pytest.mark.parametrize("path", [None, 1, b"a.csv"])
def test_a_path_that_is_none(tales, path):
    with pytest.raises(OptionTypeError, match=r"path is .*; it must be a str or a Path"):
        gpt2c.surprisal(tales, "a").write(path, format="csv")


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("pattern", ["\ud800", "\0"], ids=["surrogate", "nul"])
def test_metadata_that_no_format_can_hold(tales, tmp_path, format, pattern):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a.{format}"
    with pytest.raises(TableError, match=f"{format}: the metadata apart is "):
        gpt2c.surprisal(tales, "a", apart=pattern).write(path, metadata_lines=True)
    assert os.listdir(tmp_path) == []


def test_missing_is_text(tales, tmp_path):
    with pytest.raises(OptionTypeError, match="missing is 5; it must be a str"):
        gpt2c.surprisal(tales, "a", bos=False).write(tmp_path / "a.csv", missing=5)


@pytest.mark.parametrize("prompt", [5, None, 1.5])
def test_a_wrong_prompt_of_an_iterator(tales, prompt):
    with pytest.raises(OptionTypeError, match="prompt 1 is"):
        list(tales.choose(iter(["a", prompt]), [" b", " c"]))


def test_a_pooled_number_beyond_float32(tales):
    assert tales.embed("a", pooling=lambda rows: [1e300]).tolist() == [math.inf]


def write_task(folder, **entries):
    """Write a task file that measures bytes, and its data; return its path."""
    (folder / "f.txt").write_text("the cat sat", encoding="utf-8")
    given = {"name": '"x"', "columns": '["X"]', "kind": '"bytes"', "files": '["f.txt"]', **entries}
    path = folder / "task.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in given.items()), "utf-8")
    return path


@pytest.mark.parametrize("units", [2**63 - 1, 10**30])
def test_a_huge_number_of_units_takes_no_memory(tmp_path, capsys, units):
    task = write_task(tmp_path, units=units)
    assert main(["zero-shot", str(tmp_path), "--tasks", str(task), "--json"]) == 0
    assert '"n": 11' in capsys.readouterr().out


def test_a_first_byte_beyond_the_file(tmp_path, capsys):
    task = write_task(tmp_path, units=1, first=10**30)
    assert main(["zero-shot", str(tmp_path), "--tasks", str(task)]) == 2
    assert "f.txt: has at most 1,000" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["", ",,"])
def test_tasks_without_a_name(tmp_path, capsys, names):
    assert main(["zero-shot", str(tmp_path), "--tasks", names]) == 2
    assert "it must have the name of a task" in capsys.readouterr().err


def test_a_picture_in_no_folder_fails_at_once(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b", encoding="utf-8")
    arguments = ["surprisal", str(tmp_path / "a.txt"), "--plot", str(tmp_path / "no" / "a.png")]
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "there is no folder" in found.err


def test_by_checks_the_format_too(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("word,g\na,1\n", encoding="utf-8")
    arguments = ["surprisal", str(tmp_path / "a.csv"), "--by", "g", "--jsonl"]
    assert main([*arguments, "--input-format", "csv"]) == 2
    assert "--jsonl contradicts --input-format csv" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_of_vectors_and_of_standard_output(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b", encoding="utf-8")
    (tmp_path / "a.npy").symlink_to("/dev/full")
    assert main(["embed", str(tmp_path / "a.txt"), "--output", str(tmp_path / "a.npy")]) == 2
    assert capsys.readouterr().err.endswith("a.npy: No space left on device\n")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpt2c", "detect", str(tmp_path / "a.txt")], stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, "gpt2c: standard output: No space left on device\n",
    )  # fmt: skip
