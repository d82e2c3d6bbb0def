"""A sequence that is fed step by step, with its cache."""

from __future__ import annotations

from threading import RLock
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag, integer, is_integer
from gpt2c.engine.protocol import EngineModel, EngineSequence
from gpt2c.errors import ContextError, OptionError, OptionTypeError
from gpt2c.forks import ProcessLock
from gpt2c.generate.prompts import Ids, check_ids


class Session:
    """Tokens fed so far, and their keys and values.

    Made by :meth:`GPT2.session`. Threads that share a session take turns, call by
    call; copies are independent.
    """

    def __init__(self, engine: EngineModel) -> None:
        """An empty session."""
        self._engine = engine
        self._sequence: EngineSequence = engine.sequence()
        # What was fed and, after an error or Ctrl-C, perhaps more: the engine's length decides, so
        # that an interrupt between two statements cannot part the ids from the cache.
        self._fed: list[int] = []
        self._turns = ProcessLock(RLock)  # which makes threads take turns

    @property
    def ids(self) -> list[int]:
        """The tokens fed so far."""
        return self._fed[: self._sequence.length]

    def __len__(self) -> int:
        """How many tokens were fed."""
        return self._sequence.length

    def feed(self, ids: int | Ids, *, all: bool = False) -> NDArray[np.float32]:
        """Feeds ids after what was fed before.

        Returns float32 [n_vocab], the logits of the token that follows, or with all=True
        [n, n_vocab], those after each of the n ids. Fed whole, in parts or one by one, the bits
        are the same. An error leaves the session as it was.

        Raises OptionError where there is no id or one is not in the vocabulary, ContextError where
        they are more than the positions left.
        """
        self._engine.check_open()
        all = flag("all", all)
        if is_integer(ids):
            ids = [ids]  # type: ignore[list-item]
        checked = check_ids(ids, self._engine.n_vocab, "feed")
        n, n_positions = len(checked), self._engine.n_positions
        if n == 0 and not all:
            raise OptionError("feed: there is no id to feed")
        with self._turns.lock:
            length = self._sequence.length
            if length + n > n_positions:
                raise ContextError(
                    f"feed: {n} tokens after {length} are more than the context's "
                    f"{n_positions} positions"
                )
            if n == 0:
                return np.empty((0, self._engine.n_vocab), dtype=np.float32)
            self._fed[length:] = checked.tolist()
            logits = self._sequence.feed(checked, n if all else 1)
        return logits if all else logits[0]

    def rollback(self, n: int) -> None:
        """Forgets the last n tokens.

        Raises OptionError where fewer were fed.
        """
        with self._turns.lock:
            length = self._sequence.length
            self._sequence.truncate(length - integer("n", n, 0, length))

    def copy(self) -> Session:
        """A session with the same tokens, which shares cache pages until one of the two writes."""
        with self._turns.lock:
            other = object.__new__(Session)
            other._engine = self._engine
            other._sequence = self._sequence.copy()
            other._fed = self.ids
            other._turns = ProcessLock(RLock)
            return other

    def __copy__(self) -> Session:
        """The same as copy()."""
        return self.copy()

    def __deepcopy__(self, memo: object) -> Session:
        """The same as copy(): pages that are shared are never written."""
        return self.copy()

    def __reduce__(self) -> NoReturn:
        """A session is not pickled; its ids are what to keep."""
        raise OptionTypeError("a session cannot be pickled; keep its ids and feed them again")

    def __repr__(self) -> str:
        """How full it is."""
        return f"<gpt2c.Session: {len(self)} of {self._engine.n_positions} positions>"
