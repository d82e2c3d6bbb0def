"""A coloured text in a terminal, or with marks for colours where there can be none."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final, TextIO, TypeAlias

from gpt2c.coloring.spans import CLASS_NAMES, HasTokenBytes, class_of, shares, spans, summary
from gpt2c.coloring.visible import LINE_END, TAB, visible
from gpt2c.measure.scores import Score

# Black on a pale ground of the 256-colour palette: legible in dark and light terminals alike.
_COLORS: Final = tuple(f"\033[38;5;16;48;5;{ground}m" for ground in (151, 229, 217, 183))
_PLAIN: Final = "\033[0m"
_MARKS: Final = (("", ""), ("(", ")"), ("[", "]"), ("{", "}"))
_TAB_STOP: Final = 8

_Cell: TypeAlias = tuple[int | None, str]  # the index of a class, and a character or more


def wants_color(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and NO_COLOR is not set.

    FORCE_COLOR asks for them also where it is none, such as a pipe to a pager. Both count if they
    are set to anything but nothing.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def terminal_text(
    score: Score, tokenizer: HasTokenBytes, *, color: bool = True, width: int | None = None
) -> str:
    """The text of a score, each token in the colour of its rank; then a legend and a summary.

    Without color brackets stand for the colours. With width, in columns, longer lines are broken
    between words. Control characters are shown as pictures, so that a text cannot write to the
    terminal what it likes. Lines end with an arrow, which has the colour of the line feed. The
    last line has no end.
    """
    parts = [(class_of(span.rank), _shown(span.text)) for span in spans(score, tokenizer)]
    cells = [
        (found if color else None, character)
        for found, text in (parts if color else _marked(parts))
        for character in text
    ]
    text = "".join(_painted(_broken(cells, width) if width else cells))
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}\n{_legend(score, color)}\n{summary(score)}"


def _painted(cells: Iterable[_Cell]) -> Iterator[str]:
    # Not across the end of a line, whose rest some terminals would colour.
    for (found, is_end), group in itertools.groupby(cells, lambda cell: (cell[0], cell[1] == "\n")):
        text = "".join(character for _, character in group)
        yield text if found is None or is_end else f"{_COLORS[found]}{text}{_PLAIN}"


def _broken(cells: list[_Cell], width: int) -> Iterator[_Cell]:
    """The cells, with an end of line before each word that would not fit whole."""
    column, begin = 0, 0
    for index, (_, character) in enumerate(cells, start=1):
        if character not in " \n\t" and index < len(cells):
            continue
        word = cells[begin:index]
        end = _end_column(word, column)
        if end > width and column:
            yield None, "\n"
            end = _end_column(word, 0)
        yield from word
        column, begin = 0 if character == "\n" else end % width, index


def _end_column(cells: list[_Cell], column: int) -> int:
    """Where the cursor is after them, from a column on, were the line endless."""
    for _, character in cells:
        if character == "\t":
            column = (column // _TAB_STOP + 1) * _TAB_STOP
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf") and character != "\n":
            column += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return column


def _marked(parts: Iterable[_Cell]) -> Iterator[_Cell]:
    """Brackets around each, but around no space that begins it nor the end of a line."""
    for found, text in parts:
        left, right = _MARKS[found or 0]
        word = text.lstrip(" ") or text
        content = word.removesuffix("\n")
        before, after = text[: len(text) - len(word)], word[len(content) :]
        yield found, f"{before}{left}{content}{right}{after}"


def _shown(text: str) -> str:
    return visible(text).replace("\n", LINE_END + "\n").replace("\t", TAB + "\t")


def _legend(score: Score, color: bool) -> str:
    found = []
    for name, share, code, (left, right) in zip(
        CLASS_NAMES, shares(score), _COLORS, _MARKS, strict=True
    ):
        label = f"{code} {name} {_PLAIN}" if color else f"{left}{name}{right}"
        found.append(f"{label} {100 * share:.1f} %")
    return "   ".join(found)
