"""Files of tensors, read at given offsets.

The files are never memory-mapped: if another program truncates a file while it is read, reading
fails with an error, but access to a memory map raises SIGBUS.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import open_regular, show
from gpt2c.errors import CheckpointError, ClosedError
from gpt2c.files import read_at
from gpt2c.formats.tensors import STORED_TYPES, check_rows, widen_into

MAX_NUMBER: Final = 2**53  # the max size or offset that a file may state
_CHUNK: Final = 2**20  # bytes read at a time, few enough to stay in the CPU's cache until widened


class _Closable(Protocol):
    def close(self) -> None: ...


@contextmanager
def closed_on_error(file: _Closable) -> Iterator[None]:
    """Close the file if the block raises; leave it open otherwise."""
    try:
        yield
    except BaseException:
        file.close()
        raise


def bounded_product(numbers: Iterable[int]) -> int | None:
    """Return the product, or None if a partial product exceeds MAX_NUMBER.

    It is None even if a later number is 0: other readers of the formats also reject such a shape.
    """
    product = 1
    for number in numbers:
        product *= number
        if product > MAX_NUMBER:
            return None
    return product


class RawFile:
    """An open file that is read at given offsets.

    Threads may share the file: no read depends on a file position. Do not close the file during a
    read.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises CheckpointNotFoundError if there is no such file, CheckpointError if it cannot be
        opened or is not a regular file.
        """
        self.path = path
        self._file = open_regular(path, CheckpointError)
        status = os.fstat(self._file.fileno())
        self.size = status.st_size
        self._size_and_mtime = (status.st_size, status.st_mtime_ns)

    def pread(self, length: int, offset: int, what: str) -> bytearray:
        """Return exactly `length` bytes from `offset`; `what` names the bytes in messages.

        Raises CheckpointError if the file ends too early or cannot be read, ClosedError after
        close.
        """
        raw = bytearray(length)
        self.pread_into(memoryview(raw), offset, what)
        return raw

    def pread_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fill a buffer with the bytes from `offset`; raises the errors of :meth:`pread`."""
        if self._file.closed:
            raise ClosedError(f"{self.path}: was closed, so {what} cannot be read")
        while buffer:
            try:
                count = read_at(self._file.fileno(), buffer, offset)
            except OSError as reason:
                raise CheckpointError(
                    f"{self.path}: {what} cannot be read: {reason.strerror}"
                ) from reason
            if not count:
                raise CheckpointError(
                    f"{self.path}: {what}: found the end of the file at byte {offset}, expected "
                    f"{len(buffer)} bytes more; the file was truncated while it was read"
                )
            buffer = buffer[count:]
            offset += count

    def stream(self) -> io.BufferedReader:
        """Return a stream of the file's bytes, with a position of its own. Closing it does nothing.

        Its reads raise the errors of :meth:`pread`.
        """
        return io.BufferedReader(_Stream(self))

    def identity(self) -> tuple[int, int, int, int, int]:
        """Return what the system knows about the open file now; see BackingFile.identity.

        Raises ClosedError after close.
        """
        if self._file.closed:
            raise ClosedError(f"{self.path}: was closed")
        s = os.fstat(self._file.fileno())
        return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns

    def verify_unchanged(self) -> None:
        """Raise CheckpointError if the size or modification time changed since the file was opened.

        Raises ClosedError after close.
        """
        if self._file.closed:
            raise ClosedError(f"{self.path}: was closed")
        status = os.fstat(self._file.fileno())
        size_and_mtime = (status.st_size, status.st_mtime_ns)
        if size_and_mtime != self._size_and_mtime:
            raise CheckpointError(
                f"{self.path}: was changed while it was read: found size and time "
                f"{size_and_mtime}, expected {self._size_and_mtime}"
            )

    def check_contiguous(
        self, tensors: Iterable[tuple[str, int, int]], begin: int, alignment: int = 1
    ) -> None:
        """Check that tensors follow each other from `begin` to the end of the file.

        `tensors` has each tensor's name, begin and end, sorted by begin. Padding of fewer than
        `alignment` bytes may precede a tensor or end the file. With overlaps, a small file could
        claim terabytes; in a gap, another file could hide.

        Raises CheckpointError for an overlap, a gap, and a file that is too short or too long.
        """
        end = begin
        for name, tensor_begin, tensor_end in tensors:
            what = f"{self.path}: tensor {show(name)}"
            if not end <= tensor_begin < end + alignment:
                problem = "overlaps the tensor before it" if tensor_begin < end else "leaves a gap"
                raise CheckpointError(
                    f"{what} {problem}: found the tensor at byte {tensor_begin}, expected {end}"
                )
            end = tensor_end
            if end > self.size:
                raise CheckpointError(
                    f"{what} ends at byte {end}, and the file at {self.size}: the file is cut short"
                )
        if self.size >= end + alignment:
            raise CheckpointError(
                f"{self.path}: found {self.size} bytes, expected {end}, where the last tensor ends"
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


class _Stream(io.RawIOBase):
    """The bytes of a RawFile as a stream."""

    def __init__(self, file: RawFile) -> None:
        self._file, self._offset = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:  # a bytearray or memoryview
        part = memoryview(buffer)[: max(self._file.size - self._offset, 0)]
        self._file.pread_into(part, self._offset, "the archive's directory")
        self._offset += len(part)
        return len(part)


@dataclass(frozen=True)
class RawTensor:
    """A TensorSource whose little-endian elements are a contiguous part of a file, in C order."""

    file: RawFile
    name: str
    shape: tuple[int, ...]
    dtype: str  # checked_tensors rejects dtypes outside STORED_TYPES before anything is read
    begin: int  # offset in the file, in bytes

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        rows = np.empty((end - begin, *self.shape[1:]), dtype=np.float32)
        elements = rows.reshape(-1)
        stored_type, what = STORED_TYPES[self.dtype], f"tensor {self.name!r}"
        n_bytes = stored_type.itemsize  # of an element
        offset = self.begin + begin * (elements.size // max(end - begin, 1)) * n_bytes
        if stored_type == elements.dtype:
            self.file.pread_into(elements.view(np.uint8).data, offset, what)
            return rows
        step = _CHUNK // n_bytes
        for first in range(0, elements.size, step):
            count = min(step, elements.size - first)
            raw = self.file.pread(count * n_bytes, offset + first * n_bytes, what)
            widen_into(elements[first : first + count], raw, self.dtype)
        return rows
