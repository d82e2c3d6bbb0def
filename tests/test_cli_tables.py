"""The commands read texts from tables and write their results as tables."""

from __future__ import annotations

import csv
import io
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpt2c
from gpt2c.cli.main import main
from gpt2c.tables import open_table

pytestmark = pytest.mark.usefixtures("no_preferences")

# As Excel writes it in a language with decimal commas.
STIMULI = '\ufeffitem;Satz\r\n1;"The king; said ""no""."\r\n2;The fox\r\n'
TEXTS = ['The king; said "no".', "The fox"]


@pytest.fixture
def stimuli(tmp_path) -> str:
    (tmp_path / "stimuli.csv").write_bytes(STIMULI.encode())
    return str(tmp_path / "stimuli.csv")


def numbers(score) -> dict[str, float]:
    return {"tokens": len(score.ids), "scored": score.n_scored, "total": score.total,
            "perplexity": score.perplexity}  # fmt: skip


def test_the_same_csv_comes_back_with_perplexities(tales, stimuli, tmp_path):
    out = str(tmp_path / "out.csv")
    assert main(["perplexity", stimuli, "--column", "Satz", "--output", out]) == 0
    raw = Path(out).read_bytes().decode()
    assert raw.startswith("\ufeffitem;Satz;tokens;scored;total;perplexity;bits_per_byte\r\n1;")
    assert raw.count("\r\n") == raw.count("\n") == 3
    with open_table(out) as table:
        rows = list(table)
    for row, text, item, score in zip(rows, TEXTS, "12", tales.score(TEXTS), strict=True):
        assert (row["item"], row["Satz"]) == (item, text)
        expected = {key: str(value) for key, value in numbers(score).items()}
        assert {key: row[key] for key in expected} == expected


def test_a_table_may_be_replaced_only_by_itself_with_columns_added(stimuli, tmp_path, capsys):
    assert main(["perplexity", stimuli, "--column", "Satz", "--output", stimuli]) == 0
    before = Path(stimuli).read_bytes()
    assert before.count(b"\r\n") == 3
    assert b"perplexity" in before
    lines = tmp_path / "texts.jsonl"
    lines.write_text('"One text"\n', encoding="utf-8")
    for command in (
        ["surprisal", stimuli, "--column", "Satz", "--output", stimuli],
        ["surprisal", stimuli, "--column", "Satz", "--next-tokens", "2", "--output", stimuli],
        ["score", stimuli, "--column", "Satz", "--output", stimuli],
        ["embed", stimuli, "--column", "Satz", "--output", stimuli],
        ["choose", "--file", stimuli, "--column", "Satz", "--choice", " a", "--choice", " b",
         "--output", stimuli],
        ["perplexity", str(lines), "--output", str(lines)],
        ["detect", stimuli, stimuli, "--column", "Satz", "--output", stimuli],
    ):  # fmt: skip
        assert main(command) == 2, command
        assert "is the input, and the results would take the place" in capsys.readouterr().err
    assert Path(stimuli).read_bytes() == before
    assert lines.read_text(encoding="utf-8") == '"One text"\n'


def test_decimal_commas(tales, stimuli, capsys):
    options = ["--column", "Satz", "--format", "csv", "--decimal", ","]
    assert main(["perplexity", stimuli, *options]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out), delimiter=";"))
    found = [float(row["perplexity"].replace(",", ".")) for row in rows]
    assert found == [score.perplexity for score in tales.score(TEXTS)]
    assert all("," in row["perplexity"] and "." not in row["perplexity"] for row in rows)


