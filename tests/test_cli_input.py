"""The command line reads text as Python's open() does, from files and from standard input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES
from hypothesis import example, given
from hypothesis import strategies as st

import gpt2c
from gpt2c.cli.main import main
from gpt2c.tables.source import Source
from gpt2c.tables.texts import read_lines

BOM = b"\xef\xbb\xbf"
SORT_NANO = str(FIXTURES / "sort-nano")
pytestmark = pytest.mark.usefixtures("no_preferences")

# Every kind of line end, characters that only str.splitlines treats as one, and invalid UTF-8.
PARTS = [
    b"a", b"\n", b"\r", b"\r\n", b" ", "é".encode(), "😀".encode(), BOM, b"\x0b", b"\x0c", b"\0",
    "\x85".encode(), "\u2028".encode(), b"\xc3", b"\xff", b"\xfe", b"\xed\xa0\x80", b"\x1a",
]  # fmt: skip


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gpt2c", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def written(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return str(path)


def opened(raw: bytes) -> io.TextIOWrapper:
    """Return what ``open(path, encoding="utf-8-sig")`` returns for a file with these bytes."""
    return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig")


@given(st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join))
@example(b"")
@example(BOM)
@example(BOM + BOM + b"a\r\r\n\rb")
@example(BOM + b"a\r\n\xffb")
def test_text_is_read_like_pythons_open(raw):
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"at byte {error.start} of the input: found 0x{raw[error.start]:02x}"
        for read in (Source.read_text, lambda source: list(read_lines(source))):
            with pytest.raises(gpt2c.TableError, match=at) as caught:
                read(Source(io.BytesIO(raw), "a file"))
        lines_before = opened(raw[: error.start]).read().count("\n")
        assert f"a file, line {lines_before + 1} is not UTF-8" in str(caught.value)
        return
    assert Source(io.BytesIO(raw), "a file").read_text() == opened(raw).read()
    found = list(read_lines(Source(io.BytesIO(raw), "a file")))
    assert [line for _, line in found] == [line.removesuffix("\n") for line in opened(raw)]
    assert [place for place, _ in found] == [f"a file, line {n + 1}" for n in range(len(found))]


def test_a_line_is_returned_before_the_next_one_arrives():
    ours, theirs = os.pipe()
    with open(ours, "rb") as reading, open(theirs, "wb", buffering=0) as writing:
        lines = read_lines(Source(reading, "a pipe"))
        for text in ("one", "two"):
            writing.write(f"{text}\r\n".encode())
            assert next(lines)[1] == text


@pytest.mark.parametrize("raw", [BOM + b"The old king\r\n", b"The old king\r"])
def test_a_pipe_and_a_file_give_the_same_prompt(tales, tmp_path, capsysbinary, raw):
    expected = tales.generate("The old king", max_new_tokens=5).encode() + b"\n"
    piped = run("generate", "-n", "5", stdin=raw)
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, expected, b"")
    lines = run("generate", "-n", "5", "--file", "-", stdin=raw)
    assert (lines.stdout, lines.stderr) == (expected, b"")
    assert main(["generate", "-n", "5", "--file", written(tmp_path / "p", raw)]) == 0
    assert capsysbinary.readouterr() == (expected, b"")


def test_lines_inside_a_piped_prompt_are_kept(tales):
    done = run("generate", "-n", "4", "--echo", stdin=BOM + b"\r\nOne\r\n\r\nTwo\rThree\r\n")
    expected = "\nOne\n\nTwo\nThree"
    expected += tales.generate(expected, max_new_tokens=4) + "\n"
    assert done.stdout.decode() == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_are_normalised_before_scoring(tales, tmp_path, capsys, end):
    raw = BOM + f"Once upon a time{end}there was{end}".encode()
    path = written(tmp_path / "text", raw)
    with open(path, encoding="utf-8-sig") as file:
        expected = tales.score(file.read())
    assert main(["perplexity", path]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == expected.perplexity
    assert main(["score", path]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == expected.ids.tolist()
    piped = run("perplexity", "-", stdin=raw)
    assert json.loads(piped.stdout)["perplexity"] == expected.perplexity
    assert main(["score", path, "--lines"]) == 0
    lines = [json.loads(line)["ids"] for line in capsys.readouterr().out.splitlines()]
    assert lines == [tales.tokenizer.encode(t) for t in ("Once upon a time", "there was")]


def test_prompts_from_json_lines(tales, tmp_path, capsys):
    ids = tales.tokenizer.encode("The fox")
    lines = [
        '{"prompt": "Once upon\\na time", "id": 7}', "", '"The fox"', f"{ids}",
        f'{{"ids": {ids}}}', f'{{"prompt": {ids}}}', '{"prompt": ""}',
    ]  # fmt: skip
    raw = BOM + "\r\n".join(lines).encode()
    path = written(tmp_path / "prompts.JSONL", raw)
    assert main(["generate", "--file", path, "--json", "-n", "4"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    prompts = ["Once upon\na time", "The fox", ids, ids, ids, ""]
    assert [line["prompt"] for line in found] == prompts
    for line, prompt in zip(found, prompts, strict=True):
        done = tales.complete(prompt, max_new_tokens=4)
        assert (line["text"], line["ids"]) == (done.text, done.ids)
    piped = run("generate", "--file", "-", "--jsonl", "--json", "-n", "4", stdin=raw)
    assert [json.loads(line) for line in piped.stdout.splitlines()] == found


def test_texts_are_printed_as_text_and_ids_as_ids(tales, tmp_path, capsys):
    ids = tales.tokenizer.encode("The fox")
    path = written(tmp_path / "p.ndjson", f'"The\\nfox"\n{ids}\n'.encode())
    new_ids, text = tales.generate(ids, max_new_tokens=4), "The\nfox"
    text += tales.generate(text, max_new_tokens=4)
    for options in ([], ["--num-beams", "1"]):
        assert main(["generate", "--file", path, "-n", "4", "--echo", *options]) == 0
        assert capsys.readouterr().out == f"{text}\n\n{ids + new_ids}\n"
    assert main(["generate", "--file", path, "-n", "4"]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{new_ids}\n")


def test_a_model_without_a_tokenizer_continues_ids(tmp_path, capsys):
    path = written(tmp_path / "p.jsonl", b"[2, 0, 1, 0, 2, 1]\n")
    assert main(["generate", "--file", path, "--model", SORT_NANO, "-n", "6"]) == 0
    assert capsys.readouterr().out == "[0, 0, 1, 1, 2, 2]\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"text": "a"}', 'line 2: expected an object with "prompt" or "ids"'),
        ('{"prompt": "a", "ids": [1]}', 'line 2: expected an object with "prompt" or "ids"'),
        ('{"prompt": ["a"]}', "line 2: expected a text or a list of ids"),
        ('{"prompt": null}', "line 2: expected a text or a list of ids"),
        ('{"prompt": "a", "prompt": "b"}', "line 2 has the key 'prompt' twice"),
        ("[true]", "line 2: expected a text or a list of ids"),
        ("The fox", "line 2 is not JSON"),
        ("[3]", "line 2: token 0 is 3; ids are from 0 to 2"),
        ("[-1]", "line 2: token 0 is -1"),
        (f"{[1] * 12}", "line 2 has 12 tokens, more than the context's 11 positions"),
    ],
)
def test_an_invalid_prompt_is_reported_before_any_runs(tmp_path, capsys, line, message):
    path = written(tmp_path / "p.jsonl", f"[1]\n{line}\n[2]\n".encode())
    assert main(["generate", "--file", path, "--model", SORT_NANO]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{path}, {message}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "score", "perplexity", "detect"])
def test_invalid_utf_8_is_reported_with_its_byte(tmp_path, capsys, command):
    raw = "é\r\ncaf".encode() + b"\xe9\n"  # 0xe9 is byte 7; Latin-1's é
    path = written(tmp_path / "latin.txt", raw)
    file = ["--file", path] if command == "generate" else [path]
    stdin = [] if command == "generate" else ["-"]
    piped = run(command, *stdin, stdin=raw)
    from_pipe = (piped.returncode, piped.stdout.decode(), piped.stderr.decode())
    from_file = (main([command, *file]), *capsys.readouterr())
    for (status, out, err), name in ((from_file, path), (from_pipe, "standard")):
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"gpt2c: {name}" in err
        assert "line 2 is not UTF-8 at byte 7 of the input: found 0xe9" in err
    assert main([command, *file[:-1], written(tmp_path / "w.txt", "The fox".encode("utf-16"))]) == 2
    err = capsys.readouterr().err
    assert "at byte 0 of the input" in err
    assert "it seems to be UTF-16; save it as UTF-8" in err


def test_a_closed_standard_input(tales, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    for arguments in (
        ["score", "-"],
        ["perplexity", "-"],
        ["detect", "-"],
        ["generate", "--file", "-"],
    ):
        assert main(arguments) == 2
        assert "standard input is closed" in capsys.readouterr().err


def test_jsonl_requires_a_file(capsys):
    assert main(["generate", "One", "--jsonl"]) == 2
    assert "--jsonl needs --file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "score", "perplexity", "detect"])
def test_the_help_says_how_text_is_read(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "read as UTF-8; a byte order mark at the beginning is dropped" in text
