"""Bars that show how far a long call is, or loading."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from gpt2c.errors import MissingDependencyError

_PATIENCE: Final = 2  # seconds
_T = TypeVar("_T")


def with_bar(results: Iterable[_T], total: int | None) -> Iterator[_T]:
    """The results, counted on standard error as they come.

    Raises MissingDependencyError at once where tqdm is not installed.
    """
    bar: Iterator[_T] = iter(_tqdm()(results, total=total, unit="text"))
    return bar


class LoadingBar:
    """Counts bytes that were loaded, on standard error; nothing is shown within two seconds."""

    def __init__(self, n_bytes: int) -> None:
        """Of so many. Raises MissingDependencyError where tqdm is not installed."""
        self._bar = _tqdm()(
            total=n_bytes, unit="B", unit_scale=True, desc="loading", delay=_PATIENCE, leave=False
        )

    def add(self, n_bytes: int) -> None:
        """So many more are there."""
        self._bar.update(n_bytes)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()


def can_show() -> bool:
    """Whether tqdm is installed."""
    return importlib.util.find_spec("tqdm") is not None


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependencyError(
            "progress=True needs the package tqdm: pip install 'gpt2c[progress]', or leave it out"
        ) from None
    return tqdm
