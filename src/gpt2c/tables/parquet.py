"""Read and write Parquet with pyarrow, the extra "parquet"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import BinaryIO, Final

from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import MissingDependencyError, TableError
from gpt2c.tables.cells import Writable, check_columns, plain_cell
from gpt2c.tables.compressed import FREE_BYTES
from gpt2c.tables.formats import Layout
from gpt2c.tables.source import Source
from gpt2c.tables.table import Cell, Columns, ColumnType, Extent, Row, RowError, Table

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise MissingDependencyError(
        "Parquet needs the package pyarrow: pip install 'gpt2c[parquet]', or use CSV or JSON lines"
    ) from None
_PREFIX: Final = "gpt2c."  # of the keys of gpt2c's metadata
_BUFFER_BYTES: Final = 1 << 20  # per column, while a row group is read
_READ_BYTES: Final = 1 << 25  # of a column's cells that are read together
_MIN_READ_ROWS: Final = 16
_MAX_READ_ROWS: Final = 1024
_GROUP_BYTES: Final = 1 << 24  # of a row group that is written
_GROUP_ROWS: Final = 1 << 16
# What pyarrow raises for a damaged file: its own errors, and Python's for names and sizes.
_DAMAGED: Final = (
    pa.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError, OverflowError
)  # fmt: skip
_TYPES: Final[Mapping[ColumnType, pa.DataType]] = MappingProxyType(
    {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        list: pa.list_(pa.int64()),
        list[float]: pa.list_(pa.float64()),
    }
)


def read_parquet(source: Source) -> Table:
    """Read the schema of a Parquet table; its rows are read lazily. Raises TableError."""
    if source.n_bytes is None:
        raise TableError(f"{source.name}: Parquet cannot be read from a pipe; name a file")
    try:
        schema = pq.read_schema(source.file)
        source.file.seek(0)
        file = pq.ParquetFile(source.file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except _DAMAGED as error:
        raise TableError(f"{source.name}: is not a valid Parquet file: {error}") from None
    names = list(schema.names)
    if len(set(names)) < len(names):
        raise TableError(
            f"{source.name}: has two columns with one name, expected different names; found "
            f"{show_list(names)}"
        )
    _check_expansion(file.metadata, source)
    n_read = [0]
    return Table(
        source.name,
        {field.name: _column_type(field.type) for field in schema},
        Layout("parquet"),
        _Rows(file, source.name, n_read),
        extent=Extent(lambda: n_read[0], file.metadata.num_rows, "row"),
        metadata=_metadata_of(schema),
    )


def _check_expansion(facts: pq.FileMetaData, source: Source) -> None:
    """Raise TableError if the pages would become far larger than the file that holds them."""
    size = sum(facts.row_group(index).total_byte_size for index in range(facts.num_row_groups))
    limit = max(FREE_BYTES, source.limits.expansion * (source.n_bytes or 0))
    if size > limit:
        raise TableError(
            f"{source.name}: Parquet data expand more than {source.limits.expansion} times, to "
            f"{size} bytes; if the file is right, write it with less compression or raise the limit"
        )


def _metadata_of(schema: pa.Schema) -> dict[str, str]:
    stored = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (schema.metadata or {}).items()
    }
    return {
        key.removeprefix(_PREFIX): value for key, value in stored.items() if key.startswith(_PREFIX)
    }


class _Rows(Iterator[Row]):
    """The rows. It is no generator, because that would end at the first error."""

    def __init__(self, file: pq.ParquetFile, name: str, n_read: list[int]) -> None:
        """`n_read` holds the number of rows that were read."""
        self._name, self._n_read = name, n_read
        self._batches = file.iter_batches(batch_size=_batch_rows(file.metadata), use_threads=False)
        self._columns: list[tuple[str, pa.Array]] = []
        self._n_rows = self._index = 0  # of the batch

    def skip(self) -> None:
        """Skip a row, whose cells are not made."""
        while self._index == self._n_rows:
            self._read_batch()
        self._index += 1
        self._n_read[0] += 1

    def __next__(self) -> Row:
        self.skip()
        index = self._index - 1
        place = f"{self._name}, row {self._n_read[0]}"
        return Row({key: _cell(cells, index, place, key) for key, cells in self._columns}, place)

    def _read_batch(self) -> None:
        try:
            batch = next(self._batches, None)
        except _DAMAGED as error:
            raise TableError(
                f"{self._name}: cannot be read after row {self._n_read[0]}: {error}"
            ) from None
        if batch is None:
            raise StopIteration
        self._columns = list(zip(batch.schema.names, batch.columns, strict=True))
        self._n_rows, self._index = batch.num_rows, 0


def _batch_rows(facts: pq.FileMetaData) -> int:
    """Return how many rows to read together.

    A text that repeats is stored once, so each row of a small file can hold all of it. But no text
    is longer than its row group. (Asking pyarrow for the size of one column ends the process if
    the file is damaged.)
    """
    sizes: list[int] = [
        facts.row_group(index).total_byte_size for index in range(facts.num_row_groups)
    ]
    rows = _READ_BYTES // max(1, max(sizes, default=1))
    return min(max(rows, _MIN_READ_ROWS), _MAX_READ_ROWS)


def _cell(values: pa.Array, index: int, place: str, column: str) -> Cell:
    try:
        return _plain(values[index].as_py())
    except _DAMAGED as error:
        message = f"{place}: column {show(column)} cannot be read: {error}"
        raise RowError(message, place) from None


def _plain(value: object) -> Cell:
    """Return a cell; dates, times and decimals become text. Raises TypeError for other types."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta | Decimal):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    raise TypeError(f"found {show(value)}, expected text, a number or a list")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _column_type(kind: pa.DataType) -> ColumnType | None:
    if _is_text(kind):
        return str
    if pa.types.is_boolean(kind):
        return bool
    if pa.types.is_integer(kind):
        return int
    if pa.types.is_floating(kind):
        return float
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        return None
    if pa.types.is_integer(kind.value_type):
        return list[int]
    return list[float] if pa.types.is_floating(kind.value_type) else None


