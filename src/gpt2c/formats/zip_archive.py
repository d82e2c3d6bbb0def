"""A reader of ZIP archives: it checks the directory and inflates entries.

``torch.save`` and ``numpy.savez`` both write ZIP archives. Python's zipfile parses the directory;
nothing is ever extracted to disk, and no entry's name is used as a path.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile

MAX_ENTRIES: Final = 20_000  # a model of 1.5 billion parameters has 600
MAX_DIRECTORY: Final = 2 << 20  # bytes; zipfile takes seconds for a larger directory
# A deflated entry may expand to this many times its stored size, or to _SMALL bytes, but no more.
# Deflate can reach 1032 times, but weights barely reach twice unless they are zeros.
MAX_INFLATION: Final = 100
_SMALL: Final = 1 << 20
_CHUNK: Final = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Entry:
    """An entry of an archive: the position and the number of its bytes in the file."""

    name: str
    begin: int  # offset in the file
    n_stored: int  # bytes in the file
    n_bytes: int  # bytes after inflating
    is_deflated: bool


def read_directory(file: RawFile, *, may_be_deflated: bool = False) -> dict[str, Entry]:
    """Return the entries by name; all entries lie in the file, without overlaps.

    Raises CheckpointError if the archive is malformed or encrypted, has a name twice, or is
    compressed (except by deflate if `may_be_deflated`).
    """
    _check_directory_size(file)
    try:
        with os.fdopen(os.dup(file.fileno()), "rb") as duplicate:
            infos = zipfile.ZipFile(duplicate).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as reason:
        raise CheckpointError(f"{file.path}: is not a readable archive: {reason}") from None
    if len(infos) > MAX_ENTRIES:
        raise CheckpointError(
            f"{file.path}: found {len(infos)} entries, expected at most {MAX_ENTRIES}"
        )
    entries: dict[str, Entry] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        what = f"{file.path}: entry {show(info.filename)}"
        if info.filename in entries:
            raise CheckpointError(f"{what} appears twice")
        if info.header_offset > file.size:
            raise CheckpointError(f"{what} begins after the end of the file: the file is cut short")
        # Overlapping entries would let a small file expand to a huge one.
        if info.header_offset < end:
            raise CheckpointError(f"{what} overlaps the entry before it")
        entry = _checked_entry(file, info, may_be_deflated)
        end = entry.begin + entry.n_stored
        if end > file.size:
            raise CheckpointError(
                f"{what} ends at byte {end}, and the file at {file.size}: the file is cut short"
            )
        entries[entry.name] = entry
    return entries


def inflated(file: RawFile, entry: Entry, first: int | None = None) -> bytearray:
    """Inflate a deflated entry, or only its `first` bytes.

    Raises CheckpointError if the data are invalid or their size differs from the directory's.
    """
    what = f"entry {show(entry.name)}"
    n_bytes = entry.n_bytes if first is None else min(first, entry.n_bytes)
    result = bytearray()
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    offset, end = entry.begin, entry.begin + entry.n_stored
    try:
        while offset < end and not stream.eof and len(result) <= n_bytes:
            raw = file.pread(min(_CHUNK, end - offset), offset, what)
            offset += len(raw)
            # Ask for one more byte, to detect data that are longer than the directory states.
            result += stream.decompress(raw, n_bytes + 1 - len(result))
    except zlib.error as reason:
        raise CheckpointError(f"{file.path}: {what} cannot be inflated: {reason}") from None
    if first is not None and len(result) > n_bytes:
        del result[n_bytes:]
    if len(result) != n_bytes or (first is None and not stream.eof):
        raise CheckpointError(
            f"{file.path}: {what} does not inflate to the {entry.n_bytes} bytes that the "
            "directory states"
        )
    return result


def _check_directory_size(file: RawFile) -> None:
    """Raise CheckpointError for a directory that is too large; zipfile would parse all of it."""
    n = min(file.size, 1 << 17)
    tail = bytes(file.pread(n, file.size - n, "the archive's end"))
    # Check everything that looks like an end record, because zipfile may choose any of these.
    sizes = [
        int.from_bytes(tail[match.end() + offset : match.end() + offset + width], "little")
        for magic, offset, width in ((b"PK\x05\x06", 8, 4), (b"PK\x06\x06", 36, 8))
        for match in re.finditer(re.escape(magic), tail)
    ]
    known = [size for size in sizes if size != 0xFFFFFFFF]  # a reference to the ZIP64 record
    if known and max(known) > MAX_DIRECTORY:
        raise CheckpointError(
            f"{file.path}: found an archive's directory of {max(known)} bytes, expected at most "
            f"{MAX_DIRECTORY}"
        )


def _checked_entry(file: RawFile, info: zipfile.ZipInfo, may_be_deflated: bool) -> Entry:
    what = f"{file.path}: entry {show(info.filename)}"
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    is_stored = info.compress_type == zipfile.ZIP_STORED
    if info.flag_bits & 1 or not (is_stored or (is_deflated and may_be_deflated)):
        raise CheckpointError(f"{what} is compressed or encrypted, expected a plain entry")
    most = max(info.compress_size * MAX_INFLATION, _SMALL) if is_deflated else info.compress_size
    if info.file_size > most or (is_stored and info.file_size != most):
        raise CheckpointError(
            f"{what} has {info.compress_size} bytes that expand to {info.file_size}, expected "
            f"{'at most ' if is_deflated else ''}{most}"
        )
    begin = _data_offset(file, info)
    return Entry(info.filename, begin, info.compress_size, info.file_size, is_deflated)


def _data_offset(file: RawFile, info: zipfile.ZipInfo) -> int:
    """Return the offset of an entry's data, which follow a local header of variable length."""
    header = file.pread(30, info.header_offset, f"entry {show(info.filename)}")
    if header[:4] != signatures.ZIP:
        raise CheckpointError(f"{file.path}: entry {show(info.filename)} has no local header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths
