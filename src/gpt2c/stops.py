"""What ends a text besides the model itself: stop strings, the time, and the caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gpt2c.generation import Callback


@dataclass(frozen=True)
class Stops:
    """What is watched for in every text of a call."""

    strings: tuple[bytes, ...] = ()
    token_bytes: Callable[[int], bytes] | None = None  # needed for strings
    deadline: float | None = None  # of time.monotonic
    callback: Callback | None = None

    @property
    def are_watched(self) -> bool:
        """Whether every token has to be looked at."""
        return bool(self.strings or self.deadline is not None or self.callback)

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class Watcher:
    """Looks at one text's new ids as they come.

    A stop string is found across the borders of tokens, in bytes. What may turn out to be its
    beginning is not safe to be shown yet.
    """

    def __init__(self, stops: Stops, index: int) -> None:
        """index is the prompt's, for the callback."""
        self._stops, self._index = stops, index
        self._longest = max(map(len, stops.strings), default=0)
        self._bytes = bytearray()
        self._ends: list[int] = []  # of each id, in bytes
        self.ids: list[int] = []
        self.n_safe_ids = 0
        self.end: int | None = None  # in bytes, where a stop string begins

    def push(self, id: int) -> str | None:
        """Takes the next id; a finish reason where the text ends with it, or before."""
        self.ids.append(id)
        if self._stops.strings and self._find_string(id):
            return "stop"
        if not self._stops.strings:
            self.n_safe_ids = len(self.ids)
        if self._stops.callback is not None and self._stops.callback(self._index, list(self.ids)):
            return "callback"
        return "time" if self._stops.is_late else None

    def finish(self) -> None:
        """No id comes any more: all of them are safe."""
        self.n_safe_ids = len(self.ids)

    def _find_string(self, id: int) -> bool:
        assert self._stops.token_bytes is not None
        before = max(0, len(self._bytes) - self._longest + 1)
        self._bytes += self._stops.token_bytes(id)
        self._ends.append(len(self._bytes))
        found = [self._bytes.find(string, before) for string in self._stops.strings]
        if max(found) >= 0:
            self.end = min(place for place in found if place >= 0)
            # An id stays where some of the text before the stop string is its.
            begins = [0, *self._ends[:-1]]
            del self.ids[sum(begin < self.end for begin in begins) :]
            self.finish()
            return True
        safe = len(self._bytes) - self._n_perhaps()
        while self.n_safe_ids < len(self.ids) and self._ends[self.n_safe_ids] <= safe:
            self.n_safe_ids += 1
        return False

    def _n_perhaps(self) -> int:
        """How many bytes at the end may be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._bytes)), 0, -1):
            end = bytes(self._bytes[-length:])
            if any(len(s) > length and s.startswith(end) for s in self._stops.strings):
                return length
        return 0
