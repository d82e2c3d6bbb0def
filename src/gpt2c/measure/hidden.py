"""The hidden states of many sequences, computed in passes that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import MAX_ROWS, PAGE_POSITIONS, EngineModel, EngineSequence

# The max number of KV cache pages of the sequences in one pass: 150 MB for GPT-2 124M. Sequences of
# 8 tokens or more fill a pass with fewer pages.
_MAX_PAGES: Final = 32


@dataclass(eq=False)
class _Fed:
    """A sequence whose ids are fed, in one pass or several."""

    ids: NDArray[np.int32]
    sequence: EngineSequence
    parts: list[NDArray[Any]] = field(default_factory=list)  # of its hidden states


def hidden_states(
    engine: EngineModel, sequences: Iterable[NDArray[np.int32]], n_blocks: int
) -> Iterator[NDArray[Any]]:
    """Yield the hidden states of each sequence of ids, [n_ids, n_embd], in order.

    A row is the residual stream at a token after the first n_blocks blocks (see
    EngineModel.hidden_states). A sequence has 1 to n_positions ids. Sequences are read lazily, as
    many as fill a pass, and their rows do not depend on one another. If reading raises an
    exception, the earlier sequences' states are yielded first.
    """
    passes = _Passes(engine, n_blocks)
    failure: Exception | None = None
    source = iter(sequences)
    try:
        while failure is None:
            try:
                ids = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            yield from passes.add(ids)
        yield from passes.run()
        if failure is not None:
            raise failure
    finally:
        failure = None  # it refers to this frame: the cycle would keep the sequences


class _Passes:
    """Fills passes of MAX_ROWS ids. Only the last sequence of a pass is continued in the next."""

    def __init__(self, engine: EngineModel, n_blocks: int) -> None:
        self._engine, self._n_blocks = engine, n_blocks
        limit = engine.cache_limit // max(engine.page_bytes, 1)
        self._max_pages = min(_MAX_PAGES, limit) if limit else _MAX_PAGES
        self._waiting: list[tuple[_Fed, NDArray[np.int32]]] = []  # what the next pass feeds
        self._n_rows = self._n_pages = 0  # of what waits

    def add(self, ids: NDArray[np.int32]) -> Iterator[NDArray[Any]]:
        """Add a sequence; run each pass that is full, and yield the finished sequences' states."""
        n_pages = -(-len(ids) // PAGE_POSITIONS)
        if self._n_pages + n_pages > self._max_pages:
            yield from self.run()
        self._n_pages += n_pages
        fed = _Fed(ids, self._engine.sequence())
        while len(ids):
            part, ids = np.split(ids, [MAX_ROWS - self._n_rows])
            self._waiting.append((fed, part))
            self._n_rows += len(part)
            if self._n_rows == MAX_ROWS:
                yield from self.run()
                self._n_pages = n_pages if len(ids) else 0

    def run(self) -> Iterator[NDArray[Any]]:
        """Feed what waits; yield the states of the sequences that have been fed to their end."""
        waiting, self._waiting = self._waiting, []
        self._n_rows = self._n_pages = 0
        if not waiting:
            return
        found = self._engine.hidden_states(
            [fed.sequence for fed, _ in waiting], [part for _, part in waiting], self._n_blocks
        )
        ends = np.cumsum([len(part) for _, part in waiting])
        finished = []
        for (fed, _), rows in zip(waiting, np.split(found, ends[:-1]), strict=True):
            fed.parts.append(rows)
            if fed.sequence.length == len(fed.ids):
                finished.append(fed)
        waiting.clear()  # frees the finished sequences
        while finished:
            yield np.concatenate(finished.pop(0).parts)
