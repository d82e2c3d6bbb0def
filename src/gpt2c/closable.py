"""A base class for objects that the end of a ``with`` block closes."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closable:
    """An object with a method `close`, which the end of a ``with`` block calls."""

    def close(self) -> None:
        """Free what the object holds. Subclasses define this method."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Return the object itself; the end of the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the object."""
        self.close()
