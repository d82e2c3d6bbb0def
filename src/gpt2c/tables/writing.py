"""Write tables: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, Final, Protocol, TypeAlias

from gpt2c.checks.names import choice, file_name
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError, TableError
from gpt2c.files import whole_file
from gpt2c.tables.cells import Writable, check_columns, plain_cell
from gpt2c.tables.compressed import compressing, compression_of
from gpt2c.tables.formats import Layout, check_delimiter, table_format
from gpt2c.tables.source import BYTE_ORDER_MARK
from gpt2c.tables.table import Columns

Metadata: TypeAlias = Mapping[str, "str | int | float"]

_KEY: Final = re.compile("[a-z][a-z0-9_]*")
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")


class TableWriter(Protocol):
    """Writes the rows of an open table."""

    def write(self, row: Mapping[str, Writable]) -> None:
        """Write a row. A column that it lacks is missing.

        None, NaN and infinities are missing too: an empty cell (or `missing`) in CSV and TSV, null
        in JSON lines and Parquet. A list is written as JSON in CSV and TSV.

        Raises TableError if the row has another column, or a value that the format cannot hold.
        """


@contextmanager
def create_table(
    path: str | os.PathLike[str],
    columns: Columns,
    *,
    format: str | None = None,
    like: Layout | None = None,
    delimiter: str | None = None,
    decimal: str = ".",
    missing: str = "",
    metadata: Metadata | None = None,
    metadata_lines: bool = False,
) -> Iterator[TableWriter]:
    """Open a table for writing; "-" is standard output.

    The file takes the path's place when the block ends without an error. Until then, and if the
    block raises, a file of that name is unchanged.

    Args:
        path: The file to write; a name that ends in .gz or .zst is compressed.
        columns: The names of the columns, in order, and their types: str, int, float, bool, or
            list for a list of integers (list[float]: of numbers); None for any type. Only Parquet
            needs the types.
        format: "csv", "tsv", "jsonl" or "parquet"; default: what the path's suffix names.
        like: The layout of a table that was read. The result has its delimiter, byte order mark and
            line ends if it has its format.
        delimiter: The character between the cells of CSV and TSV.
        decimal: The decimal separator of numbers in CSV and TSV, "." or ",".
        missing: What CSV and TSV have for a missing value; R reads "NA" as missing.
        metadata: Keys and values about the table as a whole. Parquet stores them in its metadata.
        metadata_lines: Write the metadata in CSV and TSV too, as lines ``# key: value`` before the
            columns, and in JSON lines, as a first object {"metadata": {...}}. Most other programs
            must be told to skip these lines.

    Raises OptionError for an invalid option, OSError if the file cannot be written, TableError, and
    MissingDependencyError if Parquet needs pyarrow.
    """
    name = file_name("path", path)
    format = table_format(name, format)
    delimiter = check_delimiter(delimiter)
    choice("decimal", decimal, (".", ","))
    facts = _checked_metadata(metadata or {}, name)
    if not isinstance(missing, str):
        raise OptionTypeError(f"missing is {show(missing)}; it must be a str")
    if not columns and format != "jsonl":
        raise OptionError("columns is empty; expected the names of the columns and their types")
    if format == "parquet":
        if name == "-":
            raise OptionError(
                "Parquet cannot be written to standard output; name a file (--output)"
            )
        if compression_of(name):
            raise OptionError(f"{name}: Parquet compresses by itself; name a .parquet file")
        from gpt2c.tables.parquet import write_parquet

        with whole_file(name) as file, write_parquet(file, name, columns, facts) as parquet:
            yield parquet
        return
    layout = like if like is not None and like.format == format else Layout(format)
    usual = layout.delimiter if layout is like else "\t" if format == "tsv" else ","
    with _text_output(name) as output:
        if format == "jsonl":
            yield _JsonLinesWriter(output, facts if metadata_lines else {})
        else:
            layout = Layout(format, delimiter or usual, layout.has_byte_order_mark, layout.line_end)
            yield _DelimitedWriter(
                output, name, columns, layout, decimal, missing, facts if metadata_lines else {}
            )


class _Output(Protocol):
    """Takes text and writes it as UTF-8."""

    def write(self, text: str) -> None: ...


class _FileOutput:
    """Writes to a file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def write(self, text: str) -> None:
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise TableError(
                f"{self._name}: {show(text)} has an unpaired surrogate at character {error.start}, "
                "which is not Unicode; remove it"
            ) from None
        try:
            self._file.write(raw)
        except OSError as error:  # a full disk, for example, names no file
            raise OSError(error.errno, error.strerror, self._name) from None


