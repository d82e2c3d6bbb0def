"""Colour a text for a terminal; brackets replace the colours if the terminal has none."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final, TextIO, TypeAlias

from gpt2c.coloring.spans import CLASS_NAMES, HasTokenBytes, class_of, shares, spans, summary
from gpt2c.coloring.visible import LINE_END, TAB, visible
from gpt2c.measure.scores import Score

# Black on a pale background of the 256-colour palette: legible in dark and light terminals.
_COLORS: Final = tuple(f"\033[38;5;16;48;5;{background}m" for background in (151, 229, 217, 183))
_PLAIN: Final = "\033[0m"
_BRACKETS: Final = (("", ""), ("(", ")"), ("[", "]"), ("{", "}"))
_TAB_STOP: Final = 8

_Cell: TypeAlias = tuple[int | None, str]  # the index of a class, and its characters


def wants_color(stream: TextIO) -> bool:
    """Whether to write colours: the stream is a terminal that shows colours, and NO_COLOR is unset.

    FORCE_COLOR asks for colours elsewhere too, for example in a pipe to a pager. An empty variable
    counts as unset.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def terminal_text(
    score: Score, tokenizer: HasTokenBytes, *, color: bool = True, width: int | None = None
) -> str:
    """Return the text of a score, each token in the colour of its rank; then a legend and summary.

    Without color, brackets replace the colours. width, in columns, wraps longer lines between
    words. Control characters are shown as symbols, so a text cannot send escape sequences to the
    terminal. Each line feed of the text is preceded by an arrow in its token's colour. The result
    does not end with a line feed.
    """
    parts = [(class_of(span.rank), _shown(span.text)) for span in spans(score, tokenizer)]
    cells = [
        (class_index if color else None, character)
        for class_index, text in (parts if color else _bracketed(parts))
        for character in text
    ]
    text = "".join(_colored(_wrapped(cells, width) if width else cells))
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}\n{_legend(score, color)}\n{summary(score)}"


def _colored(cells: Iterable[_Cell]) -> Iterator[str]:
    # Colours end before a line feed: some terminals would colour the rest of the line.
    for (index, is_end), group in itertools.groupby(cells, lambda cell: (cell[0], cell[1] == "\n")):
        text = "".join(character for _, character in group)
        yield text if index is None or is_end else f"{_COLORS[index]}{text}{_PLAIN}"


def _wrapped(cells: list[_Cell], width: int) -> Iterator[_Cell]:
    """Yield the cells, with a line feed before each word that does not fit on its line."""
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
    """Return the cursor's column after printing the cells from a column, without wrapping."""
    for _, character in cells:
        if character == "\t":
            column = (column // _TAB_STOP + 1) * _TAB_STOP
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf") and character != "\n":
            column += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return column


def _bracketed(parts: Iterable[_Cell]) -> Iterator[_Cell]:
    """Put each part in brackets, which exclude its leading spaces and final line feed."""
    for class_index, text in parts:
        left, right = _BRACKETS[class_index or 0]
        word = text.lstrip(" ") or text
        content = word.removesuffix("\n")
        before, after = text[: len(text) - len(word)], word[len(content) :]
        yield class_index, f"{before}{left}{content}{right}{after}"


def _shown(text: str) -> str:
    return visible(text).replace("\n", LINE_END + "\n").replace("\t", TAB + "\t")


def _legend(score: Score, color: bool) -> str:
    entries = []
    for name, share, code, (left, right) in zip(
        CLASS_NAMES, shares(score), _COLORS, _BRACKETS, strict=True
    ):
        label = f"{code} {name} {_PLAIN}" if color else f"{left}{name}{right}"
        entries.append(f"{label} {100 * share:.1f} %")
    return "   ".join(entries)
