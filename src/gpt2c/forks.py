"""Locks that survive a fork.

A forked child has only the thread that called fork. If another thread held a lock at that moment,
the lock is also locked in the child, where no thread will ever release the lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

_L = TypeVar("_L")

_n_forks = 0


def n_forks() -> int:
    """Return the number of forks between the process that imported this module and this one."""
    return _n_forks


def _count_fork() -> None:
    global _n_forks
    _n_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class ProcessLock(Generic[_L]):
    """A lock for the threads of one process; each forked child gets its own, unlocked lock."""

    def __init__(self, make_lock: Callable[[], _L]) -> None:
        """`make_lock` is threading.Lock or threading.RLock."""
        self._make_lock = make_lock
        self._locks = {_n_forks: make_lock()}

    @property
    def lock(self) -> _L:
        """This process's lock.

        Use the lock only in a with statement, where Ctrl-C cannot interrupt between acquiring the
        lock and entering the block.
        """
        found = self._locks.get(_n_forks)
        # setdefault is atomic, so two threads of a child get the same lock.
        return found or self._locks.setdefault(_n_forks, self._make_lock())