@contextmanager
def write_parquet(
    file: BinaryIO, name: str, columns: Columns, metadata: Mapping[str, str]
) -> Iterator[ParquetTableWriter]:
    """Write a Parquet table into a file; `metadata` goes into the file's key-value metadata."""
    writer = ParquetTableWriter(file, name, columns, metadata)
    try:
        yield writer
        writer.finish()
    except (pa.ArrowException, OverflowError) as error:
        raise TableError(f"{name}: cannot be written: {error}") from None
    finally:
        writer.close()


class ParquetTableWriter:
    """Writes rows in groups of about 16 MiB, or 65,536 rows."""

    def __init__(
        self, file: BinaryIO, name: str, columns: Columns, metadata: Mapping[str, str]
    ) -> None:
        """Types of columns that `columns` leaves open are those of the first group of rows."""
        self._file, self._name = file, name
        self._columns, self._metadata = dict(columns), metadata
        self._writer: pq.ParquetWriter | None = None
        self._cells: dict[str, list[Cell]] = {column: [] for column in columns}
        self._n_rows = self._n_waiting = self._n_bytes = 0

    def write(self, row: Mapping[str, Writable]) -> None:
        """Write a row, as TableWriter says."""
        check_columns(row, self._columns, f"{self._name}, row {self._n_rows + 1}")
        for column, cells in self._cells.items():
            cell = plain_cell(row.get(column))
            cells.append(cell)
            self._n_bytes += 8 + (len(cell) if isinstance(cell, str | list) else 0)
        self._n_rows += 1
        self._n_waiting += 1
        if self._n_waiting >= _GROUP_ROWS or self._n_bytes >= _GROUP_BYTES:
            self._write_group()

    def finish(self) -> None:
        """Write the rows that wait; also those of a table without rows."""
        self._write_group()

    def close(self) -> None:
        """Write the file's end, if anything was written."""
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        if self._writer is None:
            schema = pa.schema([(name, self._type(name)) for name in self._columns])
            facts = {_PREFIX + key: value for key, value in self._metadata.items()}
            self._writer = pq.ParquetWriter(self._file, schema.with_metadata(facts))
        schema = self._writer.schema
        arrays = [self._array(field.name, field.type) for field in schema]
        if self._n_waiting:
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        for cells in self._cells.values():
            cells.clear()
        self._n_waiting = self._n_bytes = 0

    def _type(self, column: str) -> pa.DataType:
        """Return a column's type: the given one, or that of the cells that wait."""
        kind = self._columns[column]
        if kind is not None:
            return _TYPES.get(kind, _TYPES[list])
        try:
            found = pa.array(self._cells[column]).type
        except (pa.ArrowException, OverflowError) as error:
            raise TableError(
                f"{self._name}: column {show(column)} has cells of different types, which Parquet "
                f"cannot hold: {error}; write JSON lines"
            ) from None
        return pa.string() if pa.types.is_null(found) else found

    def _array(self, column: str, kind: pa.DataType) -> pa.Array:
        cells = self._cells[column]
        try:
            return pa.array(cells, kind)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            first = self._n_rows - self._n_waiting + 1
            wrong = next(i for i, cell in enumerate(cells) if not _fits(cell, kind))
            expected = f"the column's type, {kind}"
            if isinstance(error, UnicodeError):
                expected = "text without an unpaired surrogate"
            raise TableError(
                f"{self._name}, row {first + wrong}: column {show(column)} has "
                f"{show(cells[wrong])}, expected {expected}"
            ) from None


def _fits(cell: Cell, kind: pa.DataType) -> bool:
    try:
        pa.scalar(cell, kind)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return False
    return True
