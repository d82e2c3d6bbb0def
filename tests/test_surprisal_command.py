"""`gpt2c surprisal`: texts and tables in, tables out."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from gpt2c import surprisal
from gpt2c.cli.main import main
from gpt2c.tables import open_table

pytestmark = pytest.mark.usefixtures("no_preferences")

STIMULI = (
    "item;condition;word\r\n"
    "1;a;The\r\n1;a;old\r\n1;b;A\r\n"
    '1;a;"king; he"\r\n1;b;caf\u00e9.\r\n2;a;Once\r\n'
)
WORDS = ["The", "old", "A", "king; he", "caf\u00e9.", "Once"]
GROUPS = [1, 1, 2, 1, 2, 3]


def printed(capsys, *arguments: str) -> str:
    assert main(["surprisal", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    assert main(["surprisal", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def rows_of(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


@pytest.fixture
def stimuli(tmp_path):
    """A table of words as Excel saves it: with a byte order mark, semicolons and CRLF."""
    path = tmp_path / "stimuli.csv"
    path.write_bytes(STIMULI.encode("utf-8-sig"))
    return path


def test_columns_are_added_to_a_table_of_words(tales, stimuli, capsys, tmp_path):
    out = tmp_path / "out.csv"
    by = ["--by", "item", "--by", "condition"]
    arguments = [str(stimuli), *by, "--correction", "pimentel", "--output", str(out)]
    assert printed(capsys, *arguments) == ""
    raw = out.read_bytes()
    # The same file, with cells at the ends of its lines.
    assert raw.startswith(b"\xef\xbb\xbf")
    lines = raw.decode("utf-8-sig").split("\r\n")
    before = STIMULI.split("\r\n")
    assert len(lines) == len(before)
    assert all(a.startswith(b) for a, b in zip(lines, before, strict=True))
    found = surprisal(tales, WORDS, by=GROUPS, correction="pimentel").columns
    rows = rows_of(raw.decode("utf-8-sig"), ";")
    for name in ("surprisal", "corrected", "entropy"):
        assert [float(row[name]) for row in rows] == found[name].tolist()
    assert [int(row["rank"]) for row in rows] == found["rank"].tolist()
    # To standard output, a table has the input's format.
    assert printed(capsys, *arguments[:-2]).lstrip("\ufeff").split("\n")[0].startswith("item;")


def test_only_and_json_lines(tales, stimuli, capsys):
    out = printed(capsys, str(stimuli), "--by", "item", "--only", "word_index,surprisal",
                  "--format", "jsonl", "--nats", "--no-bos")  # fmt: skip
    rows = [json.loads(line) for line in out.splitlines()]
    assert list(rows[0]) == ["item", "condition", "word", "word_index", "surprisal"]
    assert rows[0]["surprisal"] is None
    found = surprisal(tales, WORDS, by=[1, 1, 1, 1, 1, 2], unit="nats", bos=False).columns
    assert [row["word_index"] for row in rows] == [1, 2, 3, 4, 5, 1]
    np.testing.assert_array_equal([row["surprisal"] for row in rows[1:5]], found["surprisal"][1:5])


def test_a_row_for_each_word_of_texts(tales, capsys, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("The old  king sat.\n\nA fox\n", encoding="utf-8")
    texts = ["The old  king sat.", "A fox"]
    out = printed(capsys, str(path), "--lines", "--format", "tsv", "--missing", "NA", "--no-bos",
                  "--entropy-reduction", "--renyi", "0.5", "--renyi", "inf",
                  "--apart", r"\W$")  # fmt: skip
    found = surprisal(tales, texts, bos=False, entropy_reduction=True, apart=r"\W$",
                      renyi_orders=[0.5, math.inf])  # fmt: skip
    rows = rows_of(out, "\t")
    assert list(rows[0]) == list(found.columns)
    assert [row["word"] for row in rows] == ["The", "old", "king", "sat", ".", "A", "fox"]
    assert rows[0]["surprisal"] == "NA"
    assert [json.loads(row["token_ids"]) for row in rows] == found.columns["token_ids"]
    assert [row["start"] for row in rows[:3]] == ["0", "4", "9"]
    for name in ("entropy_reduction", "renyi_0.5", "renyi_inf"):
        assert float(rows[1][name]) == found.columns[name][1]
    whole = printed(capsys, str(path))  # one text, as JSON lines
    assert [json.loads(line)["word"] for line in whole.splitlines()][-1] == "fox"


def test_texts_with_contexts_as_wholes(tales, capsys, tmp_path):
    path = tmp_path / "stimuli.csv"
    path.write_text('prefix,text\n"Once upon a time,",there was a king.\nThe,old fox\n')
    options = ["--context-column", "prefix", "--correction", "oh_schuler"]
    rows = rows_of(printed(capsys, str(path), "--whole", *options))
    texts, context = ["there was a king.", "old fox"], ["Once upon a time,", "The"]
    found = surprisal(tales, texts, context=context, correction="oh_schuler")
    for row, p in zip(rows, found.passages, strict=True):
        assert float(row["surprisal"]) == pytest.approx(p.surprisals.sum(), rel=1e-12)
        assert float(row["corrected"]) == pytest.approx(p.corrected.sum(), rel=1e-12)
    words = rows_of(printed(capsys, str(path), *options))
    assert [(row["prefix"], row["word"]) for row in words][-2:] == [("The", "old"), ("The", "fox")]
    assert [float(row["corrected"]) for row in words] == found.columns["corrected"].tolist()
    assert words[0]["start"] == "0"


def test_next_tokens(tales, capsys, tmp_path, stimuli):
    path = tmp_path / "contexts.txt"
    path.write_text("The old\nOnce\n")
    rows = rows_of(printed(capsys, str(path), "--lines", "--next-tokens", "3", "--format", "csv"))
    found = surprisal(tales, ["The old", "Once"], next_tokens=3).next_tokens
    assert [row["token"] for row in rows] == found["token"]
    assert [int(row["text_id"]) for row in rows] == found["text_id"]
    arguments = [str(stimuli), "--by", "item", "--by", "condition", "--next-tokens", "1"]
    lines = [json.loads(line) for line in printed(capsys, *arguments).splitlines()]
    assert [line["text_id"] for line in lines] == ["1, a"] * 4 + ["1, b"] * 3 + ["2, a"] * 2


def test_metadata_is_in_the_table(tales, capsys, tmp_path):
    path, out = tmp_path / "text.txt", tmp_path / "out.tsv"
    path.write_text("The old king")
    printed(capsys, str(path), "--output", str(out), "--metadata", "--context", "So")
    with open_table(str(out)) as table:
        facts = table.metadata
        assert len(list(table)) == 3
    assert facts["model_sha256"] == tales.fingerprint
    assert (facts["dtype"], facts["arithmetic"], facts["context"]) == ("float32", "1", "So")


def test_errors_name_the_place_and_leave_the_output(stimuli, capsys, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("kept")
    blank = tmp_path / "blank.csv"
    blank.write_text("item,word\n1,The\n1, \n")
    to_out = ["--output", str(out)]
    cases = [
        ([str(blank), "--by", "item", *to_out], f"{blank}, line 3: column 'word' is blank"),
        ([str(stimuli), "--by", "itm", *to_out], "found no column 'itm'"),
        (["words.dat", "--by", "item"], "or the option --input-format"),
        ([str(stimuli), "--by", "item", "--whole"], "--whole is given with --by"),
        ([str(stimuli), "--by", "item", "--only", "x"], "--only has 'x'; the columns here are"),
        ([str(stimuli)], "found no column 'text'"),
        ([str(stimuli), "--column", "word", "--context-column", "x"], "found no column 'x'"),
        ([str(stimuli), "--column", "word", *to_out], "has a column 'word' already"),
        ([str(blank), "--column", "word", "--whole", *to_out], "line 3: the text is blank"),
        ([str(stimuli), "--by", "item", "--apart", "x"], "--apart is given with --by"),
        ([str(stimuli), "--next-tokens", "0"], "--next-tokens is 0"),
        ([str(stimuli), "--context", "a", "--context-column", "item"], "leave one out"),
        ([str(tmp_path / "none.txt")], "none.txt"),
    ]
    for arguments, message in cases:
        assert message in refused(capsys, *arguments)
    assert out.read_text() == "kept"
