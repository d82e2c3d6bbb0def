"""``gpt2c surprisal --plot``: what the picture gets, and its errors."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import TALES
from test_detection import performer_on

import gpt2c
from gpt2c.cli.main import main

pytest.importorskip("matplotlib")
from gpt2c.look import plots

TEXTS = ["The old king was ill.", "Once upon a time"]
PIMENTEL = {"correction": "pimentel"}


@pytest.fixture
def figures(monkeypatch):
    """Return a list that gets the figures that are written."""
    saved = []
    save = plots.save_figure

    def record(figure, path):
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", record)
    return saved


@pytest.fixture
def lines_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


def words_of(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def heights_of(axes):
    return [bar.get_height() for bar in axes.patches]


@pytest.mark.parametrize("backend_name", ["numpy", "auto"])
def test_the_picture_has_the_surprisals_of_the_table(
    figures, lines_file, tmp_path, capsys, backend_name
):
    picture = tmp_path / "a.svg"
    arguments = [lines_file, "--lines", "--plot", str(picture), "--backend", backend_name]
    assert main(["surprisal", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (figure,) = figures
    for axes, number in zip(figure.axes, (1, 2), strict=True):
        of_text = [row for row in rows if row["text_id"] == number]
        assert words_of(axes) == TEXTS[number - 1].split() == [row["word"] for row in of_text]
        np.testing.assert_allclose(heights_of(axes), [row["surprisal"] for row in of_text])
        assert axes.get_title(loc="left") == str(number)
        assert axes.get_ylabel() == "surprisal\n(bits)"
    assert figure.texts[0].get_text() == "Surprisal of the words of texts.txt"
    assert picture.read_bytes().startswith(b"<?xml")


def test_two_models_are_compared(figures, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0], encoding="utf-8")
    other_folder = tmp_path / "other"
    performer_on("numpy").save_pretrained(other_folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TALES / name, other_folder)
    options = ["--other", str(other_folder), "--plot", str(tmp_path / "a.png"), "--nats"]
    assert main(["surprisal", str(text), *options, "--correction", "pimentel"]) == 0
    found = [
        gpt2c.surprisal(gpt2c.GPT2.from_pretrained(path), TEXTS[0], unit="nats", **PIMENTEL)
        for path in (TALES, other_folder)
    ]
    first, second = (each.columns["corrected"] for each in found)
    row, scatter = figures[0].axes
    np.testing.assert_allclose(heights_of(row), [*first, *second], rtol=1e-6)
    assert not np.allclose(first, second)
    assert row.get_ylabel() == "corrected surprisal\n(nats)"
    assert row.get_title(loc="left") == ""
    assert scatter.get_ylabel() == "other, corrected surprisal (nats)"


def test_the_groups_of_words_are_drawn_under_their_names(figures, tmp_path, capsys):
    table = tmp_path / "words.csv"
    table.write_text("item,cond,word\n1,a,The\n2,b,A\n1,a,king\n", encoding="utf-8")
    arguments = ["--by", "item", "--by", "cond", "--plot", str(tmp_path / "a.pdf")]
    assert main(["surprisal", str(table), *arguments]) == 0
    first, second = figures[0].axes
    assert (words_of(first), words_of(second)) == (["The", "king"], ["A"])
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("1, a", "2, b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "a.jpg"], ".png, .svg or .pdf"),
        (["--other", "tales"], "--other is given without --plot"),
        (["--plot", "a.png", "--whole"], "--plot draws words"),
        (["--plot", "a.png", "--next-tokens", "3"], "--plot draws words"),
        (["--plot", "no_folder/a.png"], "no_folder"),
    ],
)
def test_errors(lines_file, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["surprisal", lines_file, "--lines", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_too_many_words_are_refused_before_anything_is_written(tmp_path, capsys):
    text, table = tmp_path / "long.txt", tmp_path / "out.csv"
    text.write_text("a " * (plots.MAX_WORDS + 1), encoding="utf-8")
    picture = tmp_path / "a.png"
    arguments = [str(text), "--plot", str(picture), "--output", str(table)]
    assert main(["surprisal", *arguments]) == 2
    assert "--plot draws at most 3000 words" in capsys.readouterr().err
    assert not table.exists()
    assert not picture.exists()


def test_without_matplotlib_the_error_says_what_to_do(lines_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["surprisal", lines_file, "--plot", "a.png"]) == 2
    captured = capsys.readouterr()
    assert "pip install matplotlib" in captured.err
    assert captured.out == ""
