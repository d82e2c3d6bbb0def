"""The prefix cache: the KV caches of finished texts, for prompts that begin like one of them.

A finished text leaves a copy of its sequence here. A new prompt takes a copy of the sequence that
has the longest prefix in common with the prompt, cut to that prefix. Copies share pages, so neither
costs memory for a second set of keys and values, and by contract 2 of CONTRIBUTING.md no result
depends on what is in the cache.

The texts are kept as bytes, in sorted order: the text with the longest common prefix is a
neighbour of the place where a prompt would be inserted. No text is a prefix of another one.
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

        A text counts with all its pages, although texts may share pages with each other and with
        sequences that run.
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

    def take(self, ids: NDArray[np.int32], longer_than: int = 0) -> EngineSequence | None:
        """Return a copy of the longest cached prefix of ids[:-1], ids being int32 [n].

        Return None if the prefix would not be longer than `longer_than`, or is too short to share.
        """
        if not self._texts or len(ids) <= MIN_SHARED_PREFIX:
            return None
        wanted = ids[:-1].tobytes()
        if self._is_reentered(me := get_ident()):
            return None
        with self._lock.lock:
            self._owner = me
            self._check()
            at = bisect_left(self._texts, wanted)
            near = [text for text in self._texts[max(at - 1, 0) : at + 1] if _is_near(text, wanted)]
            if not near:
                return None
            n, text = max((_common_ids(text, wanted), text) for text in near)
            if n <= longer_than:
                return None
            self._sequences.move_to_end(text)
            return _copy_of(self._sequences[text], n)

    def put(self, ids: NDArray[np.int32], sequence: EngineSequence) -> None:
        """Keep a copy of a sequence that begins with ids int32 [n], cut to these ids.

        Of a text that is larger than the cache, its first tokens are kept.
        """
        n = min(len(ids), self._max_pages * PAGE_POSITIONS)
        if n < MIN_SHARED_PREFIX:
            return
        text = ids[:n].tobytes()
        if self._is_reentered(me := get_ident()):
            return
        with self._lock.lock:
            self._owner = me
            self._check()
            at = bisect_left(self._texts, text)
            if at < len(self._texts) and self._texts[at].startswith(text):
                self._sequences.move_to_end(self._texts[at])
                return
            copy = _copy_of(sequence, n)
            if copy is None or self._max_pages == 0:  # closed meanwhile
                return
            self._valid_for = None
            if at and text.startswith(self._texts[at - 1]):
                self._remove(self._texts[at - 1])
                at -= 1
            self._texts.insert(at, text)
            self._sequences[text] = copy
            self._n_pages += _n_pages(text)
            while self._n_pages > self._max_pages:
                self._remove(next(iter(self._sequences)))
            self._valid_for = fork_depth()

    def evict(self, n_bytes: int) -> int:
        """Drop the least recently used texts until n_bytes are free; return the bytes freed.

        This frees less memory if other sequences share the pages.
        """
        n_pages = 0
        if self._is_reentered(me := get_ident()):
            return 0
        with self._lock.lock:
            self._owner = me
            self._check()
            self._valid_for = None
            while self._texts and n_pages * self._page_bytes < n_bytes:
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
        """Whether this thread has the lock: a signal handler interrupted a method of this cache.

        A method sets _owner as the first thing under the lock, before Python runs a handler.
        """
        return self._lock.lock.locked() and self._owner == thread

    def _check(self) -> None:
        """Begin with an empty cache after a fork or an interrupted change. Needs the lock."""
        if self._valid_for != fork_depth():
            self._reset()

    def _reset(self) -> None:
        self._valid_for = None
        self._texts: list[bytes] = []  # sorted
        # The least recently used text comes first.
        self._sequences: OrderedDict[bytes, EngineSequence] = OrderedDict()
        self._n_pages = 0
        self._valid_for = fork_depth()

    def _remove(self, text: bytes) -> int:
        """Drop a text and return the number of its pages."""
        n_pages = _n_pages(text)
        del self._texts[bisect_left(self._texts, text)]
        del self._sequences[text]
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


def _n_pages(text: bytes) -> int:
    return -(-len(text) // (_ID_BYTES * PAGE_POSITIONS))


def _is_near(text: bytes, wanted: bytes) -> bool:
    """Whether the texts have enough ids in common to share them."""
    return text[:_MIN_BYTES] == wanted[:_MIN_BYTES]


def _common_ids(a: bytes, b: bytes) -> int:
    return common_prefix(np.frombuffer(a, dtype=np.int32), np.frombuffer(b, dtype=np.int32))
