"""The loop that keeps the engine busy: what runs together, in what order, and what is shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import NumericalError
from gpt2c.options import INT32_MAX

if TYPE_CHECKING:
    from gpt2c.backend import EngineJob, EngineModel, EngineSequence

# Prompts that begin with so many equal tokens share them: fewer are fed sooner than copied.
SHARED_PREFIX: Final = 16
# Results that may wait for one before them, in batches: what bounds the memory of a lazy run.
_BATCHES_AHEAD: Final = 4

Result: TypeAlias = tuple[list[int], str]  # the new ids, and why they ended


@dataclass(frozen=True)
class Request:
    """One prompt, ready for the engine."""

    ids: NDArray[np.int32]
    max_new_tokens: int
    temperature: float
    top_k: int
    seed: int | None
    stop_ids: NDArray[np.int32]

    def start(self, engine: EngineModel, sequence: EngineSequence | None = None) -> EngineJob:
        """The engine's job for this prompt; sequence holds its first tokens already."""
        return engine.job(
            self.ids, self.max_new_tokens, self.temperature, self.top_k, self.seed or 0, 0,
            self.stop_ids, sequence,  # type: ignore[arg-type]
        )  # fmt: skip


def run_requests(
    engine: EngineModel, requests: Iterable[Request], batch_size: int
) -> Iterator[Result]:
    """The new ids of every request and why each ended, in the requests' order, as they come.

    At most batch_size run together; a finished one's place is taken by the next, which is asked
    for only then. Where asking raises, what runs is finished and yielded before.
    """
    batch = _Batch(engine, batch_size)
    source = iter(requests)
    failure: Exception | None = None
    is_exhausted = False
    n_yielded = 0
    while not is_exhausted or n_yielded < batch.n_added:
        while not is_exhausted and batch.has_place(n_yielded):
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


@dataclass(frozen=True)
class _Running:
    request: Request
    job: EngineJob
    head: bytes  # its first SHARED_PREFIX tokens: who has others has nothing to share

    def n_shared(self, request: Request) -> int:
        """How many tokens both prompts begin with, of those that a copy can have."""
        # A prompt's last token is fed by the run that wants its logits.
        most = min(len(request.ids) - 1, max(len(self.request.ids) - 1, self.job.sequence.length))
        return min(_common_prefix(request.ids, self.request.ids), most)


class _Batch:
    """The requests that run now, and the results that were not fetched yet."""

    def __init__(self, engine: EngineModel, size: int) -> None:
        """Nothing runs."""
        self._engine, self._size = engine, size
        self._running: dict[int, _Running] = {}
        # Those that have just ended: who takes their places may still share their tokens.
        self._ended: list[_Running] = []
        self.results: dict[int, Result] = {}
        self.n_added = 0

    def has_place(self, n_yielded: int) -> bool:
        """Whether another request can be added."""
        return (
            len(self._running) < self._size
            and self.n_added - n_yielded < _BATCHES_AHEAD * self._size
        )

    def add(self, request: Request) -> None:
        """Adds a request, which is numbered in the order of adding."""
        index = self.n_added
        if request.max_new_tokens == 0:
            self.results[index] = ([], "length")
        else:
            head = request.ids[:SHARED_PREFIX].tobytes()
            with self._engine.held():
                job = request.start(self._engine, self._shared(request, head))
            self._running[index] = _Running(request, job, head)
        self.n_added += 1

    def run(self) -> None:
        """Runs until one of the requests ends."""
        self._ended = []
        if not self._running:
            return
        with self._engine.held():
            self._engine.run([r.job for r in self._running.values()], INT32_MAX)  # type: ignore[misc]
        for index, running in list(self._running.items()):
            job = running.job
            if job.finish_reason is not None:
                check_finite(job, f"prompt {index}")
                self.results[index] = job.new_ids(), job.finish_reason
                self._ended.append(running)
                del self._running[index]

    def _shared(self, request: Request, head: bytes) -> EngineSequence | None:
        """A sequence that holds the tokens which request has in common with another, if many."""
        if len(request.ids) <= SHARED_PREFIX:
            return None
        donors = [r for r in (*self._running.values(), *self._ended) if r.head == head]
        donor = max(donors, key=lambda r: r.n_shared(request), default=None)
        if donor is None or (n := donor.n_shared(request)) < SHARED_PREFIX:
            return None
        donor.job.prefill(n)
        sequence = donor.job.sequence.copy()
        sequence.truncate(n)
        return sequence


def _common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def stream_request(engine: EngineModel, request: Request) -> Iterator[int]:
    """The new ids of one request, each as soon as it is chosen.

    Between two of them nothing runs, so a closed model ends the stream with ClosedError.
    """
    if request.max_new_tokens == 0:
        return
    job = request.start(engine)
    n_seen = 0
    while job.finish_reason is None:
        with engine.held():
            engine.run([job], 1)  # type: ignore[list-item]
        yield from job.new_ids(n_seen)
        n_seen = job.n_tokens
    check_finite(job, "the prompt")


def check_finite(job: EngineJob, where: str) -> None:
    """Raises NumericalError where a job ended because a logit was not a number."""
    if job.finish_reason == "nan":
        raise NumericalError(
            f"{where}: a logit at position {job.sequence.length} is not a number; are there NaN "
            "or infinite values in the weights?"
        )
