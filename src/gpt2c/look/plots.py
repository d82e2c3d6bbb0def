"""Draw a bar for each word of a text, such as its surprisal, for one model or for two.

The functions take words and numbers, and return figures of matplotlib, which is an extra.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import Gpt2cWarning, MissingDependencyError, OptionError
from gpt2c.files import replace_file, temporary_folder
from gpt2c.look.fonts import Fonts, find_fonts, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "pdf")
MAX_WORDS: Final = 3000
# From the palette of Okabe and Ito: people with any colour blindness tell these apart, and so does
# a print in grey.
COLORS: Final = ("#0072B2", "#E69F00")
_GREY: Final = "#888888"

# Sizes in inches.
_WIDTH: Final = 11.0
_LEFT, _RIGHT = 0.75, 0.15
_ROW_WIDTH: Final = _WIDTH - _LEFT - _RIGHT
_ROW_HEIGHT: Final = 1.0
_WORDS_HEIGHT: Final = 0.35
_NAME_HEIGHT: Final = 0.3
_TOP: Final = 0.6
_BOTTOM: Final = 0.15
_SCATTER: Final = 3.4
_BAR_WIDTHS: Final = (0.18, 0.13)  # of one model, and of each of two
_WORD_GAP: Final = 0.09

_WORD_SIZE: Final = 8  # points
_DPI: Final = 150
_MAX_PIXELS: Final = 60_000  # matplotlib draws at most 2^16 in a direction
_N_NAMED: Final = 8  # words of the scatter plot


class PlottedText(NamedTuple):
    """A text to draw: its name, its words, and the words' numbers.

    values
        An array for each model, [n_words]. An infinite number is drawn as a hatched bar up to the
        upper edge; NaN is drawn as a grey word without a bar.
    """

    name: str
    words: Sequence[str]
    values: Sequence[NDArray[np.floating]]


class _Row(NamedTuple):
    """The words from begin to end of a text, and the middle of each, in inches from the left."""

    text: PlottedText
    begin: int
    end: int
    centers: list[float]


def new_figure(layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "a picture needs the package matplotlib: pip install matplotlib (the extra gpt2c[plot])"
        ) from None
    return Figure(layout=layout)


def check_plot_path(path: str | os.PathLike[str]) -> str:
    """Return a picture's format, which the suffix of its path names: "png", "svg" or "pdf".

    Raises OptionError for any other suffix.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise OptionError(f"{path}: the name of a picture must end in .png, .svg or .pdf")
    return suffix


