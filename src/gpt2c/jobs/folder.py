"""The folder that a job writes: each file appears whole, and a lock keeps other jobs out."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from gpt2c.errors import OptionError
from gpt2c.files import TEMPORARY_PREFIX, locked_file, sync_folder, temporary_folder, whole_file
from gpt2c.tables.places import file_system, is_url, local_path, naming_url

LOCK: Final = ".lock"


class Folder(Protocol):
    """A folder of files. A name has at most one slash, after a folder in this one.

    name
        The folder's path or URL, for messages.
    """

    name: str

    def remove_leftovers(self) -> None:
        """Remove what a killed job left half written."""

    def names(self, inside: str = "") -> list[str]:
        """Return the names of the files in it, or in the folder `inside` it; none if it lacks it.

        The lock, and what an interrupted job left half written, do not count.
        """

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None if there is no such file."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is no such file."""

    def write(self, name: str, raw: bytes) -> None:
        """Write a file, which appears whole and stays after a power cut."""

    def place(self, name: str) -> Any:
        """Provide, in a with block, a path to write a file to with create_table.

        After the block the file is in the folder, and stays after a power cut.
        """

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with its files, if it exists."""


@contextmanager
def open_folder(name: str) -> Iterator[Folder]:
    """Open the folder of a job, and lock it; it is made if it does not exist.

    Raises OptionError if another job has the lock, OSError, and MissingDependencyError if a URL
    needs a package.
    """
    if is_url(name):
        # An object store has no locks. This one keeps jobs of this user and machine out.
        key = hashlib.sha256(name.rstrip("/").encode()).hexdigest()[:32]
        lock = Path(tempfile.gettempdir()) / f"gpt2c-batch-{_user()}-{key}.lock"
        with locked_file(lock) as is_free:
            _check_free(is_free, name)
            yield _RemoteFolder(name)
        return
    path = Path(local_path(name))
    if not path.exists():
        path.mkdir(parents=True)
        sync_folder(path.resolve().parent)
    with locked_file(path / LOCK) as is_free:
        _check_free(is_free, name)
        yield _LocalFolder(name, path)


def _check_free(is_free: bool, name: str) -> None:
    if not is_free:
        raise OptionError(
            f"another job is writing to {name}; wait until it ends, or name another folder"
        )


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "0"


class _LocalFolder:
    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path

    def remove_leftovers(self) -> None:
        for pattern in (f"{TEMPORARY_PREFIX}*", f".*/{TEMPORARY_PREFIX}*"):
            for path in list(self._path.glob(pattern)):
                shutil.rmtree(path, ignore_errors=True)

    def names(self, inside: str = "") -> list[str]:
        try:
            found = os.listdir(self._path / inside)
        except FileNotFoundError:
            return []
        return sorted(n for n in found if n != LOCK and not n.startswith(TEMPORARY_PREFIX))

    def size(self, name: str) -> int | None:
        try:
            return os.stat(self._path / name).st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, raw: bytes) -> None:
        with self.place(name) as path, whole_file(path) as file:
            file.write(raw)

    @contextmanager
    def place(self, name: str) -> Iterator[str]:
        path = self._path / name
        if not path.parent.exists():
            path.parent.mkdir()
            sync_folder(self._path)
        yield str(path)
        sync_folder(path.parent)

    def delete(self, name: str) -> None:
        path = self._path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
        sync_folder(self._path)


class _RemoteFolder:
    """A folder of an object store. An object appears whole when its upload ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._system, self._root = file_system(name.rstrip("/"))
        self._system.invalidate_cache()

    def remove_leftovers(self) -> None:
        """An object store keeps no half of an object."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def names(self, inside: str = "") -> list[str]:
        try:
            with naming_url(self.name):
                found = self._system.ls(self._path(inside), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def size(self, name: str) -> int | None:
        try:
            with naming_url(f"{self.name}/{name}"):
                size: int = self._system.info(self._path(name))["size"]
                return size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        try:
            with naming_url(f"{self.name}/{name}"):
                raw: bytes = self._system.cat_file(self._path(name))
                return raw
        except FileNotFoundError:
            return None

    def write(self, name: str, raw: bytes) -> None:
        with naming_url(f"{self.name}/{name}"):
            self._make_parent(name)
            self._system.pipe_file(self._path(name), raw)

    @contextmanager
    def place(self, name: str) -> Iterator[str]:
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            path = folder / name
            yield str(path)
            with naming_url(f"{self.name}/{name}"):
                self._make_parent(name)
                self._system.put_file(str(path), self._path(name))

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), naming_url(f"{self.name}/{name}"):
            self._system.rm(self._path(name), recursive=True)

    def _make_parent(self, name: str) -> None:
        self._system.makedirs(self._path(name).rsplit("/", 1)[0], exist_ok=True)
