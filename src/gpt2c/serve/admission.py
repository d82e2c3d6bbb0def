"""Admission: how much runs and waits, and the threads for calls that the scheduler does not run.

Requests beyond the limits are refused at once, with a 429, instead of waiting without bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from gpt2c.measure.scores import Score
from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits
from gpt2c.serve.models import ServedModel

_N_THREADS: Final = 8  # the scores of calls that wait share passes, so more threads gain little
# Texts of one request are scored in groups of this many tokens. A request whose client has left
# ends with its group.
_GROUP_TOKENS: Final = 8192

_T = TypeVar("_T")


class Admission:
    """Counts the sequences and the scoring requests of a server, and runs the latter."""

    def __init__(self, limits: Limits) -> None:
        """Begin without requests."""
        self._limits = limits
        self._n_sequences = self._n_scoring = 0
        self._threads = ThreadPoolExecutor(_N_THREADS, "gpt2c serve")

    @property
    def is_idle(self) -> bool:
        """Whether nothing is generated or scored."""
        return not (self._n_sequences or self._n_scoring)

    @contextmanager
    def sequences(self, n: int) -> Iterator[None]:
        """Admit n sequences to generate. Raises RequestError, 400 if they can never be admitted."""
        limit = self._limits.max_running + self._limits.max_queued
        if n > limit:
            raise RequestError(
                400, f"the request asks for {n} texts; this server runs and queues at most "
                f"{limit}: lower the number of prompts, n or best_of", code="too_many_texts",
            )  # fmt: skip
        if self._n_sequences + n > limit:
            raise RequestError(429, "the queue is full; retry later", code="queue_full")
        self._n_sequences += n
        try:
            yield
        finally:
            self._n_sequences -= n

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Admit a request that scores or embeds texts. Raises RequestError (429)."""
        if self._n_scoring >= self._limits.max_scoring:
            raise RequestError(429, "too many requests score texts; retry later", code="queue_full")
        self._n_scoring += 1
        try:
            yield
        finally:
            self._n_scoring -= 1

    async def in_thread(self, call: Callable[[], _T]) -> _T:
        """Run a call in a thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def score(
        self,
        served: ServedModel,
        contexts: Sequence[list[int]],
        continuations: Sequence[list[int]] | None,
        n_top: int,
    ) -> list[Score]:
        """Return what GPT2.score returns for ids, or for continuations of ids."""
        scores: list[Score] = []
        begin = 0
        while begin < len(contexts):
            end, n_tokens = begin, 0
            while end < len(contexts) and (end == begin or n_tokens < _GROUP_TOKENS):
                n_tokens += len(contexts[end]) + len(continuations[end] if continuations else [])
                end += 1
            part = slice(begin, end)
            ends = None if continuations is None else list(continuations[part])
            call: Callable[[], list[Score]] = partial(
                served.model.score, list(contexts[part]), ends, top_logprobs=n_top
            )  # type: ignore[assignment]  # its overloads hide the list
            scores += await self.in_thread(call)
            begin = end
        return scores

    def close(self) -> None:
        """Cancel what waits for a thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)
