"""A weak collection that loses no Ctrl-C.

The collections of the module weakref run Python code as callbacks when an object dies. Python
ignores exceptions in callbacks, so a Ctrl-C that arrives during one would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Generic, TypeVar
from weakref import ref

_T = TypeVar("_T")


class Living(Generic[_T]):
    """The objects that were added and are still alive. Threads may use it without a lock.

    A garbage collection may run other threads in the middle of a loop over `dict.items()`, because
    each pair is a new tuple. `dict.copy()` and `list(dict.values())` have no such middle.
    """

    def __init__(self) -> None:
        """Make an empty collection."""
        self._numbers = count()
        self._references: dict[int, ref[_T]] = {}
        self._max_size = 16  # dead references are dropped when there are more

    def add(self, value: _T) -> None:
        """Add an object, without keeping it alive."""
        if len(self._references) >= self._max_size:
            for number, reference in self._references.copy().items():
                if reference() is None:
                    self._references.pop(number, None)
            self._max_size = max(16, 2 * len(self._references))
        self._references[next(self._numbers)] = ref(value)

    def discard(self, value: _T) -> None:
        """Remove an object if it is here."""
        for number, reference in self._references.copy().items():
            if reference() is value:
                self._references.pop(number, None)

    def __iter__(self) -> Iterator[_T]:
        """Yield the objects that were here when the iteration began and are still alive."""
        for reference in list(self._references.values()):
            value = reference()
            if value is not None:
                yield value

    def __bool__(self) -> bool:
        """Whether any object is here."""
        return any(reference() is not None for reference in list(self._references.values()))