def test_objects_have_the_tables_columns(tales, stimuli, capsys):
    assert main(["score", stimuli, "--column", "Satz"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, text, item, score in zip(lines, TEXTS, "12", tales.score(TEXTS), strict=True):
        assert list(line)[:3] == ["item", "Satz", "tokens"]
        assert (line["item"], line["Satz"]) == (item, text)
        assert line["ids"] == score.ids.tolist()


@pytest.mark.parametrize("format", ["csv", "tsv", "parquet"])
def test_a_row_for_each_token(tales, stimuli, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    out = str(tmp_path / f"out.{format}")
    options = ["--column", "Satz", "--output", out, "--top-logprobs", "2", "--missing", "NA"]
    assert main(["score", stimuli, *options]) == 0
    with open_table(out) as table:
        assert table.columns == (
            "text_id", "item", "token_index", "token", "id", "logprob", "rank", "entropy",
            "top_ids", "top_logprobs",
        )  # fmt: skip
        rows = list(table)
    scores = tales.score(TEXTS, top_logprobs=2)
    assert len(rows) == sum(len(score.ids) for score in scores)
    first = [row for row in rows if str(row["text_id"]) == "1"]
    assert [int(row["id"]) for row in first] == scores[0].ids.tolist()
    assert "".join(row.text("token") for row in first) == TEXTS[0]
    missing = None if format == "parquet" else "NA"
    assert [first[0][key] for key in ("logprob", "rank", "entropy")] == [missing] * 3
    for name, values in (("logprob", scores[0].logprobs), ("entropy", scores[0].entropies)):
        found = np.array([float(row[name]) for row in first[1:]])
        np.testing.assert_array_equal(found, values[1:].astype(np.float64))
    assert {row["item"] for row in first} == {"1"}


def test_texts_without_columns_are_numbered(tales, tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    assert main(["perplexity", str(path), "--lines", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text_id"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["text_id", "tokens", "scored", "total", "perplexity", "bits_per_byte"]
    (tmp_path / "t.jsonl").write_text('{"text": "The fox", "n": 7}\n{"ids": [1, 2], "n": 8}\n')
    assert main(["perplexity", str(tmp_path / "t.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(lines[0]) == list(rows[0])[1:]  # as ever: only the results
    out = str(tmp_path / "out.jsonl")
    assert main(["perplexity", str(tmp_path / "t.jsonl"), "--output", out]) == 0
    found = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert found == [{"text": "The fox", "n": 7, **lines[0]}, {"ids": [1, 2], "n": 8, **lines[1]}]


def test_the_model_is_named_in_the_metadata(tales, stimuli, tmp_path):
    out = str(tmp_path / "out.tsv")
    options = ["perplexity", stimuli, "--column", "Satz", "--output", out]
    assert main([*options, "--metadata"]) == 0
    with open_table(out) as table:
        assert table.metadata["model"] == "tales"
        assert table.metadata["arithmetic"] == str(gpt2c.ARITHMETIC)
        assert table.metadata["dtype"] == "float32"
        assert table.metadata["model_sha256"] == tales.fingerprint
        assert table.layout.delimiter == "\t"
    assert main(options) == 0
    assert Path(out).read_text().startswith("item\tSatz\t")


def test_prompts_from_a_column(tales, stimuli, capsys):
    options = ["-n", "4", "--column", "Satz", "--json"]
    assert main(["generate", "--file", stimuli, *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == TEXTS
    assert [line["text"] for line in lines] == tales.generate(TEXTS, max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the columns are 'item', 'Satz'; name the column of the texts with the option column"),
        (["--column", "satz"], "did you mean Satz?"),
        (["--column", "Satz", "--delimiter", "::"], "delimiter is '::'; it must be one character"),
        (["--column", "Satz", "--delimiter", ","], "found 1 cells, expected 1, one for each"),
        (["--column", "Satz", "--format", "parquet"], "cannot be written to standard output"),
        (
            ["--column", "Satz", "--output", "x.xlsx"],
            "x.xlsx is a spreadsheet, which gpt2c neither",
        ),
        (["--column", "Satz", "--output", "x.dat"], "the name x.dat does not say the table's"),
        (["--jsonl", "--input-format", "csv"], "--jsonl contradicts --input-format csv"),
        (["--lines", "--input-format", "csv"], "--lines is for plain text"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(stimuli, capsys, options, message, monkeypatch):
    if "," in options:
        message = "found no column 'Satz'; the columns are 'item;Satz'"
    monkeypatch.chdir(Path(stimuli).parent)
    assert main(["perplexity", stimuli, *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert os.listdir() == ["stimuli.csv"]


def test_a_bad_row_leaves_the_old_output(tmp_path, capsys):
    path, out = tmp_path / "t.csv", tmp_path / "out.csv"
    path.write_text("text\n" + "The fox\n" * 200 + "one, two\n")
    out.write_text("old")
    assert main(["perplexity", str(path), "--output", str(out)]) == 2
    assert f"{path}, line 202: found 2 cells, expected 1" in capsys.readouterr().err
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "t.csv"]


def test_colours_are_not_a_table(stimuli, capsys):
    assert main(["score", stimuli, "--column", "Satz", "--color", "--format", "csv"]) == 2
    assert "--color and --html do not write a table" in capsys.readouterr().err


def test_a_bar_shows_how_much_was_read(tmp_path, terminal):
    """It is on standard error, if that is a terminal and the results go elsewhere."""
    pytest.importorskip("tqdm")
    termios = pytest.importorskip("termios")
    ours, theirs = terminal
    termios.tcsetwinsize(theirs, (24, 80))  # without columns tqdm shows nothing
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "The fox and the goose\n" * 50)
    code = (
        "import gpt2c.progress as progress, gpt2c.cli.main as main, sys\n"
        "progress._DELAY = 0\n"  # seconds
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "perplexity", str(path)]
    to_file = [*command, "--output", str(tmp_path / "out.csv")]
    done = subprocess.run(to_file, stderr=theirs, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert select.select([ours], [], [], 10)[0]
    shown = os.read(ours, 100_000).decode()
    assert f"/{path.stat().st_size / 1000:.2f}k" in shown  # of all bytes
    assert "B/s" in shown
    done = subprocess.run(to_file, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
