"""The inputs of a job: their names, what identifies them, and their rows."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gpt2c.checks.names import file_name
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, TableError
from gpt2c.jobs.rows import JobRow
from gpt2c.tables import Columns
from gpt2c.tables.places import file_system, is_url, local_path, naming_url
from gpt2c.tables.rows import Rows, open_rows, skip_row
from gpt2c.tables.source import Limits
from gpt2c.tables.table import RowError

MAX_LINE_BYTES: Final = 1 << 24
MAX_ROWS: Final = 10**9
_CHUNK: Final = 1 << 22

# What identifies an input: its name, "bytes", "modified" and "sha256" (see `identify`).
Identity: TypeAlias = "dict[str, str | int | None]"


@dataclass(frozen=True)
class ReadingOptions:
    """How to read the inputs.

    column
        The column that a line of plain text, or a JSON line without columns, has.
    format, delimiter
        As of open_texts.
    limits
        The limits of lines and of compressed files.
    max_rows
        The max number of rows of all inputs together.
    """

    column: str = "text"
    format: str | None = None
    delimiter: str | None = None
    limits: Limits = field(default_factory=lambda: Limits(line_bytes=MAX_LINE_BYTES))
    max_rows: int = MAX_ROWS


def expand_names(names: Sequence[str]) -> list[str]:
    """Return the files that names and patterns such as "part-*.jsonl" stand for, in their order.

    The files of a pattern are sorted. Raises OptionError for a pattern without files, a file that
    is named twice, and an input that cannot be read again after a restart; OSError for a file that
    does not exist.
    """
    found: list[str] = []
    for name in names:
        found += _files_of(file_name("input", name))
    for name, count in Counter(found).items():
        if count > 1:
            raise OptionError(f"{name} is named twice as an input")
    return found


def _files_of(name: str) -> list[str]:
    if name == "-":
        raise OptionError(
            "a job cannot read standard input, because it could not read it again after a restart; "
            "name files"
        )
    has_wildcard = glob.has_magic(name)
    if is_url(name):
        if not has_wildcard:
            return [name]
        system, pattern = file_system(name)
        with naming_url(name):
            found = sorted(str(system.unstrip_protocol(path)) for path in system.glob(pattern))
    elif has_wildcard and not os.path.exists(local_path(name)):
        found = sorted(path for path in glob.glob(local_path(name), recursive=True)
                       if not os.path.isdir(path))  # fmt: skip
    else:
        found = [local_path(name)]
        mode = os.stat(found[0]).st_mode
        if stat.S_ISDIR(mode):
            raise OptionError(f"{name} is a folder; name its files, for example {name}/*.jsonl")
        if not stat.S_ISREG(mode):
            raise OptionError(
                f"{name} is a pipe or a device, which a job could not read again after a restart; "
                "write it to a file first"
            )
    if not found:
        raise OptionError(f"no file has a name like {name}")
    return found


def identify(name: str, known: Mapping[str, object] | None) -> Identity:
    """Return what identifies an input.

    For a file: its size, its time of modification, and the SHA-256 of its bytes. If size and time
    are those of `known`, what an earlier start of the job found, the hash is taken from there, and
    the file is not read. For a URL: its size, and what the server says identifies its content.

    Raises OSError.
    """
    if is_url(name):
        system, path = file_system(name)
        with naming_url(name):
            return {
                "name": name,
                "bytes": system.info(path).get("size"),
                "modified": str(system.ukey(path)),
                "sha256": None,
            }
    status = os.stat(name)
    size, modified = status.st_size, status.st_mtime_ns
    digest = None
    if known is not None and (known.get("bytes"), known.get("modified")) == (size, modified):
        digest = known.get("sha256")
    digest = sha256_of(name) if digest is None else str(digest)
    return {"name": name, "bytes": size, "modified": modified, "sha256": digest}


def check_unchanged(found: Identity) -> None:
    """Raise TableError if a file is no longer what `identify` found. A URL is not asked again."""
    name = str(found["name"])
    if is_url(name):
        return
    status = os.stat(name)
    if (status.st_size, status.st_mtime_ns) != (found["bytes"], found["modified"]):
        raise TableError(
            f"{name} was changed while the job read it; do the job again, in a new folder"
        )


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file's bytes. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class InputRows:
    """The rows of several inputs, read lazily, one after another.

    n_bytes
        The size of all inputs.
    n_rows
        How many rows were read or skipped.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        options: ReadingOptions,
        is_done: Callable[[int], bool] = lambda number: False,
    ) -> None:
        """`sizes` are the inputs' sizes in bytes; `is_done` says of a row's number to skip it."""
        self._names, self._sizes, self._options = names, sizes, options
        self._is_done, self.n_rows = is_done, 0
        self.n_bytes = sum(sizes)
        self._n_before = 0  # bytes of the inputs that were read to their end
        self._open: Rows | None = None
        self._size = 0

    def n_read(self) -> int:
        """Return how many bytes were read."""
        if self._open is None:
            return self._n_before
        extent = self._open.extent
        read = extent.read()
        if extent.unit != "B":  # rows of Parquet
            read = self._size * read // max(extent.total or 1, 1)
        return self._n_before + min(read, self._size)

    def __iter__(self) -> Iterator[JobRow]:
        """Yield the rows that are not done. A bad one has an error.

        Raises TableError where an input cannot be read further, and OSError.
        """
        for name, size in zip(self._names, self._sizes, strict=True):
            with open_input(name, self._options) as rows:
                self._open, self._size = rows, size
                yield from self._rows_of(rows)
            self._open, self._n_before = None, self._n_before + size

    def _rows_of(self, rows: Rows) -> Iterator[JobRow]:
        while True:
            number, is_done = self.n_rows, self._is_done(self.n_rows)
            row = None
            try:
                if is_done:
                    skip_row(rows.rows)
                else:
                    found = next(rows.rows)
                    row = JobRow(number, found.place, dict(found))
            except RowError as error:
                row = JobRow(number, error.place, {}, str(error))
            except StopIteration:
                return
            if number >= self._options.max_rows:
                raise TableError(
                    f"{rows.name}: the inputs have more than {self._options.max_rows} rows; raise "
                    "the limit if that is right"
                )
            self.n_rows += 1
            if row is not None and not is_done:
                yield row


def open_input(name: str, options: ReadingOptions) -> AbstractContextManager[Rows]:
    """Open an input by rows. Raises what open_rows raises."""
    return open_rows(
        name, column=options.column, format=options.format, delimiter=options.delimiter,
        limits=options.limits,
    )  # fmt: skip


def check_columns(types: Columns | None, needed: Sequence[str], name: str) -> None:
    """Raise TableError if a table lacks a column that the job reads."""
    for column in needed:
        if types is not None and column not in types:
            raise TableError(
                f"{name}: found no column {show(column)}; the columns are "
                f"{', '.join(map(show, types))}"
            )
