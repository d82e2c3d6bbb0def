"""The directory of an archive (``torch.save`` and ``numpy.savez`` both write zip files), checked.

zipfile parses it; nothing is ever extracted, and no entry's name is used as a path.
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

MAX_ENTRIES: Final = 20_000  # 1.5 B parameters have 600
MAX_DIRECTORY: Final = 2 << 20  # bytes; zipfile takes seconds for more
# Bytes that a deflated one may stand for. Deflate can make 1032 of it, and weights hardly two, but
# for zeros: small entries may be all of them.
MAX_INFLATION: Final = 100
_SMALL: Final = 1 << 20
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Entry:
    """Where an entry's bytes lie in the file."""

    name: str
    begin: int
    n_stored: int  # bytes in the file
    n_bytes: int  # those that they stand for
    is_deflated: bool


def read_directory(file: RawFile, *, may_be_deflated: bool = False) -> dict[str, Entry]:
    """The entries by name; each has its bytes to itself, inside the file.

    Raises CheckpointError where the archive is malformed, compressed otherwise than allowed,
    encrypted, or has a name twice.
    """
    _check_size(file)
    try:
        with os.fdopen(os.dup(file.fileno()), "rb") as duplicate:
            infos = zipfile.ZipFile(duplicate).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as reason:
        raise CheckpointError(f"{file.path}: is no readable archive: {reason}") from None
    if len(infos) > MAX_ENTRIES:
        raise CheckpointError(
            f"{file.path}: found {len(infos)} entries, expected at most {MAX_ENTRIES}"
        )
    entries: dict[str, Entry] = {}
    place = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        what = f"{file.path}: entry {show(info.filename)}"
        if info.filename in entries:
            raise CheckpointError(f"{what} is there twice")
        if info.header_offset > file.size:
            raise CheckpointError(f"{what} is behind the end of the file: it is cut short")
        # With entries over each other a small file could stand for a large one.
        if info.header_offset < place:
            raise CheckpointError(f"{what} overlaps the one before it")
        entry = _entry(file, info, may_be_deflated)
        place = entry.begin + entry.n_stored
        if place > file.size:
            raise CheckpointError(
                f"{what} ends at byte {place}, and the file at {file.size}: it is cut short"
            )
        entries[entry.name] = entry
    return entries


def inflated(file: RawFile, entry: Entry, first: int | None = None) -> bytearray:
    """A deflated entry's bytes, just as many as the directory says; or the first of them."""
    what = f"entry {show(entry.name)}"
    n_bytes = entry.n_bytes if first is None else min(first, entry.n_bytes)
    result = bytearray()
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    place, end = entry.begin, entry.begin + entry.n_stored
    try:
        while place < end and not stream.eof and len(result) <= n_bytes:
            raw = file.pread(min(_CHUNK, end - place), place, what)
            place += len(raw)
            # One byte more than is wanted: should it come, there are too many.
            result += stream.decompress(raw, n_bytes + 1 - len(result))
    except zlib.error as reason:
        raise CheckpointError(f"{file.path}: {what} cannot be inflated: {reason}") from None
    if first is not None and len(result) > n_bytes:
        del result[n_bytes:]
    if len(result) != n_bytes or (first is None and not stream.eof):
        raise CheckpointError(
            f"{file.path}: {what} inflates to other than the {entry.n_bytes} bytes that the "
            "directory says"
        )
    return result


def _check_size(file: RawFile) -> None:
    """The directory is parsed as a whole, so its size is looked at before."""
    n = min(file.size, 1 << 17)
    tail = bytes(file.pread(n, file.size - n, "the archive's end"))
    # All that look like its end, wherever they stand: which one zipfile takes is not for us to say.
    sizes = [
        int.from_bytes(tail[match.end() + offset : match.end() + offset + width], "little")
        for mark, offset, width in ((b"PK\x05\x06", 8, 4), (b"PK\x06\x06", 36, 8))
        for match in re.finditer(re.escape(mark), tail)
    ]
    known = [size for size in sizes if size != 0xFFFFFFFF]  # which stands for the second's
    if known and max(known) > MAX_DIRECTORY:
        raise CheckpointError(
            f"{file.path}: found an archive's directory of {max(known)} bytes, expected at most "
            f"{MAX_DIRECTORY}"
        )


def _entry(file: RawFile, info: zipfile.ZipInfo, may_be_deflated: bool) -> Entry:
    what = f"{file.path}: entry {show(info.filename)}"
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    is_stored = info.compress_type == zipfile.ZIP_STORED
    if info.flag_bits & 1 or not (is_stored or (is_deflated and may_be_deflated)):
        raise CheckpointError(f"{what} is compressed or encrypted, expected it stored")
    most = max(info.compress_size * MAX_INFLATION, _SMALL) if is_deflated else info.compress_size
    if info.file_size > most or (is_stored and info.file_size != most):
        raise CheckpointError(
            f"{what} has {info.compress_size} bytes that stand for {info.file_size}, expected "
            f"{'at most ' if is_deflated else ''}{most}"
        )
    begin = _data(file, info)
    return Entry(info.filename, begin, info.compress_size, info.file_size, is_deflated)


def _data(file: RawFile, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its local header, which has a size of its own."""
    header = file.pread(30, info.header_offset, f"entry {show(info.filename)}")
    if header[:4] != signatures.ZIP:
        raise CheckpointError(f"{file.path}: entry {show(info.filename)} has no local header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths
