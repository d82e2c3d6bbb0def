"""What a picture of words shows, read from matplotlib's own objects."""

from __future__ import annotations

import os
import warnings
from itertools import pairwise

import numpy as np
import pytest

import gpt2c

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.font_manager import findfont, fontManager, get_font

from gpt2c.look.fonts import find_fonts, shown
from gpt2c.look.plots import (
    COLORS,
    MAX_WORDS,
    PlottedText,
    check_plot_path,
    save_figure,
    word_figure,
)

WORDS = ["Once", "upon", "a", "time", "there", "was", "a", "little", "girl"]


def values_of(words, seed=0):
    return np.random.default_rng(seed).gamma(2, 4, len(words))


def draw(words=WORDS, *values, labels=("tales",), name="", **options):
    values = values or (values_of(words),)
    return word_figure([PlottedText(name, words, values)], labels, **options)


def words_of(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def heights_of(axes):
    return [bar.get_height() for bar in axes.patches]


def legend_of(figure):
    return [entry.get_text() for entry in figure.legends[0].get_texts()]


def test_each_word_has_its_bar():
    values = values_of(WORDS)
    figure = draw(WORDS, values, title="A tale", quantity="surprisal", unit="nats")
    (axes,) = figure.axes
    assert words_of(axes) == WORDS
    np.testing.assert_allclose(heights_of(axes), values)
    centers = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    np.testing.assert_allclose(axes.get_xticks(), centers)
    assert axes.get_ylabel() == "surprisal\n(nats)"
    assert [text.get_text() for text in figure.texts] == ["A tale"]
    assert legend_of(figure) == [f"tales: mean {values.mean():.2f} nats"]
    assert {to_hex(bar.get_facecolor()).upper() for bar in axes.patches} == {COLORS[0]}
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > values.max()


def test_a_long_text_wraps_into_rows_of_one_scale():
    words = WORDS * 20
    figure = draw(words, values_of(words))
    assert len(figure.axes) > 3
    assert [word for axes in figure.axes for word in words_of(axes)] == words
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    tops = [axes.get_position().y1 for axes in figure.axes]
    bottoms = [axes.get_position().y0 for axes in figure.axes]
    assert all(above > below for above, below in zip(bottoms, tops[1:], strict=False))
    assert min(bottoms) > 0
    assert max(tops) < 1


def test_the_labels_of_rows_do_not_overlap():
    words = WORDS * 10
    figure = draw(words, values_of(words), quantity="corrected surprisal", unit="bits")
    figure.draw_without_rendering()
    boxes = [axes.yaxis.label.get_window_extent() for axes in figure.axes]
    assert len(boxes) > 2
    assert all(above.y0 > below.y1 for above, below in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_the_words_of_a_row_do_not_overlap():
    words = ["i", "incomprehensibilities", "a", "WWWWWWWW", "x" * 100, "to"] * 8
    figure = draw(words, values_of(words))
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
        assert boxes[-1].x1 <= axes.get_window_extent(renderer).x1


def test_each_text_begins_a_row_under_its_name():
    texts = [PlottedText(name, WORDS[:3], [values_of(WORDS[:3])]) for name in ("one", "$2$", "")]
    figure = word_figure(texts, ["tales"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "$2$", ""]
    assert [words_of(axes) for axes in figure.axes] == [WORDS[:3]] * 3


def test_two_models_have_bars_side_by_side_and_a_last_plot_of_both():
    first, second = values_of(WORDS), values_of(WORDS, seed=1)
    figure = draw(WORDS, first, second, labels=("tales", "prose"), unit="bits")
    row, scatter = figure.axes
    np.testing.assert_allclose(heights_of(row), [*first, *second])
    colors = [to_hex(bar.get_facecolor()).upper() for bar in row.patches]
    assert colors == [COLORS[0]] * len(WORDS) + [COLORS[1]] * len(WORDS)
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in row.patches)
    assert all(a[1] <= b[0] for a, b in pairwise(bars))
    assert legend_of(figure) == [
        f"tales: mean {first.mean():.2f} bits", f"prose: mean {second.mean():.2f} bits"
    ]  # fmt: skip
    np.testing.assert_allclose(scatter.collections[0].get_offsets(), np.stack([first, second], 1))
    assert scatter.get_xlabel() == "tales, surprisal (bits)"
    assert scatter.get_ylabel() == "prose, surprisal (bits)"
    named = [text.get_text() for text in scatter.texts]
    assert named[0] == WORDS[np.argmax(abs(first - second))]


def test_names_in_the_last_plot_do_not_cover_each_other():
    words = [f"word{i}" for i in range(40)]
    figure = draw(words, np.full(40, 10.0), np.linspace(4, 5, 40), labels=("a", "b"))
    named = [text.get_text() for text in figure.axes[-1].texts]
    assert named[0] == "word0"
    assert len(named) < 8


def test_infinite_and_missing_values_are_shown_as_such(tmp_path):
    values = np.array([np.nan, 3, np.inf, 5, -np.inf])
    (axes,) = draw(WORDS[:5], values).axes
    bars = axes.patches
    assert np.isnan(bars[0].get_height())
    assert [bar.get_hatch() is not None for bar in bars] == [False, False, True, False, True]
    assert bars[2].get_height() == axes.get_ylim()[1] > 5
    assert [text.get_text() for text in axes.texts] == ["\u221e", "-\u221e"]
    save_figure(draw(WORDS[:5], values, values[::-1], labels=("a", "b")), tmp_path / "a.png")
    colors = [label.get_color() for label in axes.get_xticklabels()]
    assert colors[0] != "black"
    assert set(colors[1:]) == {"black"}


def test_negative_values_stay_in_the_picture():
    (axes,) = draw(WORDS[:3], np.array([-2.0, 3, 1])).axes
    assert axes.get_ylim()[0] < -2


@pytest.mark.parametrize("values", [np.full(3, np.nan), np.full(3, np.inf), np.zeros(3)])
def test_without_a_height_there_is_still_a_picture(values, tmp_path):
    for models in ([values], [values, values]):
        figure = draw(WORDS[:3], *models, labels=("a", "b")[: len(models)])
        save_figure(figure, tmp_path / "a.png")


def test_words_are_drawn_as_they_are(tmp_path):
    words = [
        "$x^2$",
        "$5",
        "_a_",
        r"\frac{a}",
        "\u00fcber",
        "a\nb",
        "   ",
        " the",
        "\x07",
        "\ud800",
    ]
    figure = draw(words, labels=("a $model$",), title="$1 and $2")
    expected = [*words[:5], "a\u21b5b", "\u2423" * 3, "the", "<U+0007>", "<U+D800>"]
    assert words_of(figure.axes[0]) == expected
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())
    for suffix in ("png", "svg", "pdf"):
        save_figure(figure, tmp_path / f"a.{suffix}")  # it raises for bad mathematics


def test_a_long_word_is_cut():
    assert shown("x" * 100) == "x" * 27 + "\u2026"


def test_joiners_are_left_out():
    assert shown("a\u200d\u202eb\u00ad") == "ab"


def characters_of(name):
    return set(get_font(findfont(name)).get_charmap())


def test_another_font_is_found_for_what_the_first_one_lacks(monkeypatch):
    only_there = characters_of("STIXGeneral") - characters_of("DejaVu Sans")
    if not only_there:
        pytest.skip("STIXGeneral, which comes with matplotlib, has nothing of its own")
    char = next(chr(code) for code in sorted(only_there) if chr(code).isalpha())
    stix = [font for font in fontManager.ttflist if font.name == "STIXGeneral"]
    monkeypatch.setattr(fontManager, "ttflist", stix)
    fonts = find_fonts([f"a{char}", "\u6771"])
    assert fonts.missing == ["\u6771"]
    assert any(ord(char) in characters_of(name) for name in fonts.families[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        draw([char], np.ones(1)).draw_without_rendering()


def test_characters_that_no_font_has_are_boxes_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(fontManager, "ttflist", [])
    with pytest.warns(gpt2c.Gpt2cWarning, match=r"2 of the characters.*U\+4EAC.*Noto"):
        figure = draw(["in", "\u6771\u4eac"], np.ones(2))
    assert words_of(figure.axes[0]) == ["in", "\u25a1\u25a1"]
    save_figure(figure, tmp_path / "a.png")  # an error if matplotlib warns


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_a_picture_is_written_in_the_format_of_its_name(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"old")
    save_figure(draw(), path)
    written = path.read_bytes()
    assert written.startswith({"p": b"\x89PNG", "s": b"<?xml", "d": b"%PDF"}[
        "d" if suffix == "pdf" else suffix[0].lower()
    ])  # fmt: skip
    save_figure(draw(), path)
    assert path.read_bytes() == written
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("path", ["a", "a.jpg", "png", "a.png.txt"])
def test_another_format_is_refused(path):
    with pytest.raises(gpt2c.OptionError, match=r"\.png, \.svg or \.pdf"):
        check_plot_path(path)


def test_an_error_names_the_picture(tmp_path):
    path = tmp_path / "no_folder" / "a.png"
    with pytest.raises(OSError, match="No such file") as raised:
        save_figure(draw(), path)
    assert raised.value.filename == str(path)


def test_a_very_high_picture_fits_in_matplotlibs_limits(tmp_path):
    figure = draw(["x" * 28] * 60)
    width, _ = figure.get_size_inches()
    figure.set_size_inches(width, 900)
    save_figure(figure, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("words", "values", "labels", "message"),
    [
        ([], [np.zeros(0)], ["a"], "from 1 to 3000 words"),
        (["a"] * (MAX_WORDS + 1), [np.zeros(MAX_WORDS + 1)], ["a"], "have 3001"),
        (["a"], [np.zeros(2)], ["a"], "1 words and values of the shape"),
        (["a"], [np.zeros(1)], ["a", "b"], "1 models, and there are 2 labels"),
        (["a"], [np.zeros(1)] * 3, ["a", "b", "c"], "one model or two"),
        (["a"], [], [], "one model or two"),
    ],
)
def test_wrong_arguments_are_named(words, values, labels, message):
    with pytest.raises(gpt2c.OptionError, match=message):
        word_figure([PlottedText("", words, values)], labels)
