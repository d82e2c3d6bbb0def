"""A table that is read row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gpt2c.checks.names import did_you_mean
from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import TableError
from gpt2c.tables.formats import Layout

# What a cell holds. Cells of CSV and TSV are always text; JSON lines and Parquet have them all.
Cell: TypeAlias = "str | int | float | bool | list[Cell] | dict[str, Cell] | None"
# The type of a column; `list` is a list of integers.
ColumnType: TypeAlias = (
    "type[str] | type[int] | type[float] | type[bool] | type[list[int]] | type[list[float]]"
)
# Columns in their order, each with its type; None if it is unknown, or is none of these.
Columns: TypeAlias = "Mapping[str, ColumnType | None]"


class RowError(TableError):
    """A row is malformed. The rows after it can still be read: the next call of next() does.

    place
        The row's place, as in Row.
    """

    def __init__(self, message: str, place: str = "") -> None:
        """The message names the place too."""
        super().__init__(message)
        self.place = place


class Row(Mapping[str, Cell]):
    """A row of a table: its cells by column, in order, and its place for messages.

    place
        For example "stimuli.csv, line 7"; a row of Parquet has a number instead of a line.
    """

    __slots__ = ("_cells", "place")

    def __init__(self, cells: dict[str, Cell], place: str) -> None:
        """`cells` is kept, not copied."""
        self._cells, self.place = cells, place

    def __getitem__(self, column: str) -> Cell:
        """Return a cell. Raises KeyError if the row lacks the column."""
        return self._cells[column]

    def __iter__(self) -> Iterator[str]:
        """The columns."""
        return iter(self._cells)

    def __len__(self) -> int:
        """The number of columns."""
        return len(self._cells)

    def __repr__(self) -> str:
        """The cells, and the place."""
        return f"<gpt2c.tables.Row: {show(self._cells)}, {self.place}>"

    def text(self, column: str) -> str:
        """Return a cell that must be text. Raises TableError if it is not, or is absent."""
        if column not in self._cells:
            message = f"{self.place}: {missing_column(column, tuple(self._cells))}"
            raise RowError(message, self.place)
        cell = self._cells[column]
        if not isinstance(cell, str):
            message = f"{self.place}: column {show(column)} must be text, found {show(cell)}"
            raise RowError(message, self.place)
        return cell


@dataclass(frozen=True)
class Extent:
    """How much of an input was read.

    read
        Returns the number of units that were read.
    total
        The number of units in the input; None if it is unknown, as for a pipe.
    unit
        "B" for bytes, or a noun: "row", "file".
    """

    read: Callable[[], int]
    total: int | None
    unit: str = "B"


class Table:
    """An open table, which is read lazily and once: iterate over it for its rows.

    name
        The input's name for messages.
    columns
        The names of the columns, in order; of JSON lines, the keys of the first object.
    types
        The type of each column: str in CSV and TSV, the file's own in Parquet, None in JSON lines.
    layout
        How the file holds the table; create_table takes it.
    extent
        How much of the input was read.
    metadata
        The keys and values that create_table wrote beside the table.
    """

    def __init__(
        self,
        name: str,
        types: Columns,
        layout: Layout,
        rows: Iterator[Row],
        *,
        extent: Extent,
        metadata: Mapping[str, str],
    ) -> None:
        """The rows are read while somebody iterates over them."""
        self.name, self.layout, self.extent = name, layout, extent
        self.types, self.metadata = dict(types), dict(metadata)
        self.columns = tuple(self.types)
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows that were not read yet.

        Raises RowError for a bad row, after which the same iterator reads on, and TableError where
        the input cannot be read further.
        """
        return self._rows

    def require(self, *columns: str) -> None:
        """Raise TableError, naming the columns that exist, if one of these does not.

        Objects of JSON lines may differ; the first of them counts here.
        """
        for column in columns:
            if column not in self.types:
                raise TableError(f"{self.name}: {missing_column(column, self.columns)}")


def missing_column(column: str, columns: tuple[str, ...]) -> str:
    """Return the message about a column that does not exist."""
    return (
        f"found no column {show(column)}; the columns are {show_list(columns) or '(none)'}"
        f"{did_you_mean(column, columns)}"
    )


def with_added(name: str, columns: Columns, added: Columns) -> dict[str, ColumnType | None]:
    """Return the columns of the table `name`, and after them those that a command adds.

    Raises TableError if the table has one of them already.
    """
    for column in added:
        if column in columns:
            raise TableError(
                f"{name}: has a column {show(column)} already, and the result has one too; rename "
                "the input's"
            )
    return {**columns, **added}
