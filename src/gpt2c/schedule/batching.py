"""Continuous batching: which requests run together, in what order, and which prompts share pages.

A batch has `size` slots. A request takes a slot, runs until its sequence ends, and frees the slot
for the next request. Results are yielded in the order of the requests, so a result waits for the
results of earlier requests. While _BATCHES_AHEAD * size requests are begun but not yielded, no new
request begins: this limits the memory of results that wait for a slow request.

Prompts that begin with the same tokens share their KV cache. A new request is compared with the
requests that run, with those that ended in the last step, and with the prefix cache
(prefix_cache.py). The one with the longest shared prefix is the donor. If the donor is running and
has not fed the whole prefix yet, it feeds the rest now. A copy of the donor's sequence, cut to the
prefix, becomes the sequence of the new request. The two sequences share pages until one of them
writes. The last token of the new prompt is never shared, because the new request needs the logits
after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from gpt2c.checks.options import INT32_MAX
from gpt2c.engine.protocol import EngineModel, EngineSequence
from gpt2c.schedule.continuation import Continuation, immediate_result
from gpt2c.schedule.prefix_cache import MIN_SHARED_PREFIX, PrefixCache
from gpt2c.schedule.requests import Request, Result

# The max number of requests that are begun but not yielded, in multiples of the batch size.
_BATCHES_AHEAD: Final = 4

R = TypeVar("R")


def run_requests(batch: Batch[R], requests: Iterable[Request]) -> Iterator[R]:
    """Yield the results in the order of the requests, each as soon as possible.

    The next request is taken from `requests` only when a slot is free. If `requests`
    raises an exception, the requests before it are finished and yielded first.
    """
    source = iter(requests)
    failure: Exception | None = None
    is_exhausted = False
    n_yielded = 0
    try:
        while not is_exhausted or n_yielded < batch.n_added:
            while not is_exhausted and batch.has_free_slot(n_yielded):
                try:
                    batch.add(next(source))
                except StopIteration:
                    is_exhausted = True
                except Exception as error:
                    is_exhausted, failure = True, error
            batch.run()
            while n_yielded in batch.results:
                yield batch.results.pop(n_yielded)
                n_yielded += 1
        if failure is not None:
            raise failure
    finally:
        # The traceback of `failure` refers to this frame, and so to the batch. If another error
        # ended the call, the cycle would keep the KV cache until the garbage collector runs.
        failure = None


class RunningRequest(Protocol[R]):
    """A request that runs: a continuation or a beam search."""

    result: R | None
    prefix_key: bytes  # the first MIN_SHARED_PREFIX ids; equal in requests that share a prefix

    def shared_length(self, request: Request) -> int:
        """Return the length of the prefix that a request can copy."""

    def copy_prefix(self, n: int) -> EngineSequence | None:
        """Return a sequence of the first n tokens; n must not exceed shared_length(request).

        Return None to let the request feed its whole prompt.
        """


class Batch(ABC, Generic[R]):
    """Requests that run together, and results that are not yielded yet, both by number."""

    def __init__(self, engine: EngineModel, prefixes: PrefixCache, size: int) -> None:
        """Make an empty batch; at most `size` requests run together."""
        self._engine, self._prefixes, self._size = engine, prefixes, size
        self._running: dict[int, RunningRequest[R]] = {}
        # The requests that ended in the last step; new requests may still copy their prefixes.
        self._ended: list[RunningRequest[R]] = []
        self.results: dict[int, R] = {}
        self.n_added = 0

    @abstractmethod
    def _immediate_result(self, request: Request) -> R | None:
        """Return the result of a request that needs no new token; None for others."""

    @abstractmethod
    def _start(self, request: Request, sequence: EngineSequence | None) -> RunningRequest[R]:
        """Begin a request. It takes over `sequence`, which holds the prompt's first tokens."""

    @abstractmethod
    def _advance(self, running: list[Any]) -> None:
        """Run these requests for one step, or until one of them ends."""

    def has_free_slot(self, n_yielded: int) -> bool:
        """Whether another request may begin, if n_yielded results were yielded."""
        return (
            len(self._running) < self._size
            and self.n_added - n_yielded < _BATCHES_AHEAD * self._size
        )

    def add(self, request: Request) -> None:
        """Begin a request. The requests are numbered in the order of these calls."""
        number = self.n_added
        if (result := self._immediate_result(request)) is not None:
            self.results[number] = result
        else:
            with self._engine.held():
                self._running[number] = self._start(request, self._shared_prefix(request))
        self.n_added += 1

    def run(self) -> None:
        """Run for one step, or until a request ends; move finished requests to `results`."""
        self._ended = []
        if not self._running:
            return
        with self._engine.held():
            self._advance(list(self._running.values()))
        for number, running in list(self._running.items()):
            if running.result is not None:
                self.results[number] = running.result
                self._ended.append(running)
                del self._running[number]

    def _shared_prefix(self, request: Request) -> EngineSequence | None:
        """Return a sequence of the longest shared prefix; None if it is too short to share."""
        if len(request.ids) <= MIN_SHARED_PREFIX or request.scores_prompt:
            return None
        key = request.ids[:MIN_SHARED_PREFIX].tobytes()
        donors = [r for r in (*self._running.values(), *self._ended) if r.prefix_key == key]
        donor = max(donors, key=lambda running: running.shared_length(request), default=None)
        n = 0 if donor is None else donor.shared_length(request)
        if (sequence := self._prefixes.copy_longest(request.ids, longer_than=n)) is not None:
            return sequence
        return None if donor is None or n < MIN_SHARED_PREFIX else donor.copy_prefix(n)


class ContinuationBatch(Batch[Result]):
    """A batch of greedy or sampled sequences."""

    def _immediate_result(self, request: Request) -> Result | None:
        return immediate_result(self._engine, request)

    def _start(self, request: Request, sequence: EngineSequence | None) -> Continuation:
        return Continuation(self._engine, self._prefixes, request, sequence)

    def _advance(self, running: list[Continuation]) -> None:
        if any(each.request.logits_processor for each in running):
            for each in running:
                each.step()
            return
        n_steps = 1 if any(r.request.stops.need_every_token for r in running) else INT32_MAX
        self._engine.run([each.job for each in running], n_steps)
        for each in running:
            each.collect()
