"""Options that name inputs of texts and output tables, shared by all commands that have them."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import gpt2c
from gpt2c.checks.names import file_name
from gpt2c.cli.options import shows_progress
from gpt2c.errors import OptionError
from gpt2c.progress import with_input_bar
from gpt2c.tables import (
    Columns,
    Extent,
    Layout,
    TableWriter,
    TextOrIds,
    Texts,
    create_table,
    open_texts,
)
from gpt2c.tables.formats import TABLE_FORMATS, TEXT_FORMATS, format_of_suffix, table_format
from gpt2c.tables.writing import Metadata

TEXTS_HELP: Final = (
    "a file with one text; or JSON lines (.jsonl, .ndjson), each a text, a list of ids, or an "
    'object with "text" or "ids"; or a table (.csv, .tsv, .parquet) with a column "text". - is '
    "standard input"
)
INPUT_HELP: Final = (
    "\nText is read as UTF-8; a byte order mark at the beginning is dropped, and\n"
    "CRLF, CR and LF all end a line."
)
_Read = TypeVar("_Read")
_Result = TypeVar("_Result")


def add_lines_option(parser: argparse.ArgumentParser) -> None:
    """Add --lines."""
    parser.add_argument("--lines", action="store_true",
        help="each line is a text; blank lines are skipped")  # fmt: skip


def add_input_options(parser: argparse.ArgumentParser, column: str = "text") -> None:
    """Add --column, --input-format, --jsonl and --delimiter; `column` is the default column."""
    add = parser.add_argument
    add("--column", metavar="NAME", default=column, help="the column of the texts in a table, or "
        f"their key in JSON lines; default: {column}")  # fmt: skip
    add("--input-format", choices=TEXT_FORMATS, help="the format of FILE; default: by its name "
        "(.txt, .csv, .tsv, .jsonl, .ndjson, .parquet), else txt")  # fmt: skip
    add("--jsonl", action="store_true", help="FILE is JSON lines, whatever its name")
    add("--delimiter", metavar="CHAR", help="the character between the cells of a CSV or TSV FILE: "
        "one character, or tab; default: comma, semicolon or tab, whichever the first line "
        "has")  # fmt: skip


def input_format(options: argparse.Namespace) -> str | None:
    """Return the format that --jsonl or --input-format names. Raises OptionError if they differ."""
    if options.jsonl and options.input_format not in (None, "jsonl"):
        raise OptionError(f"--jsonl contradicts --input-format {options.input_format}")
    return "jsonl" if options.jsonl else options.input_format


def open_input_texts(
    options: argparse.Namespace, file: str, *, lines: bool = False
) -> AbstractContextManager[Texts]:
    """Open the texts of a file; `lines` reads plain text line by line.

    The option --lines, if the command has it, reads CSV and TSV as plain text too. Raises
    OptionError, TableError or OSError.
    """
    format = input_format(options)
    if getattr(options, "lines", False):
        if format in ("csv", "tsv", "parquet"):
            raise OptionError(f"--lines is for plain text; the rows of {format} are texts anyway")
        if format is None and format_of_suffix(file) in ("csv", "tsv"):
            format = "txt"
    return open_texts(
        file,
        column=options.column,
        format=format,
        lines=lines,
        delimiter=options.delimiter,
    )


def check_input_files(files: list[str]) -> None:
    """Raise OSError or OptionError for a file that cannot be read, before a long run begins."""
    if files.count("-") > 1:
        raise OptionError("standard input, -, is given more than once")
    for file in files:
        # A named pipe must be opened once: its writer ends when the first reader closes it.
        if file != "-" and not (os.path.exists(file) and stat.S_ISFIFO(os.stat(file).st_mode)):
            open(file_name("path", file), "rb").close()


def add_output_options(parser: argparse.ArgumentParser, printed: str = "jsonl") -> None:
    """Add --output, --format, --decimal, --missing and --metadata.

    `printed` says, for the help, what goes to standard output without --format.
    """
    add = parser.add_argument
    add("--output", metavar="FILE", default="-", help="write the results to a file, which appears "
        "when it is complete; default: standard output")  # fmt: skip
    add("--format", choices=TABLE_FORMATS, help="the format of the results; default: by the name "
        f"of the output (.csv, .tsv, .jsonl, .ndjson, .parquet), else {printed}")  # fmt: skip
    add("--decimal", choices=(".", ","), default=".", metavar="CHAR", help="the decimal separator "
        "of CSV and TSV: . (default) or , which Excel in many languages and R's read.csv2 "
        "expect")  # fmt: skip
    add("--missing", metavar="TEXT", default="", help="what CSV and TSV have for a number that is "
        "undefined or infinite, for example NA for R; default: nothing")  # fmt: skip
    add("--metadata", action="store_true", help="begin CSV and TSV with lines \"# key: value\" "
        "about the model, and JSON lines with such an object; Parquet has this in its "
        "metadata")  # fmt: skip


def output_format(options: argparse.Namespace) -> str:
    """Return the format of the results. Raises OptionError if nothing names it."""
    if options.output == "-":
        return options.format or "jsonl"
    return table_format(options.output, options.format, "--format")


def writes_metadata(options: argparse.Namespace) -> bool:
    """Return whether the table of results has metadata. Raises what output_format raises."""
    return options.metadata or output_format(options) == "parquet"


def model_metadata(model: gpt2c.GPT2, options: argparse.Namespace) -> Metadata:
    """Return what a table of results says about the model: its name, dtype and arithmetic.

    The hash of the weights, which takes time to compute, is there only if it will be written.
    """
    return {
        **({"model_sha256": model.fingerprint} if writes_metadata(options) else {}),
        "gpt2c": gpt2c.__version__,
        "arithmetic": gpt2c.ARITHMETIC,
        "model": options.model or "tales",
        **({"adapters": _adapters(model)} if model.adapters else {}),
        "dtype": model.dtype,
        "backend": model.backend,
    }


def _adapters(model: gpt2c.GPT2) -> str:
    """Return the model's adapters as --adapter takes them, separated by commas."""
    return ", ".join(f"{path}={weight:g}" for path, weight in model.adapters)


