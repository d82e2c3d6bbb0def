"""What differs between systems when files are read, named and replaced: Windows lacks some of it.

Other modules use these functions instead of the system's calls, and work everywhere.
"""

from __future__ import annotations

import errno
import importlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PureWindowsPath
from threading import Lock
from typing import BinaryIO, Final

from gpt2c.forks import ProcessLock

IS_WINDOWS: Final = os.name == "nt"
# The numbers of errors that say that a disk, or a user's part of it, is full.
FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})

# Windows refuses longer paths unless they begin with \\?\ (or the machine and the program opt in).
# Folders have the lower limit of 248, and gpt2c adds short names to folders.
_MAX_WINDOWS_PATH: Final = 200
# How long replace_file tries on Windows. Virus scanners and indexers open a new file for a moment.
_REPLACING_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.02
# How the names of folders begin in which files are written before they are renamed.
TEMPORARY_PREFIX: Final = ".gpt2c-"
_MAX_READ: Final = 1 << 30  # bytes at a time; macOS refuses 2 GiB and more
_MAX_COPIED: Final = 1 << 22  # bytes at a time, if the system's call cannot read into a buffer


# Threads may share a descriptor, and so its position. The lock is held for one read.
_position_lock = ProcessLock(Lock)


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read bytes from `offset` into the start of a buffer; return their number.

    It is 0 at the end of the file, and may be less than the buffer's length anywhere. Threads may
    read one descriptor at the same time. The file position may change. Raises OSError.
    """
    if hasattr(os, "preadv"):
        n_read: int = os.preadv(descriptor, [buffer[:_MAX_READ]], offset)
        return n_read
    with _position_lock.lock:
        os.lseek(descriptor, offset, os.SEEK_SET)
        raw = os.read(descriptor, min(len(buffer), _MAX_COPIED))
    buffer[: len(raw)] = raw
    return len(raw)


def long_path(path: Path) -> Path:
    r"""Return a path that the system accepts even if it is long: on Windows, with \\?\ before it.

    A short path, and any path on other systems, is returned unchanged.
    """
    if not IS_WINDOWS or len(str(path)) < _MAX_WINDOWS_PATH:
        return path
    return Path(verbatim_windows_path(os.path.abspath(path)))


def verbatim_windows_path(path: str) -> str:
    r"""Return an absolute path of Windows in the form \\?\C:\... or \\?\UNC\server\share\..."""
    path = str(PureWindowsPath(path))  # with backslashes: in this form, / is an ordinary character
    if path.startswith("\\\\?\\") or path.startswith("\\\\.\\"):
        return path
    if path.startswith("\\\\"):
        return f"\\\\?\\UNC\\{path[2:]}"
    return f"\\\\?\\{path}"


def is_file_name(name: str) -> bool:
    r"""Return whether this is a single path component that stays inside its folder on any system.

    On Windows, ``\`` separates folders, and ``C:name`` and ``name:stream`` have special meanings.
    """
    return name not in ("", ".", "..") and not any(char in name for char in "/\\:\0")


def replace_file(source: Path, target: Path) -> None:
    """Rename a file, or a new folder, to `target`; an existing target file is replaced atomically.

    Windows cannot replace a file that is open. There, this tries for two seconds, because another
    program may have opened it for a moment. Raises OSError.
    """
    end = time.monotonic() + _REPLACING_SECONDS
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not IS_WINDOWS or time.monotonic() > end:
                raise
        time.sleep(_PAUSE_SECONDS)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that a power cut undoes no rename in it.

    Windows has no such call; its file systems log renames. Raises OSError.
    """
    if IS_WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_file(path: Path) -> Iterator[bool]:
    """Lock a file, which is made if it is missing; provide whether no other process has the lock.

    The system unlocks it when the process ends, however it ends. The file stays. Raises OSError.
    """
    with open(long_path(path), "ab") as file:
        is_free = True
        try:
            if IS_WINDOWS:
                msvcrt = importlib.import_module("msvcrt")
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl = importlib.import_module("fcntl")
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise OSError(error.errno, error.strerror, str(path)) from None
            is_free = False
        yield is_free


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Make a folder in the folder `beside`, and delete it with its files after the block.

    Raises OSError if it cannot be made.
    """
    import tempfile  # lazily: reading needs none of it

    # Windows cannot delete open files. What a virus scanner has open there stays behind.
    with tempfile.TemporaryDirectory(
        prefix=TEMPORARY_PREFIX, dir=beside, ignore_cleanup_errors=IS_WINDOWS
    ) as name:
        yield Path(name)


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the path's place when the block ends without an error.

    Until then a file at `path` is unchanged, and it stays if the block raises. A link is followed.
    A pipe or a device is written directly. Raises OSError.
    """
    given = long_path(Path(path))
    status = given.stat() if given.exists() else None
    if status is not None and not stat.S_ISREG(status.st_mode):
        file = open(given, "wb")  # noqa: SIM115  # a folder raises an error here
        try:
            with _naming_full_disk(path):
                yield file
        except BaseException:
            with suppress(OSError):  # what waits in the buffer may fail too
                file.close()
            raise
        with _naming(path):
            file.close()
        return
    target = long_path(Path(os.path.realpath(path)))
    with ExitStack() as stack:
        with _naming(path):
            folder = stack.enter_context(temporary_folder(target.parent))
        written = folder / "written"
        # Closing the file fails too if the disk is full.
        with _naming_full_disk(path), open(written, "wb") as file:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
        with _naming(path):
            if status is not None:
                os.chmod(written, stat.S_IMODE(status.st_mode))
            replace_file(written, target)


@contextmanager
def _naming_full_disk(path: str) -> Iterator[None]:
    """Let an OSError of a write, which names no file, name the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK or error.filename:
            raise
        raise OSError(error.errno, error.strerror, path) from None


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let an OSError name the path that the caller knows, not a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
