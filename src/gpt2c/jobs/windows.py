"""Windows of rows: what is done together, and held in memory together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from gpt2c.jobs.rows import JobRow

# Enough texts to fill passes, and little memory.
_MAX_ROWS: Final = 1024
_MAX_BYTES: Final = 1 << 22


def windows(rows: Iterable[JobRow], shard_rows: int) -> Iterator[list[JobRow]]:
    """Yield the rows in lists, lazily. The rows of a list are of one shard of `shard_rows` rows.

    A list has at most 1,024 rows, and no row is added to one that has over 4 MiB.
    """
    window: list[JobRow] = []
    n_bytes = 0
    for row in rows:
        if window and (
            len(window) == _MAX_ROWS
            or n_bytes > _MAX_BYTES
            or window[0].number // shard_rows != row.number // shard_rows
        ):
            yield window
            window, n_bytes = [], 0
        window.append(row)
        n_bytes += _bytes_of(row)
    if window:
        yield window


def _bytes_of(row: JobRow) -> int:
    """Return about how much memory a row takes."""
    n_bytes = 64
    for cell in row.cells.values():
        n_items = len(cell) if isinstance(cell, str | list | dict) else 8
        n_bytes += n_items if isinstance(cell, str) else 8 * n_items
    return n_bytes
