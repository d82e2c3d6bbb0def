"""Open an input, and read its lines: UTF-8 text of any size, one line in memory at a time.

Every text is read as ``open(path, encoding="utf-8-sig")`` reads it: as UTF-8, without a byte order
mark at the beginning. The same bytes therefore give the same texts on every system, from a file or
a pipe.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, NoReturn

from gpt2c.errors import OptionError, TableError
from gpt2c.tables.table import Extent

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
    (b"\x1f\x8b", "compressed by gzip", "decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it"),
)
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class Source:
    """An open file of text, and how much of it was read.

    n_bytes
        The file's size in bytes; None if it is unknown, as for a pipe.
    n_read
        The number of bytes that were read.
    begins_with_mark
        Whether the file begins with a byte order mark; known after the first line was read.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """`name` is the input's name for messages."""
        self.file, self.name = file, name
        self.n_bytes = _size_of(file)
        self.n_read = self.n_lines = 0
        self.begins_with_mark = False

    def extent(self) -> Extent:
        """Return how much of the source was read."""
        return Extent(lambda: self.n_read, self.n_bytes)

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
        text = with_plain_line_ends(self._decoded(raw))
        self.n_read += len(raw)
        return text

    def lines(self) -> Iterator[str]:
        """Yield each line with its end, lazily: CRLF, CR and LF all end a line.

        Raises TableError at a line that is not UTF-8 or too long, after yielding the lines before.
        """
        while raw := self.file.readline(MAX_LINE_BYTES + 1):
            if len(raw) > MAX_LINE_BYTES:
                self.raise_too_long(self.n_lines + 1, "line")
            text = self._decoded(raw)
            self.n_read += len(raw)
            # A lone CR ends a line too, as in files of the classic Mac OS.
            for match in _LINE.finditer(text):
                self.n_lines += 1
                yield match.group()

    def raise_too_long(self, line: int, what: str) -> NoReturn:
        """Raise TableError for a line, or a row that begins there, of over MAX_LINE_BYTES."""
        raise TableError(
            f"{self.name}, line {line}: found a {what} of more than {MAX_LINE_BYTES >> 20} MiB, "
            f"expected at most that; is this a file of text? Divide a longer {what}"
        )

    def _decoded(self, raw: bytes) -> str:
        """Decode what was read after the first n_read bytes. Raises TableError."""
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
        raise TableError(
            f"{self.name}, line {number} is not UTF-8 at byte {self.n_read + start} of the input: "
            f"found 0x{raw[start]:02x}; {hint}"
        ) from None


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Open a file for reading; "-" is standard input, which stays open afterwards.

    Raises OSError, and OptionError if standard input is closed.
    """
    if path != "-":
        with open(path, "rb") as file:
            yield Source(file, path)
        return
    if sys.stdin is None:
        raise OptionError("standard input is closed; give the name of a file")
    yield Source(sys.stdin.buffer, input_name(path))


def input_name(path: str) -> str:
    """Return the input's name for messages."""
    return "standard input" if path == "-" else path


def with_plain_line_ends(text: str) -> str:
    """Return a text with LF in place of CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _size_of(file: BinaryIO) -> int | None:
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):  # not a file of the system
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
