"""The loop that keeps the engine busy: what runs together, in what order, and what is shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT32_MAX
from gpt2c.engine.protocol import (
    SCORE_TYPE,
    TOP_TYPE,
    EngineJob,
    EngineModel,
    EngineSequence,
    Scores,
)
from gpt2c.errors import NumericalError, OptionError
from gpt2c.schedule.requests import LogitsProcessor, Request, Result
from gpt2c.schedule.stops import Watcher

# Prompts that begin with so many equal tokens share them: fewer are fed sooner than copied.
SHARED_PREFIX: Final = 16
# Results that may wait for one before them, in batches: what bounds the memory of a lazy run.
_BATCHES_AHEAD: Final = 4

R = TypeVar("R")


class Text:
    """One text that is being generated, over one or, where it slides, several contexts."""

    def __init__(
        self, engine: EngineModel, request: Request, sequence: EngineSequence | None = None
    ) -> None:
        """sequence, which is taken, holds the prompt's first tokens."""
        self._engine = engine
        self.request = request
        self.result: Result | None = None
        self.watcher = Watcher(request.stops, request.index)
        self._scores: list[Scores] = []
        self._draft_counts = (0, 0, 0)
        self._prompt_scores: Scores | None = None
        if request.scores_prompt:
            sequence, self._prompt_scores = score_prompt(engine, request)
        self.job = self._start(request.ids, request.max_new_tokens, sequence)

    def run(self) -> None:
        """Chooses one token by itself."""
        if self.request.logits_processor is None:
            self._engine.run([self.job], 1)
        else:
            self._run_processed(self.request.logits_processor)
        self.look()

    def look(self) -> None:
        """Takes up what the engine has generated, and sets `result` where the text ends."""
        job = self.job
        reason = job.finish_reason
        for id in job.new_ids(self._n_seen):
            self._n_seen += 1
            if stopped := self.watcher.push(id):
                return self._end(stopped)
        if reason is None and self.request.stops.is_late:
            return self._end("time")
        if reason in ("nan", "nothing"):
            self._fail(reason)
        if reason == "context" and self.request.slides:
            return self._slide()
        if reason is not None:
            self._end(reason, job.end_id)

    def cancel(self) -> None:
        """Makes a run in another thread return soon, perhaps without a result."""
        self.job.cancel()

    def n_shared(self, request: Request) -> int:
        """How many tokens both prompts begin with, of those that a copy can have."""
        # A prompt's last token is fed by the run that wants its logits.
        mine = self._ids
        most = min(len(request.ids) - 1, max(len(mine) - 1, self.job.sequence.length))
        return min(common_prefix(request.ids, mine), most)

    def shared(self, n: int) -> EngineSequence:
        """A sequence of its first n tokens, of those that n_shared counts."""
        self.job.prefill(n)
        sequence = self.job.sequence.copy()
        sequence.truncate(n)
        return sequence

    def _start(
        self, ids: NDArray[np.int32], max_new_tokens: int, sequence: EngineSequence | None
    ) -> EngineJob:
        r = self.request
        self._ids, self._n_seen = ids, 0
        self.head = ids[:SHARED_PREFIX].tobytes()
        plan = r.plan.after(len(self.watcher.ids))
        return self._engine.job(
            ids, max_new_tokens, plan, r.seed or 0, r.sample, r.stop_ids, r.n_top,
            sequence, r.drafts,
        )  # fmt: skip

    def _run_processed(self, process: LogitsProcessor) -> None:
        own = self.job.next_logits()
        if np.isnan(own).any():
            self._fail("nan")
        before = [*self._ids.tolist(), *self.job.new_ids()]
        logits = checked_logits(process(before, own.copy()), len(own))
        self.job.advance(logits, own)

    def _slide(self) -> None:
        """Goes on from the last half of the context, as a prompt of that would."""
        self._keep_what_is_known()
        left = self.request.max_new_tokens - len(self.watcher.ids)
        half = max(self._engine.n_positions // 2, 1)
        ids = np.concatenate([self._ids, np.array(self.job.new_ids(), dtype=np.int32)])[-half:]
        self.job = self._start(ids, left, None)

    def _keep_what_is_known(self) -> None:
        """Of the job, which ends."""
        passes, drafted, accepted = self._draft_counts
        new_passes, new_drafted, new_accepted = self.job.draft_counts
        self._draft_counts = (passes + new_passes, drafted + new_drafted, accepted + new_accepted)
        if self.request.n_top is not None:
            self._scores.append(self.job.scores())

    def _end(self, reason: str, end_id: int | None = None) -> None:
        self._keep_what_is_known()
        self.watcher.finish()
        ids, scores = self.watcher.ids, None
        if self._scores:
            tokens, top = map(np.concatenate, zip(*self._scores, strict=True))
            scores = tokens[: len(ids)], top[: len(ids)]
        self.result = Result(
            ids, reason, self.watcher.end, scores,
            self._prompt_scores, self._draft_counts, end_id=end_id,
        )  # fmt: skip

    def _fail(self, reason: str) -> NoReturn:
        fail(reason, self.request.index, len(self._ids) + self.job.n_tokens)


def fail(reason: str, index: int, position: int) -> NoReturn:
    """Says why no token can be chosen after the prompt at this index: "nan", or "nothing" left."""
    if reason == "nan":
        raise NumericalError(
            f"prompt {index}: a logit at position {position} is not a number; are there NaN or "
            "infinite values in the weights?"
        )
    raise OptionError(
        f"prompt {index}: suppress_tokens, bad_words and the other options leave no token to "
        f"choose at position {position}"
    )


def checked_logits(logits: Any, n_vocab: int) -> NDArray[np.float32]:
    """What a logits_processor returned, checked."""
    try:
        given = np.asarray(logits)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"its dtype is {given.dtype}")
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            checked = np.ascontiguousarray(given, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"logits_processor returned no array of numbers: {error}") from None
    if checked.shape != (n_vocab,):
        raise OptionError(
            f"logits_processor returned an array of shape {list(checked.shape)}; it must be "
            f"[{n_vocab}]"
        )
    if np.isnan(checked).any():
        raise OptionError("logits_processor returned a logit that is not a number")
    return checked