class _StandardOutput:
    """Writes to standard output, each row at once."""

    def write(self, text: str) -> None:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()


@contextmanager
def _text_output(path: str) -> Iterator[_Output]:
    if path == "-":
        yield _StandardOutput()
    else:
        with whole_file(path) as file, compressing(file, compression_of(path)) as writer:
            yield _FileOutput(writer, path)


class _Sink:
    """An object whose `write` is a given function, as csv.writer needs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write


class _JsonLinesWriter:
    """Writes JSON lines: each row as an object with the columns that it has, in its order."""

    def __init__(self, output: _Output, metadata: Mapping[str, str]) -> None:
        self._output = output
        if metadata:
            self._write_object({"metadata": metadata})

    def write(self, row: Mapping[str, Writable]) -> None:
        self._write_object({column: plain_cell(value) for column, value in row.items()})

    def _write_object(self, value: Mapping[str, object]) -> None:
        self._output.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


class _DelimitedWriter:
    """Writes CSV and TSV with Python's csv module."""

    def __init__(
        self,
        output: _Output,
        name: str,
        columns: Columns,
        layout: Layout,
        decimal: str,
        missing: str,
        metadata: Mapping[str, str],
    ) -> None:
        self._output, self._name = output, name
        self._decimal, self._missing = decimal, missing
        self._columns, self._line_end = dict(columns), layout.line_end
        self._n_rows = 0
        # The csv module quotes both CR and LF in cells only if both end a row; `_write_row` writes
        # the line end that the layout has.
        self._write_cells = csv.writer(
            _Sink(self._write_row), delimiter=layout.delimiter, lineterminator="\r\n"
        ).writerow
        if layout.has_byte_order_mark:
            output.write(BYTE_ORDER_MARK)
        for key, value in metadata.items():
            output.write(f"# {key}: {' '.join(value.split())}{self._line_end}")
        self._write_cells(self._columns)

    def write(self, row: Mapping[str, Writable]) -> None:
        self._n_rows += 1
        check_columns(row, self._columns, f"{self._name}, row {self._n_rows}")
        self._write_cells([self._text(row.get(column)) for column in self._columns])

    def _text(self, value: Writable) -> str:
        if isinstance(value, str):
            text = value
        else:
            plain = plain_cell(value)
            if plain is None:
                return self._missing
            text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
            if isinstance(plain, float):
                text = text.replace(".", self._decimal)
        if "\0" in text:
            raise TableError(
                f"{self._name}, row {self._n_rows}: {show(text)} has a NUL character, which "
                "readers of CSV refuse; write JSON lines or Parquet"
            )
        return text

    def _write_row(self, line: str) -> None:
        self._output.write(line.removesuffix("\r\n") + self._line_end)


def _checked_metadata(metadata: Metadata, name: str) -> dict[str, str]:
    for key in metadata:
        if not _KEY.fullmatch(key):
            raise OptionError(
                f"metadata has the key {show(key)}; a key has lower-case letters, digits and _"
            )
    for key, value in metadata.items():
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise TableError(
                f"{name}: the metadata {key} is {show(value)}; it must have neither a NUL "
                "character nor an unpaired surrogate"
            )
    return {key: str(value) for key, value in metadata.items()}
