"""Which processes hold which shared weights.

A folder of the user has a file for each key, with a line for each process: its number, and the
number and the inode of its open file. A process opens another one's file by /proc/PID/fd. So the
list may be wrong in any way: what it names is checked, and an unlisted file costs only memory.

A lock on the key's file makes processes that look for weights, or make them, wait for each other.
The lock ends with its process. It is a POSIX record lock, which a forked child does not inherit.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

from gpt2c.forks import ProcessLock
from gpt2c.living import Living
from gpt2c.weights.sharing.errors import NEEDS_LINUX, SharingError

_LINE: Final = re.compile(rb"(\d{1,10}) (\d{1,10}) (\d{1,20})\n")
_MAX_LIST: Final = 1 << 16  # bytes
_MAX_SWEPT: Final = 100  # files of other keys that are looked at
_MAX_WAIT: Final = 600.0  # seconds for another process to make the weights
_PAUSES: Final = (0.002, 0.05)  # seconds between two looks at a lock: the first pause, the longest
# O_NONBLOCK, so that opening a pipe or a device does not wait.
_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
)
_NO_LINKS: Final = getattr(os, "O_NOFOLLOW", 0)

# A record lock does not exclude threads of one process. Besides, it ends when any thread closes any
# descriptor of its file.
_one_thread = ProcessLock(Lock)


class OwnedFile(io.FileIO):
    """A file that is closed, without a ResourceWarning, when nothing refers to it any more."""

    def __del__(self) -> None:
        """Close the file."""
        self.close()


class SharedFile(OwnedFile):
    """The open file of shared weights, which other processes may open too."""

    entry: Path | None = None  # the file of the key, once this file is in its list


_T = TypeVar("_T")
_File = TypeVar("_File", bound=OwnedFile)


def opened(kind: type[_File], path: str | Path, flags: int, mode: str = "rb") -> _File:
    """Open a file with flags of os.open. Raises OSError."""
    return kind(path, mode, opener=lambda name, _: os.open(name, flags | _FLAGS, 0o600))


@dataclass(frozen=True)
class Entry:
    """The locked file of one key."""

    path: Path
    file: OwnedFile

    def find(self, read: Callable[[SharedFile], _T | None]) -> tuple[SharedFile, _T] | None:
        """Return the first file in the list that can be opened and of which `read` is not None.

        The second value is what `read` returned.
        """
        for pid, descriptor, inode in _holders(self.file):
            with suppress(OSError):
                path = f"/proc/{pid}/fd/{descriptor}"
                file = opened(SharedFile, path, os.O_RDONLY)
                if _is_own_file(os.fstat(file.fileno()), inode):
                    found = read(file)
                    if found is not None:
                        return file, found
        return None

    def add(self, file: SharedFile) -> None:
        """Add this process's file to the list, and drop dead lines. Raises OSError."""
        if sys.platform != "linux":
            raise SharingError(NEEDS_LINUX)
        lines = [b"%d %d %d\n" % holder for holder in _holders(self.file)]
        raw = b"".join([*lines, _line_of(file)])
        # If the process is killed in between, the rest of the old list stays, which does no harm.
        os.pwrite(self.file.fileno(), raw, 0)
        os.truncate(self.file.fileno(), len(raw))
        file.entry = self.path
        _listed.add(file)


@contextmanager
def locked_entry(key: str) -> Iterator[Entry]:
    """Lock the file of a key, waiting for other processes, during the block.

    Raises SharingError if the folder or the file is not this user's alone, or after ten minutes of
    waiting; and OSError.
    """
    with _one_thread.lock:
        path = _own_folder() / f"{_namespace()}-{key}"
        file = _locked(path)
        try:
            yield Entry(path, file)
        finally:
            file.close()


def remove_dead_entries(keep: Path) -> None:
    """Delete the files of keys whose weights no process holds any more.

    The caller has locked the entry `keep`.
    """
    with suppress(OSError):
        paths = [path for path in keep.parent.glob(f"{_namespace()}-*") if path != keep]
        for path in paths[:_MAX_SWEPT]:
            with suppress(OSError, SharingError), _opened_entry(path) as file:
                if _try_to_lock(file) and not _holders(file):
                    path.unlink()


def _own_folder() -> Path:
    """Return the folder of the lists, which only this user may read and write; make it if needed.

    GPT2C_SHARED_FOLDER in the environment names another one.
    """
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    user = os.geteuid()
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
    path = Path(os.environ.get("GPT2C_SHARED_FOLDER") or f"{parent}/gpt2c-{user}")
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        raise SharingError(
            f"{path} must be a folder that only this user (number {user}) may use; found "
            f"{stat.filemode(status.st_mode)} of user {status.st_uid}"
        )
    return path


def _namespace() -> str:
    """Return a number for the namespace of this process's number, as a container has its own."""
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return "0"


def _opened_entry(path: Path, flags: int = 0) -> OwnedFile:
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    file = opened(OwnedFile, path, os.O_RDWR | _NO_LINKS | flags, "r+b")
    status = os.fstat(file.fileno())
    is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    if not is_own or status.st_mode & 0o077:
        raise SharingError(f"{path} must be a file that only this user may use")
    return file


def _locked(path: Path) -> OwnedFile:
    end, pause = time.monotonic() + _MAX_WAIT, _PAUSES[0]
    while True:
        file = _opened_entry(path, os.O_CREAT)
        while not _try_to_lock(file):
            if time.monotonic() > end:
                raise SharingError(
                    f"another process has been making them for {_MAX_WAIT:.0f} seconds (it holds "
                    f"the lock of {path})"
                )
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])
        with suppress(FileNotFoundError):  # remove_dead_entries may just have deleted the file
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file


def _try_to_lock(file: OwnedFile) -> bool:
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    return True


def _holders(file: OwnedFile) -> list[tuple[int, int, int]]:
    """Return the list's processes that still have their file: (process, descriptor, inode)."""
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    raw = os.pread(file.fileno(), _MAX_LIST, 0)
    found = [(int(p), int(d), int(i)) for p, d, i in _LINE.findall(raw)]
    living = []
    for pid, descriptor, inode in dict.fromkeys(found):
        with suppress(OSError):
            if _is_own_file(os.stat(f"/proc/{pid}/fd/{descriptor}"), inode):
                living.append((pid, descriptor, inode))
    return living


def _is_own_file(status: os.stat_result, inode: int) -> bool:
    if sys.platform != "linux":
        raise SharingError(NEEDS_LINUX)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_ino == inode


# ---- forks ----

# A forked child has its parent's files, under the same numbers, and keeps them after its parent.
_listed: Living[SharedFile] = Living()


def _line_of(file: SharedFile) -> bytes:
    return b"%d %d %d\n" % (os.getpid(), file.fileno(), os.fstat(file.fileno()).st_ino)


def _list_child() -> None:
    """Add a forked child to the lists of its files, without their locks: waiting could take long.

    Another process that rewrites a list at this moment may lose the line.
    """
    for file in _listed:
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            if file.entry is not None and os.path.getsize(file.entry) < _MAX_LIST // 2:
                line = _line_of(file)
                with opened(
                    OwnedFile, file.entry, os.O_WRONLY | os.O_APPEND | _NO_LINKS, "ab"
                ) as f:
                    f.write(line)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_list_child)
