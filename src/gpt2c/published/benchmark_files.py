"""Read the files of the zero-shot table's benchmarks, as their publishers distribute them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import open_regular, read_whole, show
from gpt2c.errors import OptionError
from gpt2c.tables import open_texts

_MAX_BYTES: Final = 2**30
_GAP: Final = "XXXXX"
_N_STORY: Final = 20  # sentences before a question
_N_CHOICES: Final = 10


@dataclass(frozen=True)
class Question:
    """A question of the Children's Book Test: which of the choices fills the gap?"""

    story: list[list[str]]  # 20 sentences
    before: list[str]  # the words of the last sentence before the gap
    after: list[str]
    choices: list[list[str]]
    answer: int  # the index of the right choice

    def words(self) -> Iterator[str]:
        """Yield all words, in no particular order."""
        for words in (*self.story, self.before, self.after, *self.choices):
            yield from words


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without their ends. Raises OptionError naming the line."""
    raw = read_whole(path, limit=_MAX_BYTES, error=OptionError)
    lines = []
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else [], start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as reason:
            raise OptionError(
                f"{path}, line {number}: is not UTF-8 at byte {reason.start} of the line; use the "
                "publisher's file as it is"
            ) from None
    return lines


def read_bytes(path: Path, first: int, n: int) -> str:
    """Return the text of n bytes from the byte `first` on.

    A character that the first or the last byte cuts is left out. Raises OptionError.
    """
    with open_regular(path, OptionError) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(min(first, size))
        raw = file.read(min(n, size)) or b""  # room is made for all that read is asked for
    if not raw:
        raise OptionError(
            f"{path}: has at most {first:,} bytes, expected 100,000,000; unpack the publisher's "
            "archive"
        )
    for start in range(min(4, len(raw))):  # a character has at most 4 bytes
        for end in range(len(raw), max(len(raw) - 4, start), -1):
            try:
                return raw[start:end].decode("utf-8")
            except UnicodeDecodeError as reason:
                if reason.start > 0 and reason.end < end - start:
                    break  # not at an end
    raise OptionError(f"{path}: the bytes from {first:,} on are not UTF-8")


def read_passages(path: Path) -> list[str]:
    """Return the passages of LAMBADA: JSON lines with a "text", or lines of a text file.

    Raises OptionError or TableError, naming the line.
    """
    passages = []
    with open_texts(str(path), lines=path.suffix == ".txt") as items:
        for item in items:
            if not isinstance(item.text, str) or " " not in item.text.strip():
                raise OptionError(
                    f"{item.place}: found {show(item.text)}, expected a passage of several words"
                )
            passages.append(item.text)
    return passages


def read_questions(path: Path) -> list[Question]:
    """Return the questions of the Children's Book Test.

    A question has 20 numbered lines, and a line with the number 21, a sentence with a gap (XXXXX),
    a tab, the answer, two tabs, and ten choices with | between them. A blank line ends it.
    """
    questions = []
    story: list[list[str]] = []
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            if story:
                raise OptionError(f"{where}: a question has only {len(story)} lines, expected 21")
            continue
        label, _, rest = line.partition(" ")
        if label != str(len(story) + 1):
            raise OptionError(f"{where}: begins with {show(label)}, expected {len(story) + 1}")
        if len(story) < _N_STORY:
            story.append(rest.split())
        else:
            questions.append(_question(story, rest, where))
            story = []
    if story:
        raise OptionError(f"{path}: the last question has only {len(story)} lines, expected 21")
    return questions


def _question(story: list[list[str]], line: str, where: str) -> Question:
    parts = [part for part in line.split("\t") if part]
    choices = parts[-1].split("|") if len(parts) == 3 else []
    words = parts[0].split() if parts else []
    if len(choices) != _N_CHOICES or words.count(_GAP) != 1 or parts[1] not in choices:
        raise OptionError(
            f"{where}: found {show(line)}, expected a sentence with {_GAP}, its answer, and "
            f"{_N_CHOICES} choices with | between them, one of which is the answer"
        )
    gap = words.index(_GAP)
    return Question(
        story=story,
        before=words[:gap],
        after=words[gap + 1 :],
        choices=[choice.split() for choice in choices],
        answer=choices.index(parts[1]),
    )
