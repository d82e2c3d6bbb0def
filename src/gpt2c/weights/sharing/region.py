"""Files of memory that hold packed weights: made once, sealed, and then only read.

A file begins with a magic number, the length and the SHA-256 of a header, and the header in JSON.
The weights follow, and then the weights packed for drafts, each part at a multiple of 4096 bytes
and in the order of gpt2c_model_move (csrc/gpt2c.h). The seals of Linux keep every process, also one
of the same user, from changing the file or cutting it short. So what was checked once stays true.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from gpt2c.checks.untrusted import parse_json
from gpt2c.engine.protocol import SharedEngineModel
from gpt2c.weights.sharing.errors import NEEDS_LINUX, SharingError
from gpt2c.weights.sharing.registry import OwnedFile, SharedFile, opened

_MAGIC: Final = b"gpt2c\0W1"
_PREFIX: Final = struct.Struct("<8sQ32s")  # the magic number, the header's length and its SHA-256
_UNIT: Final = 4096  # bytes; OS_FILE_UNIT of csrc/os/os.h
_MAX_HEADER: Final = 32 << 20  # bytes
_MFD_NOEXEC_SEAL: Final = 8  # Linux 6.3
_SIXTEEN_BITS: Final = ("float16", "bfloat16")


@dataclass(frozen=True)
class Region:
    """What the header of a file says, checked against the file's size."""

    n_bytes: int  # of the file
    dtypes: dict[str, str]  # of the matrices that a float32 model stores in 16 bits
    weights: tuple[int, int]  # (the first byte, the number of bytes)
    draft: tuple[int, int]


def make_region(model: SharedEngineModel, key: str, names: Collection[str]) -> SharedFile:
    """Move the weights of a loaded model to a new, sealed file. The model is closed.

    `names` are its tensors. Raises OSError or MemoryError if the system refuses a part of it.
    """
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    import fcntl

    n_bytes, n_draft_bytes = model.packed_sizes()
    stored = {name: model.stored_dtype(name) for name in names}
    dtypes = {name: dtype for name, dtype in stored.items() if dtype in _SIXTEEN_BITS}
    header, begin = b"", 0
    while begin < _PREFIX.size + len(header):  # the header says where it ends
        begin = _rounded(max(begin + 1, _PREFIX.size + len(header)))
        draft_begin = begin + _rounded(n_bytes)
        values = {
            "key": key,
            "dtypes": dtypes,
            "weights": [begin, n_bytes],
            "draft": [draft_begin, n_draft_bytes],
        }
        header = json.dumps(values).encode()
    size = draft_begin + _rounded(n_draft_bytes)
    written = OwnedFile("gpt2c", "r+b", opener=lambda name, _: _new_file(name))
    descriptor = written.fileno()
    os.fchmod(descriptor, 0o400)
    os.truncate(descriptor, size)
    prefix = _PREFIX.pack(_MAGIC, len(header), hashlib.sha256(header).digest())
    os.pwrite(descriptor, prefix + header, 0)
    model.move_to(written, size, begin, draft_begin)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())
    # Linux before 6.7 maps a sealed file only if it was opened for reading.
    file = opened(SharedFile, f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    written.close()
    return file


def read_region(file: SharedFile, key: str, names: Collection[str]) -> Region | None:
    """Return what a file's header says; None unless it is a sealed file of these weights."""
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    import fcntl

    try:
        if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _seals() != _seals():
            return None
        size = os.fstat(file.fileno()).st_size
        magic, length, digest = _PREFIX.unpack(os.pread(file.fileno(), _PREFIX.size, 0))
        if magic != _MAGIC or length > _MAX_HEADER:
            return None
        header = os.pread(file.fileno(), length, _PREFIX.size)
        if hashlib.sha256(header).digest() != digest:
            return None
        return _checked(parse_json(header), size, key, names)
    except (OSError, ValueError, struct.error):  # not a file of memory, or another content
        return None


def can_share() -> str | None:
    """Return None if this system can share weights, else why it cannot."""
    if sys.platform != "linux":
        return NEEDS_LINUX
    try:
        import fcntl
    except ImportError:
        return "this Python lacks the module fcntl"
    if not hasattr(os, "memfd_create") or not hasattr(fcntl, "F_ADD_SEALS"):
        return "this Python lacks os.memfd_create or fcntl.F_ADD_SEALS"
    return None if os.path.isdir("/proc/self/fd") else "this needs the file system /proc"


def attach(model: SharedEngineModel, file: SharedFile, region: Region) -> None:
    """Let a new model use the weights in the file.

    Raises SharingError if the file does not fit the model or cannot be mapped.
    """
    try:
        model.attach(file, region.n_bytes, region.dtypes, region.weights, region.draft)
    except (ValueError, MemoryError) as error:
        raise SharingError(str(error)) from None


def _checked(values: Any, size: int, key: str, names: Collection[str]) -> Region | None:
    if not isinstance(values, dict) or values.get("key") != key:
        return None
    dtypes = values.get("dtypes")
    if not isinstance(dtypes, dict) or not set(dtypes) <= set(names):
        return None
    if not all(dtype in _SIXTEEN_BITS for dtype in dtypes.values()):
        return None
    weights, draft = (_checked_part(values.get(name), size) for name in ("weights", "draft"))
    if size % _UNIT or weights is None or draft is None:
        return None
    return Region(size, dtypes, weights, draft)


def _checked_part(value: Any, size: int) -> tuple[int, int] | None:
    """Return (the first byte, the number of bytes) of a part that lies in the file, or None."""
    if not isinstance(value, list) or [type(number) for number in value] != [int, int]:
        return None
    begin, n_bytes = value
    is_inside = begin >= 0 and n_bytes >= 0 and begin + n_bytes <= size
    return (begin, n_bytes) if is_inside and begin % _UNIT == 0 else None


def _rounded(n_bytes: int) -> int:
    return -(-n_bytes // _UNIT) * _UNIT


def _seals() -> int:
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    import fcntl

    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _new_file(name: str) -> int:
    """Return the descriptor of a new file of memory that can be sealed and never executed."""
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:  # Linux before 6.3
        return os.memfd_create(name, flags)
