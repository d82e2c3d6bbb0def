"""Read and write files that gzip or zstd has compressed; the suffix .gz or .zst says which.

A small file can expand to any size. Reading therefore stops where a file expands more than texts
do, and holds only a few pieces in memory.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, cast

from gpt2c.errors import MissingDependencyError, TableError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SUFFIXES: Final = MappingProxyType({".gz": "gzip", ".gzip": "gzip", ".zst": "zstd"})

# How many times larger than its compressed form a text may be. gzip reaches 1032, zstd 32,768;
# repetitive logs reach some 50.
MAX_EXPANSION: Final = 200
FREE_BYTES: Final = 1 << 26  # that a file may have in any case

_BUFFER_BYTES: Final = 1 << 18
# Compressed bytes of zstd that are expanded together: at most to 32 MiB.
_ZSTD_BYTES: Final = 1024
# Memory that a zstd file may ask for: what `zstd` itself allows without an option.
_ZSTD_WINDOW: Final = 1 << 27


def compression_of(path: str) -> str | None:
    """Return "gzip" or "zstd" if the suffix of a file name says so, or None."""
    return _SUFFIXES.get(os.path.splitext(path)[1].lower())


def without_suffix(path: str) -> str:
    """Return a file name without the suffix of its compression, if it has one."""
    return os.path.splitext(path)[0] if compression_of(path) else path


def expanded(file: BinaryIO, compression: str, name: str, max_expansion: int) -> BinaryIO:
    """Return a file to read the expanded bytes of `file` from; `name` is its name for messages.

    Reading raises TableError if the file is damaged, ends early or expands over `max_expansion`
    times, once it has more than 64 MiB.

    Raises MissingDependencyError if zstd needs the package zstandard.
    """
    inner: _Inner = gzip.GzipFile(fileobj=file) if compression == "gzip" else _Zstd(file)
    reader = _Expanded(inner, file, f"{name}: {compression}", max_expansion)
    return cast(BinaryIO, io.BufferedReader(reader, _BUFFER_BYTES))


@contextmanager
def compressing(file: BinaryIO, compression: str | None) -> Iterator[BinaryIO]:
    """Provide a file whose bytes are compressed into `file`; without a compression, `file` itself.

    Equal bytes give equal files: no time and no name is in them. Raises MissingDependencyError.
    """
    if compression is None:
        yield file
        return
    if compression == "gzip":
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as writer:
            yield cast(BinaryIO, writer)
        return
    with _zstandard().ZstdCompressor(level=3).stream_writer(file, closefd=False) as writer:
        yield writer


class _Inner(Protocol):
    """Yields expanded bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none at the end."""


class _Expanded(io.RawIOBase):
    """Counts the bytes of an inner reader, and gives its errors the file's name."""

    def __init__(self, inner: _Inner, file: BinaryIO, name: str, max_expansion: int) -> None:
        self._inner, self._file, self._name = inner, file, name
        self._max_expansion, self._n_bytes = max_expansion, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            piece = self._inner.read(len(view))
        except EOFError:
            raise TableError(
                f"{self._name} data end before their end; is the file whole?"
            ) from None
        except (OSError, zlib.error, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            raise TableError(f"{self._name} data are damaged: {error}") from None
        self._n_bytes += len(piece)
        if self._n_bytes > FREE_BYTES:
            limit = self._max_expansion * self._file.tell()
            if self._n_bytes > limit:
                raise TableError(
                    f"{self._name} data expand more than {self._max_expansion} times, which texts "
                    "do not; if the file is right, expand it first or raise the limit"
                )
        view[: len(piece)] = piece
        return len(piece)


class _Zstd:
    """Reads zstd frames. (The package's own stream reader takes a file that is cut for whole.)"""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._zstd = file, _zstandard()
        self._frame: Any = None
        self._compressed, self._piece, self._offset = b"", b"", 0

    def read(self, size: int, /) -> bytes:
        while self._offset == len(self._piece):
            if not self._compressed:
                self._compressed = self._file.read(_ZSTD_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError
                return b""
            if self._frame is None:
                decompressor = self._zstd.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
                self._frame = decompressor.decompressobj()
            try:
                self._piece, self._offset = self._frame.decompress(self._compressed), 0
            except self._zstd.ZstdError as error:
                raise ValueError(str(error)) from None
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        begin = self._offset
        self._offset = min(begin + size, len(self._piece))
        return self._piece[begin : self._offset]


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingDependencyError(
            "zstd needs the package zstandard: pip install 'gpt2c[zstd]', or use gzip"
        ) from None
    return zstandard
