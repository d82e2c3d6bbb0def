"""A sequence that the user feeds step by step, with its KV cache."""

from __future__ import annotations

from contextlib import suppress
from threading import RLock
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag, integer, is_integer
from gpt2c.engine.protocol import EngineModel, EngineSequence
from gpt2c.errors import ContextError, OptionError, OptionTypeError
from gpt2c.files import IS_WINDOWS
from gpt2c.forks import SLICE_SECONDS, ProcessLock
from gpt2c.generate.prompts import Ids, check_ids


class Session:
    """The tokens fed so far, and their KV cache; :meth:`GPT2.session` makes one.

    Threads may share a session: its calls run one at a time. Copies are independent.
    """

    def __init__(self, engine: EngineModel) -> None:
        """Make an empty session."""
        self._engine = engine
        self._sequence: EngineSequence = engine.sequence()
        # The ids that were fed, but only the first `self._sequence.length` of them: after an error
        # or Ctrl-C the list may have more ids, which are not in the cache.
        self._fed: list[int] = []
        self._call_lock = ProcessLock(RLock)  # held during a call; see _turn

    def _turn(self) -> RLock:
        """Return the lock that a call holds, to use in a with statement.

        Another thread's call may take long. On Windows, Ctrl-C cannot interrupt waiting for a lock,
        so wait here first, in slices.
        """
        lock = self._call_lock.lock
        if IS_WINDOWS:
            try:
                while not lock.acquire(timeout=SLICE_SECONDS):
                    pass
            finally:
                with suppress(RuntimeError):  # interrupted before the lock was acquired
                    lock.release()
        return lock

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens fed so far."""
        return self._fed[: self._sequence.length]

    def __len__(self) -> int:
        """The number of tokens fed so far."""
        return self._sequence.length

    def feed(self, ids: int | Ids, *, all: bool = False) -> NDArray[np.float32]:
        """Feed ids after the ids fed before; return the logits of the next token.

        The logits are float32 [n_vocab]; with all=True [n, n_vocab], row i being the logits after
        ids[i]. Feeding ids in parts or one by one gives the same bits. An error leaves the session
        unchanged.

        Raises OptionError if an id is not in the vocabulary, or if ids is empty and all is False;
        OptionTypeError if an id is not an integer; ContextError if fewer than n positions are left;
        CacheMemoryError; and ClosedError.
        """
        self._engine.check_open()
        all = flag("all", all)
        if is_integer(ids):
            ids = [ids]  # type: ignore[list-item]
        checked = check_ids(ids, self._engine.n_vocab, "feed")
        n, n_positions = len(checked), self._engine.n_positions
        if n == 0 and not all:
            raise OptionError("feed: ids is empty; expected at least one id, or all=True")
        with self._turn():
            length = self._sequence.length
            if length + n > n_positions:
                raise ContextError(
                    f"feed: {n} tokens after {length} do not fit in the context of "
                    f"{n_positions} positions"
                )
            if n == 0:
                return np.empty((0, self._engine.n_vocab), dtype=np.float32)
            self._fed[length:] = checked.tolist()
            logits = self._sequence.feed(checked, n if all else 1)
        return logits if all else logits[0]

    def rollback(self, n: int) -> None:
        """Remove the last n tokens; the next tokens fed take their place.

        Raises OptionError if fewer than n tokens were fed, and OptionTypeError if n is not an
        integer.
        """
        with self._turn():
            length = self._sequence.length
            self._sequence.truncate(length - integer("n", n, 0, length))

    def copy(self) -> Session:
        """Return a session with the same tokens. The two share cache pages until one writes."""
        with self._turn():
            other = object.__new__(Session)
            other._engine = self._engine
            other._sequence = self._sequence.copy()
            other._fed = self.ids
            other._call_lock = ProcessLock(RLock)
            return other

    def __copy__(self) -> Session:
        """The same as copy()."""
        return self.copy()

    def __deepcopy__(self, memo: object) -> Session:
        """The same as copy(), because shared pages are copied before they are written."""
        return self.copy()

    def __reduce__(self) -> NoReturn:
        """Raise OptionTypeError: a session cannot be pickled, but its ids can."""
        raise OptionTypeError("a session cannot be pickled; keep its ids and feed them again")

    def __repr__(self) -> str:
        """The number of tokens and positions."""
        return f"<gpt2c.Session: {len(self)} of {self._engine.n_positions} positions>"
