"""Locks that survive a fork, and imports that a fork waits for.

A forked child has only the thread that called fork. If another thread held a lock at that moment,
the lock stays locked in the child for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from typing import Final, Generic, TypeVar

_L = TypeVar("_L")

# Where waiting for a lock may take long, wait in slices of this many seconds: on Windows, Ctrl-C
# cannot interrupt waiting for a lock, and is handled after it.
SLICE_SECONDS: Final = 0.1

_fork_depth = 0


def fork_depth() -> int:
    """Return the generation of this process: 0 where this module was imported, 1 in a child, ..."""
    return _fork_depth


def _count_fork() -> None:
    global _fork_depth
    _fork_depth += 1


# Hold this while a call imports a module at its first use. Python's lock of a module that another
# thread is importing would stay locked in a forked child. So a fork waits until the import ends.
IMPORTING: Final = RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)
    os.register_at_fork(
        before=IMPORTING.acquire,
        after_in_parent=IMPORTING.release,
        after_in_child=IMPORTING.release,
    )


class ProcessLock(Generic[_L]):
    """A lock for the threads of one process; each forked child gets its own, unlocked lock."""

    def __init__(self, make_lock: Callable[[], _L]) -> None:
        """`make_lock` is threading.Lock or threading.RLock."""
        self._make_lock = make_lock
        self._locks = {_fork_depth: make_lock()}

    @property
    def lock(self) -> _L:
        """This process's lock.

        Use the lock only in a with statement, where Ctrl-C cannot interrupt between acquiring the
        lock and entering the block.
        """
        found = self._locks.get(_fork_depth)
        # setdefault is atomic, so two threads of a child get the same lock.
        return found or self._locks.setdefault(_fork_depth, self._make_lock())
