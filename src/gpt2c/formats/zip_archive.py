"""A reader of ZIP archives: it checks the directory and inflates entries.

``torch.save`` and ``numpy.savez`` both write ZIP archives. Python's zipfile parses the directory;
nothing is ever extracted to disk, and no entry's name is used as a path.
"""

from __future__ import annotations

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
# A deflated entry may expand to this many times its stored size, and always to _MIN_LIMIT bytes.
# Deflate can reach 1032 times, but weights barely reach twice unless they are zeros.
MAX_INFLATION: Final = 100
_MIN_LIMIT: Final = 1 << 20
_CHUNK: Final = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Entry:
    """An entry of an archive: where its data are in the file, and their sizes."""

    name: str
    begin: int  # offset of the data in the file
    n_stored: int  # bytes in the file
    n_bytes: int  # bytes after inflating
    is_deflated: bool


def read_directory(file: RawFile, *, may_be_deflated: bool = False) -> dict[str, Entry]:
    """Return the entries by name, after checking that all lie in the file and do not overlap.

    Raises CheckpointError if the archive is malformed or encrypted, has a name twice, or is
    compressed (except with deflate if `may_be_deflated`).
    """
    _check_directory_size(file)
    try:
        infos = zipfile.ZipFile(file.stream()).infolist()
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


def inflated(file: RawFile, entry: Entry, n_first: int | None = None) -> bytearray:
    """Return the inflated bytes of a deflated entry, or only the first `n_first` of them.

    Raises CheckpointError if the data are invalid or their size differs from the directory's.
    """
    what = f"entry {show(entry.name)}"
    n_bytes = entry.n_bytes if n_first is None else min(n_first, entry.n_bytes)
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
    if n_first is not None and len(result) > n_bytes:
        del result[n_bytes:]
    if len(result) != n_bytes or (n_first is None and not stream.eof):
        raise CheckpointError(
            f"{file.path}: {what} does not inflate to the {entry.n_bytes} bytes that the "
            "directory states"
        )
    return result


def _check_directory_size(file: RawFile) -> None:
    """Raise CheckpointError for a directory that is too large, before zipfile parses all of it."""
    n = min(file.size, 1 << 17)
    tail = bytes(file.pread(n, file.size - n, "the archive's end"))
    # Check everything that looks like an end record, because zipfile may choose any of these.
    sizes = [
        int.from_bytes(tail[match.end() + offset : match.end() + offset + width], "little")
        for magic, offset, width in ((b"PK\x05\x06", 8, 4), (b"PK\x06\x06", 36, 8))
        for match in re.finditer(re.escape(magic), tail)
    ]
    # The size 0xFFFFFFFF stands for the size in the ZIP64 record.
    size = max((size for size in sizes if size != 0xFFFFFFFF), default=0)
    if size > MAX_DIRECTORY:
        raise CheckpointError(
            f"{file.path}: found an archive's directory of {size} bytes, expected at most "
            f"{MAX_DIRECTORY}"
        )


def _checked_entry(file: RawFile, info: zipfile.ZipInfo, may_be_deflated: bool) -> Entry:
    what = f"{file.path}: entry {show(info.filename)}"
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    is_stored = info.compress_type == zipfile.ZIP_STORED
    if info.flag_bits & 1 or not (is_stored or (is_deflated and may_be_deflated)):
        raise CheckpointError(f"{what} is compressed or encrypted, expected a plain entry")
    limit = info.compress_size
    if is_deflated:
        limit = max(limit * MAX_INFLATION, _MIN_LIMIT)
    if info.file_size > limit or (is_stored and info.file_size != limit):
        raise CheckpointError(
            f"{what} has {info.compress_size} bytes that expand to {info.file_size}, expected "
            f"{'at most ' if is_deflated else ''}{limit}"
        )
    begin = _data_offset(file, info)
    return Entry(info.filename, begin, info.compress_size, info.file_size, is_deflated)


def _data_offset(file: RawFile, info: zipfile.ZipInfo) -> int:
    """Return the offset of an entry's data, which follow its local header of variable length."""
    header = file.pread(30, info.header_offset, f"entry {show(info.filename)}")
    if header[:4] != signatures.ZIP:
        raise CheckpointError(f"{file.path}: entry {show(info.filename)} has no local header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths
