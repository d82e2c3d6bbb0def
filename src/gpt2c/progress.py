"""Progress bars for long calls and for loading, drawn by tqdm."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from gpt2c.errors import MissingDependencyError

_PATIENCE: Final = 2  # seconds before a loading bar appears
_T = TypeVar("_T")


def with_bar(results: Iterable[_T], total: int | None) -> Iterator[_T]:
    """Yield the results, and count them in a bar on standard error.

    total None means an unknown number. Raises MissingDependencyError, at the call, if tqdm is not
    installed.
    """
    bar: Iterator[_T] = iter(_tqdm()(results, total=total, unit="text"))
    return bar


class LoadingBar:
    """A bar of loaded bytes on standard error; it appears after two seconds."""

    def __init__(self, n_bytes: int) -> None:
        """Make a bar for n_bytes in all. Raises MissingDependencyError if tqdm is not installed."""
        self._bar = _tqdm()(
            total=n_bytes, unit="B", unit_scale=True, desc="loading", delay=_PATIENCE, leave=False
        )

    def add(self, n_bytes: int) -> None:
        """Count n_bytes more."""
        self._bar.update(n_bytes)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def can_show() -> bool:
    """Return whether tqdm is installed."""
    return importlib.util.find_spec("tqdm") is not None


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependencyError(
            "progress=True needs the package tqdm: pip install 'gpt2c[progress]', or leave it out"
        ) from None
    return tqdm