def names_output(options: argparse.Namespace) -> bool:
    """Return whether --output or --format is given."""
    return options.output != "-" or options.format is not None


def open_output(
    options: argparse.Namespace,
    columns: Columns,
    *,
    like: Layout | None = None,
    metadata: Metadata | None = None,
    keeps_rows: bool = False,
) -> AbstractContextManager[TableWriter]:
    """Open the output for writing; the other arguments are those of create_table.

    If each row of the input stays a row, with columns added (`keeps_rows`), the output may be the
    input. Raises what create_table raises, and OptionError if the input would be lost.
    """
    if not keeps_rows:
        _check_output_is_no_input(options)
    return create_table(
        options.output,
        columns,
        format=output_format(options),
        like=like,
        decimal=options.decimal,
        missing=options.missing,
        metadata=metadata,
        metadata_lines=options.metadata,
    )


def _check_output_is_no_input(options: argparse.Namespace) -> None:
    files = getattr(options, "files", None) or [options.file]
    if options.output == "-" or not os.path.exists(options.output):
        return
    for file in files:
        if file not in (None, "-") and os.path.samefile(file, options.output):
            raise OptionError(
                f"--output {options.output} is the input, and the results would take the place of "
                "its rows; name another file"
            )


def with_results(
    items: Iterable[_Read],
    text_of: Callable[[_Read], TextOrIds],
    measure: Callable[[Iterator[TextOrIds]], Iterable[_Result]],
) -> Iterator[tuple[_Read, _Result]]:
    """Yield each item that was read with the result of its text, lazily.

    `measure` takes an iterator of texts and yields a result for each, in their order. It may read
    several texts before it yields.
    """
    waiting: deque[_Read] = deque()  # items that were read, but whose results are not yet known

    def texts() -> Iterator[TextOrIds]:
        for item in items:
            text = text_of(item)
            waiting.append(item)
            yield text

    for result in measure(texts()):
        yield waiting.popleft(), result


def with_progress(
    results: Iterable[_Result], extent: Extent, options: argparse.Namespace
) -> Iterator[_Result]:
    """Yield the results, and show in a bar how much of the input was read.

    The bar needs tqdm and is on standard error. There is none if standard error is no terminal, or
    if the results go to a terminal.
    """
    to_terminal = options.output == "-" and sys.stdout is not None and sys.stdout.isatty()
    if to_terminal or not shows_progress():
        return iter(results)
    return with_input_bar(results, extent.read, extent.total, extent.unit)
