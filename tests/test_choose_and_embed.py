"""The commands gpt2c choose and gpt2c embed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from gpt2c.cli.main import main

pytestmark = pytest.mark.usefixtures("no_preferences")


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---- embed ----


def test_embed_prints_a_vector_for_each_text(tales, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Once\n\nThe old king\n")
    (tmp_path / "b.jsonl").write_text('"Once"\n[1, 2, 3]\n')
    options = ["--lines", "--layer", "2", "--pooling", "last"]
    assert main(["embed", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), *options]) == 0
    rows = lines_of(capsys)
    assert [row["text_id"] for row in rows] == [1, 2, 3, 4]
    assert [Path(row["file"]).name for row in rows] == ["a.txt"] * 2 + ["b.jsonl"] * 2
    texts = ["Once", "The old king", "Once", [1, 2, 3]]
    expected = [tales.embed(text, layer=2, pooling="last") for text in texts]
    np.testing.assert_array_equal(np.float32([row["embedding"] for row in rows]), expected)


def test_embed_writes_numpys_format(tales, tmp_path):
    texts = [f"Text {n}" for n in range(120)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    out = tmp_path / "out.npy"
    assert main(["embed", str(tmp_path / "a.txt"), "--lines", "--output", str(out)]) == 0
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, tales.embed(texts))


def test_embed_writes_csv_with_ids(tales, tmp_path):
    (tmp_path / "in.csv").write_text("name,review\na,The sea\nb,A fox\n")
    out = tmp_path / "out.csv"
    options = ["--column", "review", "--id", "name", "--output", str(out)]
    assert main(["embed", str(tmp_path / "in.csv"), *options]) == 0
    header, *rows = list(csv.reader(out.read_text().splitlines()))
    assert header == ["text_id", *(f"e{i + 1}" for i in range(tales.config.n_embd))]
    assert [row[0] for row in rows] == ["a", "b"]
    numbers = np.float32([row[1:] for row in rows])
    np.testing.assert_array_equal(numbers, tales.embed(["The sea", "A fox"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--id", "nam"], "in.csv, line 2: found no column nam, which --id names"),
        (["--layer", "99"], "layer is 99"),
        (["--id", "name", "--output", "x.npy"], "a file .npy has no ids"),
        (["--output", "x.txt"], "x.txt"),
    ],
)
def test_embed_errors_write_nothing(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("name,text\na,The sea\n")
    assert main(["embed", "in.csv", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


# ---- choose ----


def test_choose_prints_each_choice(tales, capsys):
    prompts, choices = ["Once upon a", "The old"], [" time", " king"]
    given = [f"--choice={choice}" for choice in choices]
    assert main(["choose", *prompts, *given, "--neutral", "It was a"]) == 0
    rows = lines_of(capsys)
    found = tales.choose(prompts, choices, neutral="It was a")
    assert [(row["text_id"], row["choice"]) for row in rows] == [
        (n + 1, choice) for n in range(2) for choice in choices
    ]
    for name, values in {
        "logprob": [c.logprobs for c in found],
        "neutral_logprob": [c.neutral_logprobs for c in found],
        "probability": [c.probabilities for c in found],
        "n_tokens": [c.n_tokens for c in found],
    }.items():
        assert [row[name] for row in rows] == np.concatenate(values).tolist()
    assert [row["choice"] for row in rows if row["is_best"]] == [c.best for c in found]


def test_choose_reads_and_writes_tables(tales, tmp_path):
    """More rows than are scored together; one has fewer choices."""
    items = [(f"{n} kings and a", " queen", " fox" if n % 3 else "") for n in range(70)]
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "right", "wrong"), *items])
    out = tmp_path / "out.csv"
    options = ["--choice-columns", "right", "wrong", "--output", str(out)]
    assert main(["choose", "--file", str(tmp_path / "items.csv"), *options]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    lists = [[choice for choice in item[1:] if choice] for item in items]
    found = tales.choose([item[0] for item in items], lists)
    assert [row["prompt"] for row in rows] == [
        item[0] for item, choices in zip(items, lists, strict=True) for _ in choices
    ]
    logprobs = np.concatenate([c.logprobs for c in found])
    assert [float(row["logprob"]) for row in rows] == logprobs.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give prompts as arguments"),
        (["A", "--file", "in.csv", "--choice", "b"], "give prompts as arguments"),
        (["A"], "give the choices with --choice"),
        (["A", "--choice-columns", "b"], "--choice-columns needs a table"),
        (["--file", "in.csv", "--choice-columns", "x"], "in.csv, line 2: found no column x"),
        (["--file", "in.csv", "--choice", "b", "--choice", "b"], "in.csv, line 2: choices 0 and 1"),
        (["A", "", "--choice", "b"], "prompt 2: nothing precedes the first token"),
    ],
)
def test_choose_errors_name_the_place(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("prompt,a\nThe sea,1\n")
    assert main(["choose", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_choose_joins_prompts_and_choices_with_a_separator(tales, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("prompt,a,b\nThe sky was,blue, grey\nThe sky was ,blue,grey\n")
    options = ["--file", str(tmp_path / "in.csv"), "--choice-columns", "a", "b", "--sep", " "]
    assert main(["choose", *options]) == 0
    rows = lines_of(capsys)
    assert [row["choice"] for row in rows] == [" blue", " grey", "blue", "grey"]
    expected = tales.choose("The sky was", [" blue", " grey"]).probabilities
    np.testing.assert_array_equal([row["probability"] for row in rows[:2]], expected)
    assert (
        main(["choose", "The sky was", "--choice", "blue", "--choice", "grey", "--sep", " "]) == 0
    )
    assert [row["probability"] for row in lines_of(capsys)] == expected.tolist()
