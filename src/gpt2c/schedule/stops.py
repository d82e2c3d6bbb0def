"""What ends a text besides the model itself: stop strings, the time, and the caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

# (index of the prompt, its new ids so far) -> whether to stop
Callback: TypeAlias = Callable[[int, list[int]], object]


class StopString:
    """A string of bytes, to be looked for in bytes as they come (Knuth, Morris and Pratt 1977).

    So a byte costs the same however long the string is.
    """

    def __init__(self, string: bytes) -> None:
        """string is not empty."""
        self.string = string
        # For each beginning, the longest shorter one that it ends with.
        self._shorter = [0]
        for byte in string[1:]:
            self._shorter.append(self.step(self._shorter[-1], byte))

    def step(self, n: int, byte: int) -> int:
        """How much of the string the bytes end with, given how much it was before this byte."""
        if n == len(self.string):
            n = self._shorter[n - 1]
        while n and self.string[n] != byte:
            n = self._shorter[n - 1]
        return n + (self.string[n] == byte)


@dataclass(frozen=True)
class Stops:
    """What is watched for in every text of a call."""

    strings: tuple[StopString, ...] = ()
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
        self._found = [0] * len(stops.strings)  # of each, how much the text ends with
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

    def copy(self) -> Watcher:
        """The same of a text that may go on otherwise."""
        other = Watcher(self._stops, self._index)
        other._found, other._ends, other.ids = self._found[:], self._ends[:], self.ids[:]
        other.n_safe_ids, other.end = self.n_safe_ids, self.end
        return other

    def finish(self) -> None:
        """No id comes any more: all of them are safe."""
        self.n_safe_ids = len(self.ids)

    def _find_string(self, id: int) -> bool:
        assert self._stops.token_bytes is not None
        n_bytes = self._ends[-1] if self._ends else 0
        begins = []
        for byte in self._stops.token_bytes(id):
            n_bytes += 1
            for i, stop in enumerate(self._stops.strings):
                self._found[i] = stop.step(self._found[i], byte)
                if self._found[i] == len(stop.string):
                    begins.append(n_bytes - len(stop.string))
        self._ends.append(n_bytes)
        if begins:
            self.end = min(begins)
            # An id stays where some of the text before the stop string is its.
            while self.ids and self._begin(len(self.ids) - 1) >= self.end:
                self.ids.pop()
            self.finish()
            return True
        safe = n_bytes - max(self._found)
        while self.n_safe_ids < len(self.ids) and self._ends[self.n_safe_ids] <= safe:
            self.n_safe_ids += 1
        return False

    def _begin(self, i: int) -> int:
        return self._ends[i - 1] if i else 0
