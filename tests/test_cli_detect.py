"""``gpt2c detect``: the statistics of a Score, for texts of files."""

from __future__ import annotations

import csv
import json
import math

import pytest
from conftest import TALES

from gpt2c.cli.main import main

TEXTS = ["The old king was very ill.", "The budget of 2027 \u2014 na\u00efve.", "Once"]
ONE_MODEL = ("mean_logprob", "mean_log_rank", "mean_entropy", "lrr", "curvature")


@pytest.fixture
def scores(tales):
    return tales.score(TEXTS, second_moments=True, other=tales)


@pytest.fixture
def lines_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


def null_if_nan(value):
    return None if math.isnan(value) else value


def expected(score, names):
    found = {name: null_if_nan(getattr(score, name)) for name in names}
    return {"tokens": len(score.ids), "scored": score.n_scored, **found}


def json_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_has_the_statistics_of_each_line(scores, lines_file, capsys):
    assert main(["detect", lines_file, "--lines", "--json"]) == 0
    found = json_of(capsys)
    assert [line.pop("text_id") for line in found] == [1, 2, 3]
    assert found == [expected(score, ONE_MODEL) for score in scores]
    assert found[2]["lrr"] is None


def test_a_second_model_adds_binoculars(scores, lines_file, capsys):
    arguments = ["detect", lines_file, "--lines", "--json", "--performer", str(TALES)]
    assert main(arguments) == 0
    names = (*ONE_MODEL, "binoculars")
    found = json_of(capsys)
    for line, score in zip(found, scores, strict=True):
        assert line == {"text_id": line["text_id"], **expected(score, names)}


def test_the_observer_and_the_performer_are_not_exchanged(lines_file, capsys, tmp_path, tales):
    import numpy as np
    from test_detection import performer_on

    performer = performer_on("numpy")
    performer.save_pretrained(tmp_path / "performer")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "performer" / name).write_bytes((TALES / name).read_bytes())
    performer_path = str(tmp_path / "performer")
    assert main(["detect", lines_file, "--json", "--performer", performer_path]) == 0
    (line,) = json_of(capsys)
    log_p, log_q = (
        m.logits(tales.tokenizer.encode("\n".join(TEXTS))).astype(np.float64)
        for m in (tales, performer)
    )
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    log_q -= np.log(np.exp(log_q).sum(1, keepdims=True))
    ids = tales.tokenizer.encode("\n".join(TEXTS))
    loss = -np.mean([log_q[i, id] for i, id in enumerate(ids[1:])])
    crossed = -(np.exp(log_p) * log_q).sum(1).mean()
    assert line["binoculars"] == pytest.approx(loss / crossed, rel=1e-5)


def test_several_files_are_told_apart(scores, tmp_path, capsys):
    paths = []
    for index, text in enumerate(TEXTS):
        path = tmp_path / f"{index}.txt"
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    assert main(["detect", *paths, "--json"]) == 0
    found = json_of(capsys)
    assert [line.pop("file") for line in found] == paths
    assert [line.pop("text_id") for line in found] == [1, 1, 1]
    assert found == [expected(score, ONE_MODEL) for score in scores]


def test_a_table_gets_columns(scores, tmp_path):
    table, result = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = "".join(f'{i};"{text}"\n' for i, text in enumerate(TEXTS))
    table.write_text(f"id;answer\n{rows}", encoding="utf-8")
    assert main(["detect", str(table), "--column", "answer", "--output", str(result)]) == 0
    with open(result, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, delimiter=";"))
    assert list(found[0]) == ["id", "answer", "tokens", "scored", *ONE_MODEL]
    assert [row["answer"] for row in found] == TEXTS
    for row, score in zip(found[:2], scores, strict=False):
        assert float(row["curvature"]) == score.curvature
    assert found[2]["curvature"] == ""


def test_the_table_for_people(scores, lines_file, capsys):
    assert main(["detect", lines_file, "--lines", "--performer", str(TALES)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    titles = ["tokens", "log p", "log rank", "entropy", "LRR", "curvature", "Binoculars", "text"]
    assert " ".join(header.split()) == " ".join(titles)
    for number, (line, score) in enumerate(zip(lines, scores, strict=True), start=1):
        cells = line.split()
        names = (*ONE_MODEL, "binoculars")
        expected = [
            "-" if math.isnan(value) else f"{value:.3f}"
            for value in (getattr(score, name) for name in names)
        ]
        assert cells[:7] == [str(len(score.ids)), *expected]
        assert line.endswith(f"  {lines_file}, line {number}")
        assert len(line) - len(f"{lines_file}, line {number}") == header.index("text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}", "missing.txt"], "missing.txt: No such file"),
        (["-", "-"], "given more than once"),
        (["{}", "--json", "--format", "csv"], "--json contradicts --format csv"),
        (["{}", "--performer", "{folder}"], "encode this text differently"),
    ],
)
def test_errors(lines_file, arguments, message, capsys, tmp_path):
    folder = tmp_path / "gpt2_tokenizer"
    if "{folder}" in arguments:
        import gpt2c

        model = gpt2c.GPT2.from_pretrained(tokenizer=None)
        model.save_pretrained(folder)
        vocab = json.loads((TALES / "vocab.json").read_text(encoding="utf-8"))
        vocab["a"], vocab["T"] = vocab["T"], vocab["a"]
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    arguments = [a.format(lines_file, folder=folder) for a in arguments]
    assert main(["detect", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
