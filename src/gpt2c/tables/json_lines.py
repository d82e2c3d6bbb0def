"""Read JSON lines: a JSON value on each line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import TableError
from gpt2c.tables.formats import Layout
from gpt2c.tables.source import BYTE_ORDER_MARK, Source
from gpt2c.tables.table import Row, Table

_METADATA: Final = "metadata"


def read_values(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield each line's place and JSON value; skip blank lines. Raises TableError."""
    for line in source.lines():
        if line.strip():
            place = f"{source.name}, line {source.n_lines}"
            try:
                value = parse_json(line.strip().removeprefix(BYTE_ORDER_MARK).encode())
            except ValueError as error:
                raise TableError(f"{place} {error}") from None
            yield place, value


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
        _rows(row, values),
        extent=source.extent(),
        metadata=metadata or {},
    )


def _rows(first: Row | None, values: Iterator[tuple[str, Any]]) -> Iterator[Row]:
    if first is not None:
        yield first
    for place, value in values:
        yield _row(place, value)


def _row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise TableError(f"{place}: expected an object with the row's columns, found {show(value)}")
    return Row(value, place)
