"""The key of shared weights: processes with the same key need the same packed bytes.

The key does not depend on the files' content, which would take as long to read as loading does. It
names the files by their inodes, sizes and times. A file's change time (ctime) is set by the system
at every change, and a program cannot set it, so a file that was changed has another key.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import gpt2c._version as version
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.sharing.errors import SharingError

_LAYOUT: Final = 1  # of the shared file; raised if its header or the order of the weights changes
_PACKAGE: Final = Path(version.__file__).parent
# The endings of the files that decide how weights are read and packed.
_CODE: Final = (".py", ".so", ".pyd")
_SECOND: Final = 10**9  # in nanoseconds
# Files whose times are this much in the past, in nanoseconds, get another ctime at their next
# change. Linux's file systems count in ticks of at most 10 ms; some others count in seconds.
_TICK: Final = _SECOND // 10
_LONG_TICK: Final = 2 * _SECOND


def key_of(checkpoint: Checkpoint, dtype: str) -> str:
    """Return the key of a checkpoint's weights for a dtype, 64 hexadecimal digits.

    Raises SharingError if the checkpoint is in memory or gpt2c was changed while this process runs,
    and CheckpointError if a file was changed since it was opened.
    """
    if not checkpoint.files:
        raise SharingError("they come from arrays, not from files")
    checkpoint.verify_unchanged()
    tensors = {name: [t.dtype, list(t.shape)] for name, t in checkpoint.tensors.items()}
    values = {
        "layout": _LAYOUT,
        "version": version.__version__,
        "arithmetic": version.ARITHMETIC,
        "code": _code_stamp(),
        "dtype": dtype,
        "stored_dtype": checkpoint.quantized_dtype,
        "config": asdict(checkpoint.config),
        "tensors": tensors,
        "adapters": [[a.weight, a.changes] for a in checkpoint.adapters],
        "files": [file.identity() for file in checkpoint.files],
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def wait_for_old_files(checkpoint: Checkpoint) -> None:
    """Wait until a change of the checkpoint's files would change their times, and so the key.

    Two changes in the same tick of a file system's clock leave the same time. Raises SharingError
    if a file's time is in the future.
    """
    for file in checkpoint.files:
        *_, changed_at = file.identity()
        tick = _TICK if changed_at % _SECOND else _LONG_TICK
        remaining = changed_at + tick - time.time_ns()
        if remaining > 2 * _LONG_TICK or changed_at <= 0:
            raise SharingError(f"{file.path} has a change time that is wrong or in the future")
        if remaining > 0:
            time.sleep(remaining / _SECOND)


def _code_stamp() -> str:
    """Return a hash of the identities of gpt2c's own files.

    Code in memory has no identity. But if no file was changed after this process imported gpt2c,
    the files are those that it runs.
    """
    digest = hashlib.sha256()
    for path, status in _code_files(str(_PACKAGE)):
        if status.st_ctime_ns > version.IMPORTED_AT - _TICK:
            raise SharingError(
                f"{path} was changed after this process imported gpt2c, or just before"
            )
        identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{path} {identity}\n".encode())
    return digest.hexdigest()


def _code_files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the paths and the states of the files with code in a folder, in a fixed order."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            if entry.name != "__pycache__":
                yield from _code_files(entry.path)
        elif entry.name.endswith(_CODE):
            yield entry.path, entry.stat()
