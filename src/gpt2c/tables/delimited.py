"""Read CSV and TSV with Python's csv module."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final, NoReturn

from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import TableError
from gpt2c.tables.formats import Layout
from gpt2c.tables.source import MAX_LINE_BYTES, Source
from gpt2c.tables.table import Row, RowError, Table

if TYPE_CHECKING:
    from _csv import Reader

_DELIMITERS: Final = (",", ";", "\t")
_NAMES: Final = {"\t": "a tab"}
# A line of metadata at the top, as the writer writes it.
_METADATA: Final = re.compile(r"# ([a-z][a-z0-9_]*): (.*)")
_MAX_METADATA_LINES: Final = 100
_QUOTING: Final = (
    "a cell that contains the delimiter, a quote or a line end must be in quotes, with each quote "
    "in it written twice"
)


def read_delimited(source: Source, format: str, delimiter: str | None) -> Table:
    """Read the header of a CSV or TSV table; the rows are read lazily.

    Without a delimiter, the one of , ; and tab is taken that gives the header the most columns.
    Raises TableError.
    """
    # Without this, a cell has at most 131,072 characters. The csv module has one limit for the
    # whole process; raising it makes no other reader fail.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    lines = _CheckedLines(source)
    metadata, first_lines = _read_metadata(lines)
    delimiter, header = _find_header(lines, first_lines, format, delimiter)
    _check_header(header, source.name)
    line_end = "\r\n" if first_lines[-1].endswith("\r\n") else "\n"
    reader = _reader_of(chain(first_lines, lines), delimiter)
    next(row for row in reader if row)  # the header
    n_before = len(metadata)
    return Table(
        source.name,
        dict.fromkeys(header, str),
        Layout(format, delimiter, source.begins_with_mark, line_end),
        _Rows(reader, lines, header, delimiter, n_before),
        extent=source.extent(),
        metadata=metadata,
    )


class _CheckedLines(Iterator[str]):
    """The lines of a source, without NUL, and with a limit for each row's characters."""

    def __init__(self, source: Source) -> None:
        self.source, self._lines = source, source.lines()
        self.start_row()

    def start_row(self) -> None:
        """Say that the next line begins a row."""
        self._n_characters, self._first_line = 0, self.source.n_lines + 1

    def __next__(self) -> str:
        line = next(self._lines)
        if "\0" in line:
            place = f"{self.source.name}, line {self.source.n_lines}"
            raise RowError(
                f"{place}: found a NUL character, expected text; if the file is UTF-16, save it as "
                "UTF-8",
                place,
            )
        self._n_characters += len(line)
        if self._n_characters > self.source.limits.line_bytes:
            self._raise_too_long()
        return line

    def _raise_too_long(self) -> NoReturn:
        """Raise TableError: rows after a quote that is not closed cannot be told from its text."""
        try:
            self.source.raise_too_long(self._first_line, "row (is a quote not closed?)")
        except RowError as error:
            raise TableError(str(error)) from None


def _reader_of(lines: Iterator[str], delimiter: str) -> Reader:
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _read_metadata(lines: _CheckedLines) -> tuple[dict[str, str], list[str]]:
    """Read the lines of metadata, and the first line after them, if there is one."""
    metadata: dict[str, str] = {}
    for line in lines:
        lines.start_row()
        found = _METADATA.fullmatch(line.rstrip("\r\n"))
        if found is None or len(metadata) == _MAX_METADATA_LINES:
            return metadata, [line]
        metadata[found[1]] = found[2]
    return metadata, []


def _find_header(
    lines: _CheckedLines, first_lines: list[str], format: str, delimiter: str | None
) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns.

    `first_lines` are the lines that were read; those that this reads are appended.
    """
    if delimiter is not None:
        return delimiter, _header(lines, first_lines, delimiter)
    headers: dict[str, list[str]] = {}
    problem: TableError | None = None
    for candidate in _DELIMITERS:
        try:
            headers[candidate] = _header(lines, first_lines, candidate)
        except TableError as error:  # quotes that are right with another delimiter
            problem = problem or error
    most = max((len(header) for header in headers.values()), default=0)
    if problem is not None and most < 2:
        raise problem
    usual = "\t" if format == "tsv" else ","
    if format == "tsv" and len(headers.get(usual, "")) > 1:
        return usual, headers[usual]
    best = [candidate for candidate, header in headers.items() if len(header) == most]
    if most > 1 and len(best) > 1:
        raise TableError(
            f"{lines.source.name}: cannot tell the delimiter: the header has {most} columns with "
            f"{' and with '.join(map(_name, best))}; name it with the option delimiter"
        )
    chosen = usual if usual in best else best[0]
    return chosen, headers[chosen]


def _header(lines: _CheckedLines, first_lines: list[str], delimiter: str) -> list[str]:
    """Parse the first row that is not blank."""

    def replayed() -> Iterator[str]:
        yield from tuple(first_lines)
        for line in lines:
            first_lines.append(line)
            yield line

    name = lines.source.name
    try:
        header: list[str] | None = next(
            (row for row in _reader_of(replayed(), delimiter) if row), None
        )
    except csv.Error as error:
        raise TableError(f"{name}: the header {_problem(error)}") from None
    if header is None:
        raise TableError(f"{name}: is empty; expected a first line with the names of the columns")
    return header


def _check_header(header: list[str], name: str) -> None:
    seen: set[str] = set()
    for column in header:
        if column in seen:
            raise TableError(
                f"{name}: has two columns named {show(column)}, expected different names in the "
                f"first line; found {show_list(header)}"
            )
        seen.add(column)


class _Rows(Iterator[Row]):
    """The rows. It is no generator, because that would end at the first error."""

    def __init__(
        self, reader: Reader, lines: _CheckedLines, header: list[str], delimiter: str, n_before: int
    ) -> None:
        """`n_before` lines precede the first one that `reader` has read."""
        self._reader, self._lines, self._header = reader, lines, header
        self._delimiter, self._n_before = delimiter, n_before

    def __next__(self) -> Row:
        header, cells = self._header, list[str]()
        while not cells:  # a blank line
            self._lines.start_row()
            place = f"{self._lines.source.name}, line {self._n_before + self._reader.line_num + 1}"
            try:
                cells = next(self._reader)
            except csv.Error as error:
                raise RowError(f"{place}: the row {_problem(error)}", place) from None
        if len(cells) == len(header):
            return Row(dict(zip(header, cells, strict=True)), place)
        raise RowError(
            f"{place}: found {len(cells)} cells, expected {len(header)}, one for each column: "
            f"{show_list(header)}; the delimiter is {_name(self._delimiter)}, and {_QUOTING}",
            place,
        )


def _problem(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return f"has a quote that is not closed before the end of the file; {_QUOTING}"
    return f"has characters after a closing quote; {_QUOTING}"


def _name(delimiter: str) -> str:
    return _NAMES.get(delimiter, repr(delimiter))
