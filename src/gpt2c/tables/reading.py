"""Open tables for reading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpt2c.checks.names import file_name
from gpt2c.tables.delimited import read_delimited
from gpt2c.tables.formats import check_delimiter, table_format
from gpt2c.tables.json_lines import read_json_lines
from gpt2c.tables.source import Source, open_source
from gpt2c.tables.table import Table


@contextmanager
def open_table(
    path: str | os.PathLike[str], *, format: str | None = None, delimiter: str | None = None
) -> Iterator[Table]:
    """Open a table; "-" is standard input. A name that ends in .gz or .zst is of a compressed file.

    The format is `format` ("csv", "tsv", "jsonl" or "parquet"), or what the suffix of the path
    names. `delimiter` separates the cells of CSV and TSV; by default, the header's line shows it.

    Raises TableError if the input is malformed, OptionError for an invalid option, OSError if the
    file cannot be read, and MissingDependencyError if Parquet needs pyarrow.
    """
    name = file_name("path", path)
    format, delimiter = table_format(name, format), check_delimiter(delimiter)
    with open_source(name) as source:
        yield read_table(source, format, delimiter)


def read_table(source: Source, format: str, delimiter: str | None) -> Table:
    """Read the columns of a table; its rows are read lazily. Raises what open_table raises."""
    if format == "jsonl":
        return read_json_lines(source)
    if format == "parquet":
        from gpt2c.tables.parquet import read_parquet

        return read_parquet(source)
    return read_delimited(source, format, delimiter)