def word_figure(
    texts: Sequence[PlottedText],
    labels: Sequence[str],
    *,
    quantity: str = "surprisal",
    unit: str = "bits",
    title: str = "Surprisal",
) -> Figure:
    """Draw a bar above each word; the texts wrap into rows, and each text begins a new row.

    labels
        The names of one or two models. With two, a word has a bar of each, and a last plot has the
        second model's numbers against the first's.
    quantity, unit
        What the numbers are, for the axes.

    All rows have the same scale. Characters that no font of this system has are drawn as boxes,
    with a warning.

    Raises MissingDependencyError without matplotlib, and OptionError if the texts have no word,
    more than MAX_WORDS, or another number of values than of words or of labels.
    """
    figure = new_figure()
    _check(texts, labels)
    fonts = find_fonts([title, *labels, *(s for t in texts for s in (t.name, *t.words))])
    if fonts.missing:
        _warn_of(fonts.missing)
    rows = [row for text in texts for row in _rows_of(text, len(labels), figure, fonts)]
    names = [text for text in texts if text.name]
    height = _TOP + len(rows) * (_ROW_HEIGHT + _WORDS_HEIGHT) + _NAME_HEIGHT * len(names) + _BOTTOM
    if len(labels) == 2:
        height += _SCATTER + 1.1
    figure.set_size_inches(_WIDTH, height)
    axis_label = f"{quantity} ({unit})"
    limits = _limits([values for text in texts for values in text.values])
    y = _TOP
    for row in rows:
        if row.begin == 0 and row.text.name:
            y += _NAME_HEIGHT
        axes = _add_axes(figure, _LEFT, y, _ROW_WIDTH, _ROW_HEIGHT)
        _draw_row(axes, row, limits, fonts)
        # On two lines, because a row is too low for one.
        axes.set_ylabel(f"{quantity}\n({unit})", fontsize=_WORD_SIZE)
        if row.begin == 0 and row.text.name:
            name = fonts.drawable(shown(row.text.name, 100))
            axes.set_title(
                name, loc="left", fontsize=9, pad=4, family=fonts.families, parse_math=False
            )
        y += _ROW_HEIGHT + _WORDS_HEIGHT
    _draw_heading(figure, title, labels, texts, unit, fonts)
    if len(labels) == 2:
        axes = _add_axes(figure, _LEFT, y + 0.5, _SCATTER, _SCATTER)
        _draw_scatter(axes, texts, labels, axis_label, fonts)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a PNG, SVG or PDF file, atomically; the same figure gives the same bytes.

    Raises OptionError as check_plot_path does, and OSError if the file cannot be written.
    """
    import matplotlib

    format = check_plot_path(path)
    target = Path(os.path.abspath(path))
    dates = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    dpi = min(_DPI, _MAX_PIXELS / max(figure.get_size_inches()))
    try:
        with (
            temporary_folder(target.parent) as folder,
            matplotlib.rc_context({"svg.hashsalt": "gpt2c"}),
        ):
            written = folder / f"picture.{format}"
            figure.savefig(written, format=format, dpi=dpi, metadata=dates[format])
            replace_file(written, target)
    except OSError as error:  # it names the temporary file; the caller knows only path
        raise OSError(error.errno, error.strerror, str(path)) from None


def _check(texts: Sequence[PlottedText], labels: Sequence[str]) -> None:
    if len(labels) not in (1, 2):
        raise OptionError(f"labels has {len(labels)} items; a picture shows one model or two")
    for index, text in enumerate(texts):
        if len(text.values) != len(labels):
            raise OptionError(
                f"text {index} has the values of {len(text.values)} models, and there are "
                f"{len(labels)} labels"
            )
        for values in text.values:
            if np.shape(values) != (len(text.words),):
                raise OptionError(
                    f"text {index} has {len(text.words)} words and values of the shape "
                    f"{np.shape(values)}; expected a value for each word"
                )
    n_words = sum(len(text.words) for text in texts)
    if not 1 <= n_words <= MAX_WORDS:
        raise OptionError(
            f"a picture shows from 1 to {MAX_WORDS} words, and the texts have {n_words}"
        )


def _warn_of(missing: Sequence[str]) -> None:
    first = missing[0]
    warnings.warn(
        f"no font of this system has {len(missing)} of the characters, such as {first!a} "
        f"(U+{ord(first):04X}); they are drawn as boxes. Install a font that has them, such "
        "as Noto Sans, or Noto Sans CJK for Chinese, Japanese and Korean",
        Gpt2cWarning,
        stacklevel=3,
    )


def _rows_of(text: PlottedText, n_models: int, figure: Figure, fonts: Fonts) -> Iterator[_Row]:
    """Cut a text into rows of words that fit beside each other."""
    min_width = n_models * _BAR_WIDTHS[n_models - 1]
    begin, x, centers = 0, 0.0, list[float]()
    for index, word in enumerate(text.words):
        width = max(fonts.width_of(word, _WORD_SIZE), min_width) + _WORD_GAP
        if centers and x + width > _ROW_WIDTH:
            yield _Row(text, begin, index, centers)
            begin, x, centers = index, 0.0, []
        centers.append(x + width / 2)
        x += width
    if centers:
        yield _Row(text, begin, len(text.words), centers)


def _limits(values: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """Return the lower and upper edge of the vertical axis, with room above the highest bar."""
    finite = np.concatenate([each[np.isfinite(each)] for each in values] or [np.zeros(0)])
    low = min(float(finite.min(initial=0)) * 1.1, 0.0)
    high = float(finite.max(initial=0)) * 1.1
    return low, high if high > low else low + 1


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches; `top` counts from the figure's upper edge."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    axes: Axes = figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_WORD_SIZE)
    axes.set_axisbelow(True)
    return axes


def _draw_row(axes: Axes, row: _Row, limits: tuple[float, float], fonts: Fonts) -> None:
    n_models = len(row.text.values)
    width = _BAR_WIDTHS[n_models - 1]
    part = slice(row.begin, row.end)
    for model, (all_values, color) in enumerate(zip(row.text.values, COLORS, strict=False)):
        values = np.asarray(all_values[part], dtype=np.float64)
        centers = np.array(row.centers) + (model - (n_models - 1) / 2) * width
        heights = np.clip(values, *limits)  # infinite bars end at the edge; NaN stays NaN
        bars = axes.bar(centers, heights, width * 0.92, color=color)
        for bar, value, center in zip(bars, values, centers, strict=True):
            if math.isinf(value):
                bar.set(hatch="////", fill=False, edgecolor=color)
                sign = "\u221e" if value > 0 else "-\u221e"
                axes.text(center, bar.get_height(), sign, ha="center", va="bottom", fontsize=8)
    words = [fonts.drawable(shown(word)) for word in row.text.words[part]]
    axes.set_xticks(
        row.centers, words, fontsize=_WORD_SIZE, family=fonts.families, parse_math=False
    )
    axes.tick_params(axis="x", length=0)
    is_missing = np.all(np.isnan([values[part] for values in row.text.values]), axis=0)
    for label, missing in zip(axes.get_xticklabels(), is_missing, strict=True):
        label.set_color(_GREY if missing else "black")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    if limits[0] < 0:
        axes.spines["bottom"].set_visible(False)
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlim(0, _ROW_WIDTH)
    axes.set_ylim(*limits)


def _draw_heading(
    figure: Figure,
    title: str,
    labels: Sequence[str],
    texts: Sequence[PlottedText],
    unit: str,
    fonts: Fonts,
) -> None:
    """Draw the title, and a legend with each model's mean over the words that have a number."""
    from matplotlib.patches import Patch

    height = figure.get_size_inches()[1]
    text = fonts.drawable(shown(title, 100))
    options: dict[str, Any] = {"family": fonts.families, "parse_math": False}
    figure.text(_LEFT / _WIDTH, 1 - 0.25 / height, text, fontsize=12, va="center", **options)
    handles = []
    for model, label in enumerate(labels):
        values = np.concatenate([np.asarray(text.values[model]) for text in texts])
        values = values[~np.isnan(values)]
        with np.errstate(invalid="ignore"):  # of infinities of both signs
            mean = f": mean {values.mean():.2f} {unit}" if len(values) else ""
        name = fonts.drawable(shown(label, 60))
        handles.append(Patch(color=COLORS[model], label=f"{name}{mean}"))
    legend = figure.legend(
        handles=handles, loc="upper right", ncols=2, fontsize=9, frameon=False,
        bbox_to_anchor=(1 - _RIGHT / _WIDTH, 1 - 0.08 / height), borderaxespad=0,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set(**options)


def _draw_scatter(
    axes: Axes,
    texts: Sequence[PlottedText],
    labels: Sequence[str],
    axis_label: str,
    fonts: Fonts,
) -> None:
    """Draw the second model's numbers against the first's, and name the words that differ most."""
    words = [word for text in texts for word in text.words]
    x, y = (np.concatenate([np.asarray(text.values[i]) for text in texts]) for i in (0, 1))
    is_finite = np.isfinite(x) & np.isfinite(y)
    low, high = _limits([x[is_finite], y[is_finite]])
    axes.plot([low, high], [low, high], color=_GREY, linewidth=0.8, linestyle="--")
    axes.scatter(x[is_finite], y[is_finite], s=14, color=COLORS[0], alpha=0.6, linewidths=0)
    indices = np.flatnonzero(is_finite)
    differences = np.abs(x[indices] - y[indices])
    named: list[int] = []
    width, height = 0.25 * (high - low), 0.04 * (high - low)  # of a name
    for index in indices[np.argsort(-differences, kind="stable")]:
        if any(abs(x[index] - x[i]) < width and abs(y[index] - y[i]) < height for i in named):
            continue  # it would cover another name
        if len(named) == _N_NAMED:
            break
        named.append(index)
        word = fonts.drawable(shown(words[index]))
        axes.annotate(
            word, (x[index], y[index]), xytext=(4, 3), textcoords="offset points",
            fontsize=_WORD_SIZE, family=fonts.families, parse_math=False,
        )  # fmt: skip
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_title(
        "Each point is a word. On the dashed line both models agree.", loc="left", fontsize=9
    )
    for axis, label in zip((axes.xaxis, axes.yaxis), labels, strict=True):
        name = fonts.drawable(shown(label, 40))
        axis.set_label_text(f"{name}, {axis_label}", fontsize=9, family=fonts.families)
        axis.label.set_parse_math(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
