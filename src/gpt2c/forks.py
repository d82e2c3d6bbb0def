"""Locks in a process that forks.

A child has only the thread that forked. A lock that another thread held at that moment is copied
taken, and nothing in the child will ever release it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

_L = TypeVar("_L")

# Forks between the process that imported this module and this one.
_n_forks = 0


def _count_fork() -> None:
    global _n_forks
    _n_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class ProcessLock(Generic[_L]):
    """A lock for the threads of one process: each forked child has a free one of its own."""

    def __init__(self, kind: Callable[[], _L]) -> None:
        """kind makes a lock: threading.Lock or RLock."""
        self._kind = kind
        self._locks = {_n_forks: kind()}

    @property
    def lock(self) -> _L:
        """This process's lock.

        It is used in a with statement alone, where Ctrl-C cannot come between taking it and the
        block.
        """
        found = self._locks.get(_n_forks)
        # setdefault, so that two threads of a child that ask at once get the same.
        return found or self._locks.setdefault(_n_forks, self._kind())
