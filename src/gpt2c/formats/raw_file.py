"""Files that tensors lie in, read by pread.

They are never mapped, so that one cut short while it is read is an error and not a SIGBUS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import open_regular
from gpt2c.errors import CheckpointError, ClosedError
from gpt2c.formats.tensors import STORED_TYPES, check_rows, widen_into

_CHUNK = 2**20  # bytes read at a time: it stays in the cache until it is widened


class RawFile:
    """An open file.

    Reads keep no state, so threads may share it; not to be closed while one reads.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointNotFoundError where there is none, else CheckpointError."""
        self.path = path
        self._file = open_regular(path, CheckpointError)
        status = os.fstat(self._file.fileno())
        self.size = status.st_size
        self._state = (status.st_size, status.st_mtime_ns)

    def pread(self, length: int, offset: int, what: str) -> bytearray:
        """Exactly `length` bytes. Raises CheckpointError when the file ends before them."""
        raw = bytearray(length)
        self.pread_into(memoryview(raw), offset, what)
        return raw

    def pread_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fills a buffer of bytes. Raises CheckpointError when the file ends before it is full."""
        if self._file.closed:
            raise ClosedError(f"{self.path}: was closed, so {what} cannot be read")
        while buffer:
            try:
                count = os.preadv(self._file.fileno(), [buffer], offset)
            except OSError as reason:
                raise CheckpointError(
                    f"{self.path}: {what} cannot be read: {reason.strerror}"
                ) from reason
            if not count:
                raise CheckpointError(
                    f"{self.path}: {what}: found the end of the file at byte {offset}, expected "
                    f"{len(buffer)} bytes more; the file was cut while it was read"
                )
            buffer = buffer[count:]
            offset += count

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def verify_unchanged(self) -> None:
        """Raises CheckpointError if size or time of change are not those at opening."""
        if self._file.closed:
            raise ClosedError(f"{self.path}: was closed")
        status = os.fstat(self._file.fileno())
        state = (status.st_size, status.st_mtime_ns)
        if state != self._state:
            raise CheckpointError(
                f"{self.path}: was changed while it was read: found size and time {state}, "
                f"expected {self._state}"
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


@dataclass(frozen=True)
class RawTensor:
    """A TensorSource over a part of a file, little-endian and in C order."""

    file: RawFile
    name: str
    shape: tuple[int, ...]
    dtype: str  # what is no float can be named here, not read
    begin: int  # in the file

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        result = np.empty((end - begin, *self.shape[1:]), dtype=np.float32)
        items = result.reshape(-1)
        stored, what = STORED_TYPES[self.dtype], f"tensor {self.name!r}"
        offset = self.begin + begin * (items.size // max(end - begin, 1)) * stored.itemsize
        if stored == items.dtype:
            self.file.pread_into(items.view(np.uint8).data, offset, what)
            return result
        step = _CHUNK // stored.itemsize
        for first in range(0, items.size, step):
            count = min(step, items.size - first)
            raw = self.file.pread(count * stored.itemsize, offset + first * stored.itemsize, what)
            widen_into(items[first : first + count], raw, self.dtype)
        return result
