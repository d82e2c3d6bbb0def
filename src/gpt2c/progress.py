"""A bar that shows how far a long call is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from gpt2c.errors import MissingDependencyError

_T = TypeVar("_T")


def with_bar(results: Iterable[_T], total: int | None) -> Iterator[_T]:
    """The results, counted on standard error as they come.

    Raises MissingDependencyError at once where tqdm is not installed.
    """
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependencyError(
            "progress=True needs the package tqdm: pip install 'gpt2c[progress]', or leave it out"
        ) from None
    bar: Iterator[_T] = iter(tqdm(results, total=total, unit="text"))
    return bar
