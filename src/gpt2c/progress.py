"""Progress bars for long calls and for loading, drawn by tqdm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from gpt2c.errors import MissingDependencyError

_DELAY: Final = 2  # seconds; shorter loading shows no bar
_T = TypeVar("_T")


def with_bar(results: Iterable[_T], total: int | None) -> Iterator[_T]:
    """Yield the results, and count them in a bar on standard error.

    `total` is the number of results; None if it is unknown.

    Raises MissingDependencyError at once, not at the first result, if tqdm is not installed.
    """
    bar: Iterator[_T] = iter(_tqdm()(results, total=total, unit="text"))
    return bar


def with_input_bar(
    results: Iterable[_T], read: Callable[[], int], total: int | None, unit: str
) -> Iterator[_T]:
    """Yield the results, and show in a bar how much of their input was read.

    `read` returns how much that is, in `unit`, "B" for bytes or a noun; `total` is all of it, or
    None if that is unknown. The bar appears after two seconds.

    Raises MissingDependencyError at once, not at the first result, if tqdm is not installed.
    """
    bar = _tqdm()(total=total, unit=unit, unit_scale=unit == "B", delay=_DELAY, leave=False)

    def counted() -> Iterator[_T]:
        with bar:
            for result in results:
                bar.update(read() - bar.n)
                yield result

    return counted()


class LoadingBar:
    """A bar on standard error that counts loaded bytes; it appears after two seconds."""

    def __init__(self, n_bytes: int) -> None:
        """`n_bytes` is the total. Raises MissingDependencyError if tqdm is not installed."""
        self._bar = _tqdm()(
            total=n_bytes, unit="B", unit_scale=True, desc="loading", delay=_DELAY, leave=False
        )

    def add(self, n_bytes: int) -> None:
        """Add n_bytes to the count."""
        self._bar.update(n_bytes)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def can_show_bar() -> bool:
    """Return whether tqdm is installed."""
    import importlib.util

    return importlib.util.find_spec("tqdm") is not None


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependencyError(
            "progress=True needs the package tqdm: pip install 'gpt2c[progress]', or "
            "leave progress out"
        ) from None
    return tqdm


@contextmanager
def counting_bar(name: str, *, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Provide a function that adds to the count of a bar on standard error; the end removes it.

    Raises MissingDependencyError if the bar is shown and tqdm is not installed.
    """
    if not is_shown:
        yield lambda n: None
        return
    bar = _tqdm()(desc=name, leave=False)
    try:
        yield bar.update
    finally:
        bar.close()


@contextmanager
def rated_bar(*, is_shown: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Provide a function that sets a bar on standard error; the end removes it.

    It takes the number of bytes that were read, their total, and a text to show after them. The bar
    shows the time left.

    Raises MissingDependencyError if the bar is shown and tqdm is not installed.
    """
    if not is_shown:
        yield lambda n, total, text: None
        return
    bar = _tqdm()(total=0, unit="B", unit_scale=True, leave=False)

    def update(n: int, total: int, text: str) -> None:
        bar.total = total
        bar.set_postfix_str(text, refresh=False)
        bar.update(n - bar.n)

    try:
        yield update
    finally:
        bar.close()
