"""Colour a text for a terminal, or put brackets around its tokens if there are no colours."""

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
_RESET: Final = "\033[0m"
_BRACKETS: Final = (("", ""), ("(", ")"), ("[", "]"), ("{", "}"))
_TAB_STOP: Final = 8

# Characters of one colour, after the index of their class; None if they have no colour. In lists
# called `characters`, each run is a single character.
_Run: TypeAlias = tuple[int | None, str]


def wants_color(stream: TextIO) -> bool:
    """Whether to write colours: the stream is a terminal that shows colours, and NO_COLOR is unset.

    FORCE_COLOR turns colours on for other streams too, for example a pipe to a pager. NO_COLOR
    overrides FORCE_COLOR. An empty variable counts as unset.
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

    Without `color`, brackets replace the colours. With `width`, in columns, longer lines are
    wrapped between words. Control characters are shown as symbols, so a text cannot send escape
    sequences to the terminal. An arrow in the token's colour precedes each line feed of the text.
    The result does not end with a line feed.
    """
    runs = [(class_of(span.rank), _with_arrows(span.text)) for span in spans(score, tokenizer)]
    characters = [
        (class_index if color else None, character)
        for class_index, text in (runs if color else _bracketed(runs))
        for character in text
    ]
    text = "".join(_colored(_wrapped(characters, width) if width else characters))
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}\n{_legend(score, color)}\n{summary(score)}"


def _colored(characters: Iterable[_Run]) -> Iterator[str]:
    """Yield the text with the escape sequences of its colours."""
    # End a colour before a line feed, because some terminals would colour the rest of the line.
    for (class_index, is_line_feed), group in itertools.groupby(
        characters, lambda run: (run[0], run[1] == "\n")
    ):
        text = "".join(character for _, character in group)
        if class_index is not None and not is_line_feed:
            text = f"{_COLORS[class_index]}{text}{_RESET}"
        yield text


def _wrapped(characters: list[_Run], width: int) -> Iterator[_Run]:
    """Yield the characters, with a line feed before each word that does not fit on its line."""
    column, begin = 0, 0
    for end, (_, character) in enumerate(characters, start=1):
        if character not in " \n\t" and end < len(characters):
            continue
        word = characters[begin:end]  # with the white space after it
        end_column = _end_column(word, column)
        if end_column > width and column:
            yield None, "\n"
            end_column = _end_column(word, 0)
        yield from word
        column = 0 if character == "\n" else end_column % width
        begin = end


def _end_column(characters: list[_Run], column: int) -> int:
    """Return the cursor's column after printing the characters from `column`, without wrapping."""
    for _, character in characters:
        if character == "\t":
            column = (column // _TAB_STOP + 1) * _TAB_STOP
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf") and character != "\n":
            column += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return column


def _bracketed(runs: Iterable[_Run]) -> Iterator[_Run]:
    """Put each run in the brackets of its class, after leading spaces and before a line feed."""
    for class_index, text in runs:
        left, right = _BRACKETS[class_index or 0]
        word = text.lstrip(" ") or text
        content = word.removesuffix("\n")
        before, after = text[: len(text) - len(word)], word[len(content) :]
        yield class_index, f"{before}{left}{content}{right}{after}"


def _with_arrows(text: str) -> str:
    """Replace control characters by symbols, and put an arrow before each line feed and tab."""
    return visible(text).replace("\n", LINE_END + "\n").replace("\t", TAB + "\t")


def _legend(score: Score, color: bool) -> str:
    entries = []
    for name, share, start_color, (left, right) in zip(
        CLASS_NAMES, shares(score), _COLORS, _BRACKETS, strict=True
    ):
        label = f"{start_color} {name} {_RESET}" if color else f"{left}{name}{right}"
        entries.append(f"{label} {100 * share:.1f} %")
    return "   ".join(entries)
