"""Files on this machine, and those that a URL such as s3://bucket/name names.

URLs need the package fsspec, the extra "remote", and what fsspec needs for their scheme.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final
from urllib.parse import unquote

from gpt2c.errors import MissingDependencyError, OptionError, TableError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_LOCAL: Final = "file://"


def is_url(path: str) -> bool:
    """Return whether a path is a URL of another scheme than file://."""
    return bool(_URL.match(path)) and not path.startswith(_LOCAL)


def local_path(path: str) -> str:
    """Return the path that a URL file:// names; other paths are returned unchanged."""
    return unquote(path.removeprefix(_LOCAL)) if path.startswith(_LOCAL) else path


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the URL's path in it.

    Raises MissingDependencyError without fsspec or the package of the scheme, and OptionError if
    no package knows the scheme.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingDependencyError(
            f"{url} needs the package fsspec: pip install 'gpt2c[remote]', and what it needs for "
            "this kind of URL, for example s3fs for s3://"
        ) from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(f"{url}: {error}") from None
    except ValueError as error:
        raise OptionError(f"{url}: {error}") from None
    return system, path


@contextmanager
def open_bytes(path: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file for reading; provide it and its size in bytes, None if that is unknown.

    Raises OSError, and what file_system raises; TableError if a URL's server fails in its own way.
    """
    if not is_url(path):
        with open(local_path(path), "rb") as file:
            yield file, size_of(file)
        return
    system, name = file_system(path)
    with naming_url(path):
        file = system.open(name, "rb")
        size = system.info(name).get("size")
    with file:
        yield file, size


@contextmanager
def naming_url(url: str) -> Iterator[None]:
    """Turn what a server's package raises into errors that name the URL."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(2, "there is no such file", url) from None
    except OSError as error:
        raise OSError(error.errno or 5, error.strerror or str(error), url) from None
    except Exception as error:  # each package has errors of its own
        raise TableError(f"{url}: {type(error).__name__}: {error}") from None


def size_of(file: BinaryIO) -> int | None:
    """Return the size of an open file in bytes; None if it is unknown, as for a pipe."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):  # not a file of the system
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
