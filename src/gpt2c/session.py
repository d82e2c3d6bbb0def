"""A sequence that is fed step by step, with its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import ContextError, OptionError
from gpt2c.generation import Ids, check_ids, integer

if TYPE_CHECKING:
    from gpt2c.backend import EngineModel, EngineSequence


class Session:
    """Tokens fed so far, and their keys and values.

    Made by :meth:`GPT2.session`. A session belongs to one thread at a time; copies are independent.
    """

    def __init__(self, engine: EngineModel) -> None:
        """An empty session."""
        self._engine = engine
        self._sequence: EngineSequence = engine.sequence()
        self._ids: list[int] = []

    @property
    def ids(self) -> list[int]:
        """The tokens fed so far."""
        return list(self._ids)

    def __len__(self) -> int:
        """How many tokens were fed."""
        return len(self._ids)

    def feed(self, ids: int | Ids, *, all: bool = False) -> NDArray[np.float32]:
        """Feeds ids after what was fed before.

        Returns float32 [n_vocab], the logits of the token that follows, or with all=True
        [n, n_vocab], those after each of the n ids. Fed whole, in parts or one by one, the bits
        are the same. An error leaves the session as it was.

        Raises OptionError where there is no id or one is not in the vocabulary, ContextError where
        they are more than the positions left.
        """
        if isinstance(ids, int | np.integer) and not isinstance(ids, bool):
            ids = [int(ids)]
        checked = check_ids(ids, self._engine.n_vocab, "feed")
        n, n_positions = len(checked), self._engine.n_positions
        if len(self._ids) + n > n_positions:
            raise ContextError(
                f"feed: {n} tokens after {len(self._ids)} are more than the context's "
                f"{n_positions} positions"
            )
        if n == 0:
            if not all:
                raise OptionError("feed: there is no id to feed")
            return np.empty((0, self._engine.n_vocab), dtype=np.float32)
        logits = self._sequence.feed(checked, n if all else 1)
        self._ids += checked.tolist()
        return logits if all else logits[0]

    def rollback(self, n: int) -> None:
        """Forgets the last n tokens.

        Raises OptionError where fewer were fed.
        """
        kept = len(self._ids) - integer("n", n, 0, len(self._ids))
        self._sequence.truncate(kept)
        del self._ids[kept:]

    def copy(self) -> Session:
        """A session with the same tokens, which shares cache pages until one of the two writes."""
        other = object.__new__(Session)
        other._engine = self._engine
        other._sequence = self._sequence.copy()
        other._ids = list(self._ids)
        return other

    def __repr__(self) -> str:
        """How full it is."""
        return f"<gpt2c.Session: {len(self._ids)} of {self._engine.n_positions} positions>"
