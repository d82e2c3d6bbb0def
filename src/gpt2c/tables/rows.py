"""Read the rows of any input, for jobs: a bad row is reported, and the next one is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gpt2c.checks.names import choice, file_name
from gpt2c.checks.untrusted import show
from gpt2c.tables.formats import TEXT_FORMATS, Layout, check_delimiter, format_of_suffix
from gpt2c.tables.json_lines import metadata_of, read_values
from gpt2c.tables.reading import read_table
from gpt2c.tables.source import Limits, Source, open_source
from gpt2c.tables.table import Columns, Extent, Row, RowError


@dataclass(frozen=True)
class Rows:
    """The rows of an open input, which are read lazily and once.

    name, layout, extent
        As of a Table.
    types
        The columns and their types; None if each row has its own, as in JSON lines.
    rows
        The rows. Raises RowError for a bad one, and then reads on; TableError where the input
        cannot be read further.
    """

    name: str
    layout: Layout
    extent: Extent
    types: Columns | None
    rows: Iterator[Row]


@contextmanager
def open_rows(
    path: str | os.PathLike[str],
    *,
    column: str = "text",
    format: str | None = None,
    delimiter: str | None = None,
    limits: Limits | None = None,
) -> Iterator[Rows]:
    """Open an input by rows; "-" is standard input.

    A row of plain text is a line that is not blank, and one of JSON lines may be a text or a list
    of ids; they have one cell, in `column`. The other arguments are those of open_texts.

    Raises what open_table raises.
    """
    name, delimiter = file_name("path", path), check_delimiter(delimiter)
    if format is not None:
        choice("format", format, TEXT_FORMATS)
    format = format or format_of_suffix(name) or "txt"
    with open_source(name, limits) as source:
        if format == "txt":
            rows: Iterator[Row] = _Lines(source, column)
            yield Rows(source.name, Layout("txt"), source.extent(), {column: str}, rows)
        elif format == "jsonl":
            rows = _Values(source, column)
            yield Rows(source.name, Layout("jsonl"), source.extent(), None, rows)
        else:
            table = read_table(source, format, delimiter)
            yield Rows(table.name, table.layout, table.extent, table.types, iter(table))


def skip_row(rows: Iterator[Row]) -> None:
    """Skip a row of an input, faster than next() where the format allows it.

    Raises StopIteration after the last row, and what next() raises; a row whose line can be read
    and not parsed may be skipped without an error.
    """
    skip: Callable[[], None] | None = getattr(rows, "skip", None)
    if skip is None:
        next(rows)
    else:
        skip()


class _Lines(Iterator[Row]):
    def __init__(self, source: Source, column: str) -> None:
        self._source, self._lines, self._column = source, source.lines(), column

    def __next__(self) -> Row:
        line = next(self._lines)
        while not line.strip():
            line = next(self._lines)
        text = line.removesuffix("\n").removesuffix("\r")
        return Row({self._column: text}, f"{self._source.name}, line {self._source.n_lines}")


class _Values(Iterator[Row]):
    def __init__(self, source: Source, column: str) -> None:
        self._values, self._column = read_values(source), column
        self._is_first = True

    def skip(self) -> None:
        if self._is_first:
            next(self)
        else:
            self._values.skip()

    def __next__(self) -> Row:
        is_first, self._is_first = self._is_first, False
        place, value = next(self._values)
        if is_first and metadata_of(value) is not None:
            place, value = next(self._values)
        if isinstance(value, dict):
            return Row(value, place)
        if isinstance(value, str | list):
            return Row({self._column: value}, place)
        raise RowError(
            f"{place}: expected an object, a text or a list of ids, found {show(value)}", place
        )
