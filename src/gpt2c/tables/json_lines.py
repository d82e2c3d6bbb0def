"""Read JSON lines: a JSON value on each line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gpt2c.checks.untrusted import parse_json, show
from gpt2c.tables.formats import Layout
from gpt2c.tables.source import BYTE_ORDER_MARK, Source
from gpt2c.tables.table import Row, RowError, Table

_METADATA: Final = "metadata"


def read_values(source: Source) -> Values:
    """Return an iterator over each line's place and JSON value; blank lines are skipped.

    Raises RowError for a bad line, after which the iterator reads on.
    """
    return Values(source)


class Values(Iterator[tuple[str, Any]]):
    """The values of lines. It is no generator, because that would end at the first error."""

    def __init__(self, source: Source) -> None:
        """read_values makes it."""
        self._source, self._lines = source, source.lines()

    def skip(self) -> None:
        """Read the next value's line, and do not parse it. Raises what next() raises of a line."""
        self._line()

    def _line(self) -> str:
        line = next(self._lines).strip()
        while not line:
            line = next(self._lines).strip()
        return line

    def __next__(self) -> tuple[str, Any]:
        """The next line's place and value."""
        line = self._line()
        place = f"{self._source.name}, line {self._source.n_lines}"
        try:
            return place, parse_json(line.removeprefix(BYTE_ORDER_MARK).encode())
        except ValueError as error:
            raise RowError(f"{place} {error}", place) from None


def metadata_of(value: object) -> dict[str, str] | None:
    """Return the metadata of a line that holds only that, {"metadata": {...}}; None for others."""
    if (
        isinstance(value, dict)
        and list(value) == [_METADATA]
        and isinstance(value[_METADATA], dict)
    ):
        return {key: str(item) for key, item in value[_METADATA].items()}
    return None


def read_json_lines(source: Source) -> Table:
    """Read the first object of JSON lines, which names the columns; read the rest lazily.

    Raises TableError.
    """
    values = read_values(source)
    first = next(values, None)
    metadata = None if first is None else metadata_of(first[1])
    if metadata is not None:
        first = next(values, None)
    row = None if first is None else _row(*first)
    return Table(
        source.name,
        {} if row is None else dict.fromkeys(row),
        Layout("jsonl"),
        _Rows(row, values),
        extent=source.extent(),
        metadata=metadata or {},
    )


class _Rows(Iterator[Row]):
    def __init__(self, first: Row | None, values: Iterator[tuple[str, Any]]) -> None:
        self._first, self._values = first, values

    def __next__(self) -> Row:
        first, self._first = self._first, None
        return _row(*next(self._values)) if first is None else first


def _row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise RowError(
            f"{place}: expected an object with the row's columns, found {show(value)}", place
        )
    return Row(value, place)
