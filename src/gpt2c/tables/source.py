"""Open an input, and read its lines: UTF-8 text of any size, one line in memory at a time.

Every text is read as ``open(path, encoding="utf-8-sig")`` reads it: as UTF-8, without a byte order
mark at the beginning. The same bytes therefore give the same texts on every system, from a file or
a pipe.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, NoReturn

from gpt2c.errors import OptionError, TableError
from gpt2c.tables.compressed import MAX_EXPANSION, compression_of, expanded
from gpt2c.tables.places import open_bytes, size_of
from gpt2c.tables.table import Extent, RowError

# The longest line, and the longest row of a CSV table. A longer one is an error, so that a file
# without line ends cannot fill the memory.
MAX_LINE_BYTES: Final = 1 << 26

# The longest text that is a whole file. A device or a pipe may have no end.
MAX_TEXT_BYTES: Final = 1 << 30

BYTE_ORDER_MARK: Final = "\ufeff"
_ADVICE: Final = "save it as UTF-8 (in Excel: CSV UTF-8)"
# What a file that is not UTF-8 seems to be by its first bytes, and what to do.
_OTHER_FILES: Final = (
    (b"\xff\xfe", "UTF-16", _ADVICE),
    (b"\xfe\xff", "UTF-16", _ADVICE),
    (b"PK\3\4", "a workbook or another zip file", "save its table as CSV UTF-8"),
    (b"PAR1", "Parquet", "name it .parquet, or name the format"),
    (b"\x1f\x8b", "compressed by gzip", "decompress it, or let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it, or let its name end in .zst"),
)
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Limits:
    """What an input may ask for before reading it is an error.

    line_bytes
        The longest line, and the longest row of CSV, in bytes.
    expansion
        How many times larger than its compressed form a file may be (`tables/compressed.py`).
    """

    line_bytes: int = field(default_factory=lambda: MAX_LINE_BYTES)
    expansion: int = MAX_EXPANSION


class Source:
    """An open file of text, and how much of it was read.

    n_bytes
        The file's size in bytes, compressed if it is; None if it is unknown, as for a pipe.
    n_read
        The number of bytes that were read, after expanding them.
    begins_with_mark
        Whether the file begins with a byte order mark; known after the first line was read.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        limits: Limits | None = None,
        *,
        n_bytes: int | None = None,
        position: Callable[[], int] | None = None,
    ) -> None:
        """`name` is the input's name for messages.

        `position` returns how many of `n_bytes` were read, if that is not n_read.
        """
        self.file, self.name, self.limits = file, name, limits or Limits()
        self.n_bytes = size_of(file) if n_bytes is None else n_bytes
        self._position = position
        self.n_read = self.n_lines = 0
        self.begins_with_mark = False

    def extent(self) -> Extent:
        """Return how much of the source was read."""
        return Extent(self._position or (lambda: self.n_read), self.n_bytes)

    def read_text(self) -> str:
        """Read all of the file as one text, with LF in place of CRLF and CR.

        Raises TableError if it is not UTF-8, or has over MAX_TEXT_BYTES.
        """
        raw = self.file.read(MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            raise TableError(
                f"{self.name}: found a text of more than {MAX_TEXT_BYTES >> 20} MiB, expected at "
                "most that; divide it"
            )
        text = with_plain_line_ends(self.decoded(raw))
        self.n_read += len(raw)
        return text

    def lines(self) -> Iterator[str]:
        """Return an iterator over the lines with their ends: CRLF, CR and LF all end a line.

        Raises RowError for a line that is not UTF-8 or too long; the next call of next() returns
        the line after it. Raises TableError if a compressed file is damaged.
        """
        return _Lines(self)

    def raise_too_long(self, line: int, what: str) -> NoReturn:
        """Raise RowError for a line, or a row that begins there, that is longer than the limit."""
        place = f"{self.name}, line {line}"
        raise RowError(
            f"{place}: found a {what} of more than {_in_mebibytes(self.limits.line_bytes)}, "
            f"expected at most that; is this a file of text? Divide a longer {what}",
            place,
        )

    def decoded(self, raw: bytes) -> str:
        """Decode what was read after the first n_read bytes. Raises RowError."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._raise_not_utf8(raw, error.start)
        if self.n_read == 0 and text.startswith(BYTE_ORDER_MARK):
            self.begins_with_mark = True
            return text[1:]
        return text

    def _raise_not_utf8(self, raw: bytes, start: int) -> NoReturn:
        number = self.n_lines + with_plain_line_ends(raw[:start].decode()).count("\n") + 1
        hint = _ADVICE
        for first_bytes, kind, advice in _OTHER_FILES:
            if self.n_read == 0 and raw.startswith(first_bytes):
                hint = f"it seems to be {kind}; {advice}"
        place = f"{self.name}, line {number}"
        raise RowError(
            f"{place} is not UTF-8 at byte {self.n_read + start} of the input: "
            f"found 0x{raw[start]:02x}; {hint}",
            place,
        ) from None


class _Lines(Iterator[str]):
    """The lines of a source. It is no generator, because that would end at the first error."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._waiting: Iterator[str] = iter(())  # lazy: 64 MiB may be as many lines
        self._is_inside_line = False  # of one that is too long

    def __next__(self) -> str:
        line = next(self._waiting, None)
        while line is None:
            self._waiting = self._read()
            line = next(self._waiting, None)
        self._source.n_lines += 1
        return line

    def _read(self) -> Iterator[str]:
        source, limit = self._source, self._source.limits.line_bytes
        while self._is_inside_line:
            raw = source.file.readline(limit)
            source.n_read += len(raw)
            self._is_inside_line = bool(raw) and not raw.endswith(b"\n")
        raw = source.file.readline(limit + 1)
        if not raw:
            raise StopIteration
        if len(raw) > limit:
            source.n_read += len(raw)
            source.n_lines += 1
            self._is_inside_line = not raw.endswith(b"\n")
            source.raise_too_long(source.n_lines, "line")
        try:
            text = source.decoded(raw)
        except RowError:
            source.n_lines += 1
            raise
        finally:
            source.n_read += len(raw)
        if "\r" not in text:
            return iter((text,) if text else ())  # none: a byte order mark alone
        # A lone CR ends a line too, as in files of the classic Mac OS.
        return (match.group() for match in _LINE.finditer(text))


@contextmanager
def open_source(path: str, limits: Limits | None = None) -> Iterator[Source]:
    """Open a file or a URL for reading; "-" is standard input, which stays open afterwards.

    A file whose name ends in .gz or .zst is expanded. Raises OSError, OptionError if standard input
    is closed, and MissingDependencyError if zstd or a URL needs a package.
    """
    if path != "-":
        limits = limits or Limits()
        with open_bytes(path) as (file, size):
            compression = compression_of(path)
            if compression is None:
                yield Source(file, path, limits, n_bytes=size)
            else:
                with expanded(file, compression, path, limits.expansion) as whole:
                    yield Source(whole, path, limits, n_bytes=size, position=file.tell)
        return
    if sys.stdin is None:
        raise OptionError("standard input is closed; give the name of a file")
    yield Source(sys.stdin.buffer, input_name(path), limits)


def input_name(path: str) -> str:
    """Return the input's name for messages."""
    return "standard input" if path == "-" else path


def with_plain_line_ends(text: str) -> str:
    """Return a text with LF in place of CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _in_mebibytes(n_bytes: int) -> str:
    return f"{n_bytes} bytes" if n_bytes % (1 << 20) else f"{n_bytes >> 20} MiB"
