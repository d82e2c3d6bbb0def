"""Stop conditions outside the engine: stop strings, a deadline, and the caller's callback."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

# (index of the prompt, its new ids so far) -> whether to stop
Callback: TypeAlias = Callable[[int, list[int]], object]


class StopString:
    """A matcher that finds a string in a stream of bytes (Knuth, Morris and Pratt 1977).

    Its state is a number: the length of the longest prefix of the string that the stream ends with.
    The amortised time for a byte does not depend on the string's length.
    """

    def __init__(self, string: bytes) -> None:
        """Make a matcher; string must not be empty."""
        self.string = string
        # KMP's failure function: for each prefix of the string, the length of the longest shorter
        # prefix that it ends with.
        self._shorter = [0]
        for byte in string[1:]:
            self._shorter.append(self.step(self._shorter[-1], byte))

    def step(self, n: int, byte: int) -> int:
        """Return the state after another byte; n is the state before that byte."""
        if n == len(self.string):
            n = self._shorter[n - 1]
        while n and self.string[n] != byte:
            n = self._shorter[n - 1]
        return n + (self.string[n] == byte)


@dataclass(frozen=True)
class Stops:
    """The stop conditions that all sequences of a call share."""

    strings: tuple[StopString, ...] = ()
    token_bytes: Callable[[int], bytes] | None = None  # needed for strings
    deadline: float | None = None  # on the clock of time.monotonic
    callback: Callback | None = None

    @property
    def need_every_token(self) -> bool:
        """Whether these conditions must be checked after every token."""
        return bool(self.strings or self.deadline is not None or self.callback)

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class Watcher:
    """Checks the stop conditions of one sequence, token by token.

    Stop strings are searched for in bytes, across token boundaries. An id is safe to show once none
    of its bytes can belong to a stop string.
    """

    def __init__(self, stops: Stops, index: int) -> None:
        """Begin a sequence; index is the index of its prompt, for the callback."""
        self._stops, self._index = stops, index
        self._matched = [0] * len(stops.strings)  # the state of each matcher
        self._ends: list[int] = []  # for each id, the number of bytes up to its end
        self.ids: list[int] = []
        self.n_safe_ids = 0
        self.end: int | None = None  # where the stop string begins, in bytes

    def push(self, id: int) -> str | None:
        """Add the next id; return a finish reason if the sequence ends, or None.

        If a stop string ends the sequence, remove the ids that have no byte before the string.
        """
        self.ids.append(id)
        if self._stops.strings and self._find_string(id):
            return "stop"
        if not self._stops.strings:
            self.n_safe_ids = len(self.ids)
        if self._stops.callback is not None and self._stops.callback(self._index, list(self.ids)):
            return "callback"
        return "time" if self._stops.is_late else None

    def copy(self) -> Watcher:
        """Return an independent copy, for a beam that branches."""
        other = Watcher(self._stops, self._index)
        other._matched, other._ends, other.ids = self._matched[:], self._ends[:], self.ids[:]
        other.n_safe_ids, other.end = self.n_safe_ids, self.end
        return other

    def finish(self) -> None:
        """Mark all ids as safe, because no more ids will come."""
        self.n_safe_ids = len(self.ids)

    def _find_string(self, id: int) -> bool:
        assert self._stops.token_bytes is not None
        n_bytes = self._ends[-1] if self._ends else 0
        begins = []
        for byte in self._stops.token_bytes(id):
            n_bytes += 1
            for i, stop in enumerate(self._stops.strings):
                self._matched[i] = stop.step(self._matched[i], byte)
                if self._matched[i] == len(stop.string):
                    begins.append(n_bytes - len(stop.string))
        self._ends.append(n_bytes)
        if begins:
            self.end = min(begins)
            # Keep an id if some of its bytes precede the stop string.
            while self.ids and self._begin(len(self.ids) - 1) >= self.end:
                self.ids.pop()
            self.finish()
            return True
        safe = n_bytes - max(self._matched)
        while self.n_safe_ids < len(self.ids) and self._ends[self.n_safe_ids] <= safe:
            self.n_safe_ids += 1
        return False

    def _begin(self, i: int) -> int:
        return self._ends[i - 1] if i else 0
