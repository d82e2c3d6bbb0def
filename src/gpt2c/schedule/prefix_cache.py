"""The prefix cache: the KV caches of finished texts, for prompts that begin like one of them.

A finished text leaves a copy of its sequence here. A new prompt gets a copy of the sequence that
has the longest prefix in common with the prompt, cut to that prefix. Copies share pages, so neither
copy needs memory for keys and values of its own. By contract 2 of CONTRIBUTING.md, no result
depends on what is in the cache.

A text's key is the bytes of its ids. The keys are sorted, so the text with the longest common
prefix is next to the place where the prompt's key would be inserted. No key is a prefix of another
key.

Texts of different spaces never share, so nobody can tell from times what a text of another space
begins with. The key of a text in space s > 0 begins with the id -s, which no vocabulary has.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import OrderedDict
from threading import Lock, get_ident
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT64_MAX
from gpt2c.engine.protocol import PAGE_POSITIONS, EngineModel, EngineSequence
from gpt2c.errors import CacheMemoryError, ClosedError
from gpt2c.forks import ProcessLock, fork_depth

# The min length of a shared prefix: feeding fewer tokens is faster than copying a sequence.
MIN_SHARED_PREFIX: Final = 16
_ID_BYTES: Final = 4
_MIN_BYTES: Final = _ID_BYTES * MIN_SHARED_PREFIX


def common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


class PrefixCache:
    """The sequences of a model's finished texts. Any thread may use it.

    A forked child begins with an empty cache: a thread of the parent may have been changing this
    one. An interrupt in the middle of a change empties the cache too.
    """

    def __init__(self, engine: EngineModel, max_bytes: int) -> None:
        """Make an empty cache; with max_bytes 0 it stays empty.

        max_bytes limits the sum of all texts' pages. A page that several texts or running sequences
        share is counted for each text.
        """
        self._page_bytes = max(engine.page_bytes, _ID_BYTES * PAGE_POSITIONS)
        self._max_pages = max_bytes // self._page_bytes
        self._lock = ProcessLock(Lock)
        self._owner = 0  # the thread that took the lock last
        self._valid_for: int | None = None  # fork_depth(); None during a change
        self._reset()
        this = weakref.ref(self)  # so that dropping the model frees its memory at once

        def reclaim() -> bool:
            cache = this()
            return cache is not None and cache.evict(1) > 0

        engine.reclaim = reclaim

    @property
    def n_bytes(self) -> int:
        """The bytes of the pages of all texts, as __init__ counts them."""
        return self._n_pages * self._page_bytes

    def copy_longest(
        self, ids: NDArray[np.int32], longer_than: int = 0, space: int = 0
    ) -> EngineSequence | None:
        """Return a copy of the longest prefix of ids[:-1] in a space, ids being int32 [n].

        Return None if the prefix would not be longer than `longer_than`, or is too short to share.
        """
        if not self._keys or len(ids) <= MIN_SHARED_PREFIX:
            return None
        head = _head(space)
        wanted = head + ids[:-1].tobytes()
        least = len(head) + _MIN_BYTES
        if self._is_reentered(me := get_ident()):
            return None
        with self._lock.lock:
            self._owner = me
            self._reset_if_invalid()
            at = bisect_left(self._keys, wanted)
            near = self._keys[max(at - 1, 0) : at + 1]
            near = [key for key in near if key[:least] == wanted[:least]]
            if not near:
                return None
            n, key = max((_common_ids(key, wanted), key) for key in near)
            n -= len(head) // _ID_BYTES
            if n <= longer_than:
                return None
            self._sequences.move_to_end(key)
            return _copy_of(self._sequences[key], n)

    def put(self, ids: NDArray[np.int32], sequence: EngineSequence, space: int = 0) -> None:
        """Keep a copy of a sequence that begins with ids int32 [n], cut to these ids, in a space.

        If the text is larger than the cache, keep its first tokens only.
        """
        n = min(len(ids), self._max_pages * PAGE_POSITIONS)
        if n < MIN_SHARED_PREFIX:
            return
        key = _head(space) + ids[:n].tobytes()
        if self._is_reentered(me := get_ident()):
            return
        with self._lock.lock:
            self._owner = me
            self._reset_if_invalid()
            at = bisect_left(self._keys, key)
            if at < len(self._keys) and self._keys[at].startswith(key):
                self._sequences.move_to_end(self._keys[at])
                return
            copy = _copy_of(sequence, n)
            if copy is None or self._max_pages == 0:  # no memory, or closed meanwhile
                return
            self._valid_for = None
            if at and key.startswith(self._keys[at - 1]):
                self._remove(self._keys[at - 1])
                at -= 1
            self._keys.insert(at, key)
            self._sequences[key] = copy
            self._n_pages += _n_pages(key)
            while self._n_pages > self._max_pages:
                self._remove(next(iter(self._sequences)))
            self._valid_for = fork_depth()

    def evict(self, n_bytes: int) -> int:
        """Drop least recently used texts until n_bytes or more are dropped, or no text is left.

        Return the bytes of the dropped texts' pages. Pages that other sequences share stay
        allocated.
        """
        n_pages = 0
        if self._is_reentered(me := get_ident()):
            return 0
        with self._lock.lock:
            self._owner = me
            self._reset_if_invalid()
            self._valid_for = None
            while self._keys and n_pages * self._page_bytes < n_bytes:
                n_pages += self._remove(next(iter(self._sequences)))
            self._valid_for = fork_depth()
        return n_pages * self._page_bytes

    def clear(self) -> None:
        """Drop all texts."""
        self.evict(INT64_MAX)

    def close(self) -> None:
        """Drop all texts, and keep no more."""
        self._max_pages = 0
        self.clear()

    def _is_reentered(self, thread: int) -> bool:
        """Whether this thread holds the lock: a signal handler has interrupted one of its calls.

        Each method sets _owner right after it takes the lock, before a handler can run.
        """
        return self._lock.lock.locked() and self._owner == thread

    def _reset_if_invalid(self) -> None:
        """Empty the cache after a fork or an interrupted change. The caller holds the lock."""
        if self._valid_for != fork_depth():
            self._reset()

    def _reset(self) -> None:
        self._valid_for = None
        self._keys: list[bytes] = []  # sorted
        # By key; the least recently used text comes first.
        self._sequences: OrderedDict[bytes, EngineSequence] = OrderedDict()
        self._n_pages = 0
        self._valid_for = fork_depth()

    def _remove(self, key: bytes) -> int:
        """Drop a text and return the number of its pages."""
        n_pages = _n_pages(key)
        del self._keys[bisect_left(self._keys, key)]
        del self._sequences[key]
        self._n_pages -= n_pages
        return n_pages


def _copy_of(sequence: EngineSequence, n: int) -> EngineSequence | None:
    """Return a copy of the first n tokens; None if there is no memory or the model was closed."""
    try:
        copy = sequence.copy()
    except (CacheMemoryError, ClosedError):
        return None
    copy.truncate(n)
    return copy


def _head(space: int) -> bytes:
    """Return what the keys of a space begin with."""
    return b"" if space == 0 else np.int32(-space).tobytes()


def _n_pages(key: bytes) -> int:
    has_head = np.frombuffer(key, dtype=np.int32, count=1)[0] < 0
    return -(-(len(key) - _ID_BYTES * int(has_head)) // (_ID_BYTES * PAGE_POSITIONS))


def _common_ids(a: bytes, b: bytes) -> int:
    return common_prefix(np.frombuffer(a, dtype=np.int32), np.frombuffer(b, dtype=np.int32))
