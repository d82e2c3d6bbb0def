"""The task files of the zero-shot table: which file a task measures, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError
from gpt2c.published.detokenizer import Between, Rules
from gpt2c.published.entries import Entries, read_toml

Kind = Literal["words", "bytes", "last_word", "cloze"]

_FOLDER: Final = Path(__file__).parents[1] / "data" / "zero_shot"
# The order of the columns of the paper's table 3.
ORDER: Final = (
    "lambada", "cbt_cn", "cbt_ne", "wikitext2", "ptb", "enwik8", "text8", "wikitext103", "1bw",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A task: a column or two of the paper's table.

    name, columns
        The task's name, and the columns of the table that it measures.
    kind
        How the file is read and measured: "words" (tokenized lines), "bytes", "last_word" (LAMBADA)
        or "cloze" (CBT).
    files
        Names of the data's file relative to the folder of the data, the preferred one first.
    units
        How many words, bytes, characters, passages or questions the publisher's file has.
    unit
        What a perplexity or a number of bits is per: "word", "byte" or "character".
    context
        "file": a line continues the lines before it; "line": each line begins a new text.
    first
        The first byte to measure, for "bytes".
    prefix, replace
        What is put before each text, and what is replaced in it, for "last_word".
    stop_words
        Words that are no guesses, in lower case, for "last_word".
    rules
        How tokenized text is written as ordinary text.
    data
        Where the data comes from: its publisher, file, terms and hash.
    """

    name: str
    columns: tuple[str, ...]
    kind: Kind
    files: tuple[str, ...]
    units: int
    unit: str = "word"
    context: str = "file"
    first: int = 0
    prefix: str = ""
    replace: tuple[tuple[str, str], ...] = ()
    stop_words: frozenset[str] = frozenset()
    rules: Rules = field(default_factory=Rules)
    data: dict[str, str] = field(default_factory=dict)

    def find(self, folder: Path) -> Path | None:
        """Return the data's file in a folder, or None."""
        return next((folder / name for name in self.files if (folder / name).is_file()), None)


def load_tasks(names: Iterable[str] | None = None) -> list[Task]:
    """Return the named tasks, or all; a name that ends with .toml is the path of a task file.

    Raises OptionError, CheckpointNotFoundError for a file that does not exist, or OptionTypeError.
    """
    tasks = []
    for name in ORDER if names is None else names:
        if name.endswith(".toml"):
            tasks.append(read_task(Path(name)))
        elif name in ORDER:
            tasks.append(read_task(_FOLDER / f"{name}.toml"))
        else:
            raise OptionError(
                f"found the task {show(name)}; expected one of {', '.join(ORDER)}, or the path of "
                "a task file that ends with .toml"
            )
    return tasks


def read_task(path: Path) -> Task:
    """Read a task file. Raises OptionError naming the file and the entry that is wrong."""
    read = read_toml(path)
    task = Task(
        name=read.text("name"),
        columns=tuple(read.texts("columns")),
        kind=read.one_of("kind", get_args(Kind)),
        files=tuple(read.texts("files")),
        units=read.integer("units", 1),
        unit=read.text("unit", "word"),
        context=read.one_of("context", ("file", "line"), "file"),
        first=read.integer("first", 0, 0),
        prefix=read.text("prefix", ""),
        replace=tuple((old, new) for old, new in read.pairs("replace")),
        stop_words=frozenset(read.text("stop_words", "").split()),
        rules=_rules(read.table("detokenizer")),
        data={name: str(value) for name, value in read.table("data").items()},
    )
    read.check_names(Task.__dataclass_fields__.keys() - {"rules"} | {"detokenizer"})
    expected = 2 if task.kind == "last_word" else 1
    if len(task.columns) != expected:
        raise OptionError(f"{path}: columns has {len(task.columns)} names, expected {expected}")
    return task


def _rules(read: Entries) -> Rules:
    read.check_names(Rules.__dataclass_fields__)
    between = []
    for part in read.tables("between"):
        try:
            neighbour = re.compile(part.text("neighbour"))
        except re.error as reason:
            raise OptionError(
                f"{part.where}: neighbour is not a regular expression: {reason}"
            ) from None
        between.append(Between(part.text("word"), part.text("text"), neighbour))
    return Rules(
        read.words("left"),
        read.words("right"),
        tuple(read.texts("quotes", ())),
        tuple(between),
        read.words("alone"),
    )
