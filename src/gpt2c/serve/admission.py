"""Admission: how much runs and waits, and the threads for calls that the scheduler does not run.

Requests beyond the limits are refused at once, with a 429, instead of waiting without bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt2c.measure.scores import Score
from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits
from gpt2c.serve.models import ServedModel

_N_SCORERS: Final = 8  # the scores of calls that wait share passes, so more threads gain little
_N_HELPERS: Final = 2  # threads that encode texts and write long answers
# Texts of one request are scored in groups of this many tokens. A request whose client has left
# ends with its group, and groups of several requests take turns.
_GROUP_TOKENS: Final = 1024

_T = TypeVar("_T")


class Admission:
    """Counts the sequences and the scoring requests of a server, and runs the latter."""

    def __init__(self, limits: Limits) -> None:
        """Begin without requests."""
        self._limits = limits
        self._n_sequences = self._n_scoring = 0
        # Encoding a prompt must not wait until texts of other requests are scored.
        self._helpers = ThreadPoolExecutor(_N_HELPERS, "gpt2c serve")
        self._scorers = ThreadPoolExecutor(_N_SCORERS, "gpt2c serve scoring")

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

    @asynccontextmanager
    async def scoring(self, n_tokens: int) -> AsyncIterator[None]:
        """Admit a request that scores or embeds texts of n_tokens, for the time of a request.

        Raises RequestError: 400 for too many tokens, 429 for too many requests, and 503 when the
        time is over.
        """
        limits = self._limits
        if n_tokens > limits.max_scored_tokens:
            raise RequestError(
                400, f"the request scores or embeds {n_tokens} tokens; this server accepts at most "
                f"{limits.max_scored_tokens} per request: send fewer texts", code="too_many_tokens",
            )  # fmt: skip
        if self._n_scoring >= limits.max_scoring:
            raise RequestError(429, "too many requests score texts; retry later", code="queue_full")
        self._n_scoring += 1
        try:
            async with asyncio.timeout(limits.request_seconds):
                yield
        except TimeoutError:
            message = f"the texts were not scored within {limits.request_seconds:g} seconds"
            raise RequestError(503, message, code="request_time") from None
        finally:
            self._n_scoring -= 1

    async def in_thread(self, call: Callable[[], _T]) -> _T:
        """Run a short call in a thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, call)

    async def _in_scorer(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._scorers, call)

    async def score(
        self,
        served: ServedModel,
        contexts: Sequence[list[int]],
        continuations: Sequence[list[int]] | None,
        n_top: int,
    ) -> list[Score]:
        """Return what GPT2.score returns for ids, or for continuations of ids."""
        scores: list[Score] = []
        for part in _groups(contexts, continuations):
            ends = None if continuations is None else list(continuations[part])
            call: Callable[[], list[Score]] = partial(
                served.model.score, list(contexts[part]), ends, top_logprobs=n_top
            )  # type: ignore[assignment]  # its overloads hide the list
            scores += await self._in_scorer(call)
        return scores

    async def embed(self, served: ServedModel, texts: Sequence[list[int]]) -> NDArray[np.float32]:
        """Return what GPT2.embed returns for lists of ids: float32 [n_texts, n_embd]."""
        vectors = [
            await self._in_scorer(partial(served.model.embed, list(texts[part])))
            for part in _groups(texts, None)
        ]
        return np.concatenate(vectors)

    def close(self) -> None:
        """Cancel what waits for a thread."""
        for threads in (self._helpers, self._scorers):
            threads.shutdown(wait=False, cancel_futures=True)


def _groups(
    contexts: Sequence[list[int]], continuations: Sequence[list[int]] | None
) -> Iterator[slice]:
    """Yield the parts of a request that are scored together, of about _GROUP_TOKENS each.

    A context that follows an equal one is computed only once, and so counts once.
    """
    begin = n_tokens = 0
    for i, context in enumerate(contexts):
        if i > begin and n_tokens >= _GROUP_TOKENS:
            yield slice(begin, i)
            begin, n_tokens = i, 0
        is_new = i == begin or context != contexts[i - 1]
        n_tokens += len(context) if is_new else 0
        n_tokens += len(continuations[i]) if continuations is not None else 0
    if begin < len(contexts):
        yield slice(begin, len(contexts))