def run_requests(batch: Batch[R], requests: Iterable[Request]) -> Iterator[R]:
    """Every request's result, in the requests' order, as they come.

    As many run together as the batch has places; a finished one's place is taken by the next,
    which is asked for only then. Where asking raises, what runs is finished and yielded before.
    """
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


class Running(Protocol[R]):
    """What is generated of one request."""

    result: R | None
    head: bytes  # the prompt's first SHARED_PREFIX ids

    def n_shared(self, request: Request) -> int:
        """How many tokens both prompts begin with, of those that a copy can have."""

    def shared(self, n: int) -> EngineSequence:
        """A sequence of its first n tokens, of those that n_shared counts."""


class Batch(ABC, Generic[R]):
    """The requests that run now, and the results that were not fetched yet."""

    def __init__(self, engine: EngineModel, size: int) -> None:
        """Nothing runs."""
        self._engine, self._size = engine, size
        self._running: dict[int, Running[R]] = {}
        # Those that have just ended: who takes their places may still share their tokens.
        self._ended: list[Running[R]] = []
        self.results: dict[int, R] = {}
        self.n_added = 0

    @abstractmethod
    def _at_once(self, request: Request) -> R | None:
        """The result of a request for which no token has to be generated."""

    @abstractmethod
    def _start(self, request: Request, sequence: EngineSequence | None) -> Running[R]:
        """Begins a request; sequence, which is taken, holds the prompt's first tokens."""

    @abstractmethod
    def _advance(self, running: list[Any]) -> None:
        """Runs until one of them ends, or one step."""

    def has_place(self, n_yielded: int) -> bool:
        """Whether another request can be added."""
        return (
            len(self._running) < self._size
            and self.n_added - n_yielded < _BATCHES_AHEAD * self._size
        )

    def add(self, request: Request) -> None:
        """Adds a request, which is numbered in the order of adding."""
        number = self.n_added
        if (result := self._at_once(request)) is not None:
            self.results[number] = result
        else:
            with self._engine.held():
                self._running[number] = self._start(request, self._shared(request))
        self.n_added += 1

    def run(self) -> None:
        """Runs until one of the requests ends, or, where each token is looked at, one step."""
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

    def _shared(self, request: Request) -> EngineSequence | None:
        """A sequence that holds the tokens which request has in common with another, if many."""
        if len(request.ids) <= SHARED_PREFIX or request.scores_prompt:
            return None
        head = request.ids[:SHARED_PREFIX].tobytes()
        donors = [t for t in (*self._running.values(), *self._ended) if t.head == head]
        donor = max(donors, key=lambda running: running.n_shared(request), default=None)
        if donor is None or (n := donor.n_shared(request)) < SHARED_PREFIX:
            return None
        return donor.shared(n)


class TextBatch(Batch[Result]):
    """Texts that are greedy or drawn."""

    def _at_once(self, request: Request) -> Result | None:
        return at_once(self._engine, request)

    def _start(self, request: Request, sequence: EngineSequence | None) -> Text:
        return Text(self._engine, request, sequence)

    def _advance(self, running: list[Text]) -> None:
        if any(text.request.logits_processor for text in running):
            for text in running:
                text.run()
            return
        n_steps = 1 if any(text.request.stops.are_watched for text in running) else INT32_MAX
        self._engine.run([text.job for text in running], n_steps)
        for text in running:
            text.look()


def at_once(engine: EngineModel, request: Request) -> Result | None:
    """The result of a request for which no token has to be generated."""
    if request.max_new_tokens and not request.stops.is_late:
        return None
    reason = "time" if request.max_new_tokens else "length"
    if request.n_top is None:
        return Result([], reason)
    none = empty_scores(request.n_top)
    scores = None
    if request.scores_prompt and not request.stops.is_late:
        scores = score_prompt(engine, request)[1]
    return Result([], reason, scores=none, prompt_scores=scores)


def empty_scores(n_top: int) -> Scores:
    """Those of no tokens."""
    return np.empty(0, dtype=SCORE_TYPE), np.empty((0, n_top), dtype=TOP_TYPE)


def score_prompt(
    engine: EngineModel, request: Request
) -> tuple[EngineSequence | None, Scores | None]:
    """A sequence that holds all of the prompt but its last token, and the scores of all but the

    first; None for a prompt of one token.
    """
    ids = request.ids
    if len(ids) < 2:
        return None, None
    with engine.held():
        sequence = engine.sequence()
        scores = engine.score([sequence], [ids[:-1]], [ids[1:]], request.n_top or 0)
    return sequence, scores


def common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many ids both begin with."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
