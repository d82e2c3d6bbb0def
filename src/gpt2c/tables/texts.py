"""Read texts: from plain text, JSON lines, or a column of a table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from gpt2c.checks.names import choice, file_name
from gpt2c.checks.untrusted import show
from gpt2c.errors import TableError
from gpt2c.tables.formats import TEXT_FORMATS, Layout, check_delimiter, format_of_suffix
from gpt2c.tables.json_lines import metadata_of, read_values
from gpt2c.tables.reading import read_table
from gpt2c.tables.source import Source, open_source
from gpt2c.tables.table import ColumnType, Extent, Row, Table, missing_column

TextOrIds: TypeAlias = "str | list[int]"


@dataclass(frozen=True)
class Item:
    """One text of an input.

    place
        Where it stands, for messages: "prompts.txt, line 7".
    text
        The text, or its token ids.
    row
        The row of the table, or the object of JSON lines, that it is part of; None if there is
        none.
    """

    place: str
    text: TextOrIds
    row: Row | None = None


class Texts:
    """Open texts, which are read lazily and once: iterate for an Item of each.

    name
        The input's name for messages.
    layout
        The input's format.
    extent
        How much of the input was read.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
        items: Iterator[Item],
        extent: Extent,
        types: dict[str, ColumnType | None] | None = None,
    ) -> None:
        """Without `types`, the columns are those of the first item's row, if it has one."""
        self.name, self.layout, self.extent = name, layout, extent
        self._items, self._types = items, types

    def __iter__(self) -> Iterator[Item]:
        """Yield the texts that were not read yet. Raises TableError at the first bad one."""
        return self._items

    @property
    def types(self) -> dict[str, ColumnType | None]:
        """The columns of the table and their types; none if the texts are not of a table.

        Reads the first text of JSON lines; ask before iterating. Raises TableError.
        """
        if self._types is None:
            first = next(self._items, None)
            row = None if first is None else first.row
            self._types = {} if row is None else dict.fromkeys(row)
            self._items = self._items if first is None else chain([first], self._items)
        return self._types


@contextmanager
def open_texts(
    path: str | os.PathLike[str],
    *,
    column: str = "text",
    format: str | None = None,
    lines: bool = False,
    delimiter: str | None = None,
) -> Iterator[Texts]:
    """Open an input of texts; "-" is standard input.

    A file of plain text is one text, or with `lines` one text per line, without the blank ones. A
    line of JSON lines is a text, a list of token ids, or an object with `column` or "ids". Of a
    table, the texts are in `column`. The format is `format` ("txt", "csv", "tsv", "jsonl",
    "parquet"), or what the suffix of the path names; else the file is plain text.

    Raises TableError if the input is malformed, OptionError for an invalid option, OSError if the
    file cannot be read, and MissingDependencyError if Parquet needs pyarrow.
    """
    name, delimiter = file_name("path", path), check_delimiter(delimiter)
    if format is not None:
        choice("format", format, TEXT_FORMATS)
    format = format or format_of_suffix(name) or "txt"
    with open_source(name) as source:
        if format == "txt":
            items = _lines(source) if lines else _whole(source)
            yield Texts(source.name, Layout("txt"), items, source.extent(), {})
        elif format == "jsonl":
            values = _json_lines(source, column)
            yield Texts(source.name, Layout("jsonl"), values, source.extent())
        else:
            table = read_table(source, format, delimiter)
            if column not in table.types:
                message = missing_column(column, table.columns)
                if not message.endswith("?"):
                    message += "; name the column of the texts with the option column"
                raise TableError(f"{table.name}: {message}")
            items = _column(table, column)
            yield Texts(table.name, table.layout, items, table.extent, table.types)


def read_lines(source: Source) -> Iterator[tuple[str, str]]:
    """Yield each line's place and the line without its end, lazily. Raises TableError."""
    for line in source.lines():
        text = line.removesuffix("\n").removesuffix("\r")
        yield f"{source.name}, line {source.n_lines}", text


def _whole(source: Source) -> Iterator[Item]:
    yield Item(source.name, source.read_text())


def _lines(source: Source) -> Iterator[Item]:
    return (Item(place, line) for place, line in read_lines(source) if line.strip())


def _json_lines(source: Source, column: str) -> Iterator[Item]:
    for number, (place, value) in enumerate(read_values(source)):
        if number == 0 and metadata_of(value) is not None:
            continue
        row = Row(value, place) if isinstance(value, dict) else None
        if row is not None:
            items = [row[key] for key in (column, "ids") if key in row]
            if len(items) != 1:
                hint = "" if items else "; name the key of the texts with the option column"
                raise TableError(
                    f'{place}: expected an object with "{column}" or "ids", found '
                    f"{show(value)}{hint}"
                )
            (value,) = items
        yield Item(place, _text_or_ids(place, value), row)


def _column(table: Table, column: str) -> Iterator[Item]:
    for row in table:
        yield Item(row.place, _text_or_ids(row.place, row[column]), row)


def _text_or_ids(place: str, value: object) -> TextOrIds:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(id) is int for id in value):
        return value
    raise TableError(f"{place}: expected a text or a list of ids, found {show(value)}")
