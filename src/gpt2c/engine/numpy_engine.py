"""The engine interface on the NumPy oracle: ``backend="numpy"``.

It runs where the compiled engine cannot, with the same options, and with the same results up to
rounding. gpt2c.engine.protocol describes its classes and methods.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Collection
from threading import Condition, Lock, local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.engine.memory import cache_full
from gpt2c.engine.protocol import (
    ALLOWED_IDS,
    MODEL_POINTS,
    NO_MEASURES,
    PAGE_POSITIONS,
    AllowedIds,
    DraftSettings,
    EngineJob,
    EngineSequence,
    MeasuredScores,
    Measures,
    OnActivation,
    Plan,
    Scores,
    unpack_allowed_ids,
)
from gpt2c.errors import (
    CacheMemoryError,
    ClosedError,
    ContextError,
    ForkError,
    OptionError,
)
from gpt2c.living import Living
from gpt2c.oracle.reference import Past, Visit, gpt2
from gpt2c.oracle.sampling import Sampler
from gpt2c.oracle.scoring import log_probabilities, measured_values, token_scores

SCORE_ROWS = 48  # rows of logits that `score` holds in memory at a time


class _Weights(dict[str, NDArray[Any]]):
    """Tensors by name, in a dict that allows weak references."""


class Model:
    """See EngineModel. The weights are NumPy arrays.

    The weights live as long as something refers to them: the model until `close`, a hold, or a
    running call. References replace a lock, which an interrupt could leave locked.
    """

    isa = "numpy"
    n_threads = 1  # NumPy's BLAS may use more

    def __init__(self, config: GPT2Config, dtype: str = "float32") -> None:
        """Set all weights to zero; `load` fills them."""
        self.config = config
        self.dtype = dtype
        self.n_vocab = config.vocab_size
        self.n_positions = config.n_positions
        self.n_embd = config.n_embd
        self.n_layer = config.n_layer
        self.token_bytes = 2 * config.n_layer * config.n_embd * np.dtype(dtype).itemsize
        self.cache_limit = 0
        self.reclaim: Callable[[], bool] | None = None
        self.sequences: Living[Sequence] = Living()
        weights = _Weights(
            {name: np.zeros(shape, dtype) for name, shape in tensor_shapes(config).items()}
        )
        self._weights_until_close: _Weights | None = weights
        self._weights_reference = weakref.ref(weights)
        self._threads = local()  # .hold: a weak reference to the thread's outermost hold

    @property
    def weights(self) -> _Weights:
        """The weights. Raises ClosedError if the model is closed and nothing holds it."""
        weights = self._weights_reference()
        if weights is None:
            raise ClosedError("the model was closed")
        return weights

    def store_as(self, dtypes: dict[str, str]) -> None:
        """Do nothing, because this engine stores all weights in one dtype."""

    def change_stored_dtype(self, name: str, dtype: str) -> None:
        """Do nothing, as store_as does."""

    def stored_dtype(self, name: str) -> str:
        """See EngineModel.stored_dtype."""
        return self.weights[name].dtype.name

    def load(self, name: str, rows: NDArray[np.float32], begin: int) -> bool:
        """See EngineModel.load."""
        weight = self.weights[name]
        weight.reshape(-1, weight.shape[-1])[begin : begin + len(rows)] = rows
        return True

    def read(self, name: str, rows: NDArray[np.float32], begin: int) -> None:
        """See EngineModel.read."""
        with self.held():
            weight = self.weights[name]
            rows[:] = weight.reshape(-1, weight.shape[-1])[begin : begin + len(rows)]

    @property
    def n_bytes(self) -> int:
        """See EngineModel.n_bytes."""
        weights = self._weights_reference()
        return sum(weight.nbytes for weight in weights.values()) if weights is not None else 0

    @property
    def draft_bytes(self) -> int:
        """0, because this engine does not draft."""
        return 0

    @property
    def page_bytes(self) -> int:
        """See EngineModel.page_bytes."""
        return 0 if self._weights_reference() is None else PAGE_POSITIONS * self.token_bytes

    @property
    def cache_bytes(self) -> int:
        """See EngineModel.cache_bytes."""
        return 0 if self._weights_reference() is None else self.cache_bytes_without(None)

    def cache_bytes_without(self, left_out: Sequence | None) -> int:
        """Return the bytes of the keys and values of all sequences except `left_out`.

        Arrays that several sequences share count once.
        """
        sizes: dict[int, int] = {}
        for sequence in self.sequences:
            if sequence is not left_out and sequence.length:
                key = sequence.key_array_id()
                sizes[key] = max(sizes.get(key, 0), sequence.length)
        return sum(sizes.values()) * self.token_bytes

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Raise OptionError, because this engine does not pack weights."""
        raise OptionError(f"{name}: the engine does not pack this tensor")

    def stream_rate(self) -> float:
        """Return NaN, because only the compiled engine measures the machine's limits."""
        return math.nan

    def multiply_add_rate(self) -> float:
        """Return NaN, as stream_rate does."""
        return math.nan

    def sequence(self) -> Sequence:
        """See EngineModel.sequence."""
        if self._outer_hold() is None:
            self.check_open()
        return Sequence(self)

    def job(
        self,
        ids: NDArray[np.int32],
        max_new_tokens: int,
        plan: Plan,
        seed: int,
        sample: int,
        stop_ids: NDArray[np.int32],
        n_top: int | None = None,
        sequence: EngineSequence | None = None,
        drafts: DraftSettings | None = None,
    ) -> Job:
        """See EngineModel.job. Drafts are ignored: they never change a result."""
        _check_mask(plan, self.n_vocab)
        sampler = Sampler(plan, seed, sample, len(ids))
        stops = frozenset(stop_ids.tolist())
        return Job(
            ids,
            max_new_tokens,
            sampler,
            stops,
            n_top,
            sequence or self.sequence(),
            self.n_positions,
            self.n_vocab,
        )

    def run(self, jobs: list[EngineJob], max_steps: int) -> None:
        """See EngineModel.run."""
        numpy_jobs = [job for job in jobs if isinstance(job, Job)]
        if len(numpy_jobs) != len(jobs):
            raise OptionError("run takes only jobs of the NumPy engine")
        for _ in range(max_steps):
            for job in numpy_jobs:
                job.step()
            if any(job.finish_reason or job.cancelled for job in numpy_jobs):
                return

    def shared_waiter(self) -> SharedWaiter:
        """See EngineModel.shared_waiter."""
        return SharedWaiter(self)

    def score(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
    ) -> Scores:
        """See EngineModel.score."""
        scores, top, _ = self.measure(sequences, ids, targets, n_top, NO_MEASURES, [])
        return scores, top

    def measure(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
        measures: Measures,
        others: list[EngineSequence],
    ) -> MeasuredScores:
        """See EngineModel.measure."""
        no_logits = np.empty((0, self.n_vocab))
        none = token_scores(no_logits, np.empty(0, dtype=int), n_top)
        parts = [(*none, np.empty((0, measures.n_values), dtype=np.float32))]
        for index, (fed, scored) in enumerate(zip(ids, targets, strict=True)):
            fed_sequences = [sequences[index], *others[index : index + 1]]
            n_unscored = len(fed) - len(scored)
            for sequence in fed_sequences:
                if n_unscored:
                    sequence.feed(fed[:n_unscored], 0)
            # Feed in chunks, because the logits of all rows would take too much memory.
            for begin in range(0, len(scored), SCORE_ROWS):
                rows = slice(begin, begin + SCORE_ROWS)
                fed_rows, n = fed[n_unscored:][rows], len(scored[rows])
                logits, *other_logits = (sequence.feed(fed_rows, n) for sequence in fed_sequences)
                values = measured_values(logits, measures, scored[rows], *other_logits)
                parts.append((*token_scores(logits, scored[rows], n_top), values))
        scores, top, all_values = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(top), np.concatenate(all_values)

    def top_log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_top: int
    ) -> NDArray[np.void]:
        """See EngineModel.top_log_probs."""
        logits = self._last_logits(sequences, ids)
        scores, top = token_scores(logits, np.zeros(len(ids), dtype=int), n_top)
        top["log_prob"][np.isnan(scores["log_prob"])] = np.nan
        return top

    def log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        """See EngineModel.log_probs."""
        return log_probabilities(self._last_logits(sequences, ids)).astype(np.float32)

    def _last_logits(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        fed = [s.feed(part, 1) for s, part in zip(sequences, ids, strict=True)]
        return np.concatenate(fed)

    def hidden_states(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_blocks: int
    ) -> NDArray[Any]:
        """See EngineModel.hidden_states. All blocks run."""
        wanted = {0: "embed", self.n_layer: "ln_f"}.get(n_blocks, f"h.{n_blocks - 1}.resid_post")
        rows: list[NDArray[Any]] = []

        def visit(name: str, value: NDArray[Any]) -> None:
            if name == wanted:
                rows.append(value.copy())

        for sequence, part in zip(sequences, ids, strict=True):
            if not isinstance(sequence, Sequence):
                raise OptionError("hidden_states takes only sequences of the NumPy engine")
            sequence.feed(part, 0, visit)
        return np.concatenate(rows)

    def apply_stages(
        self,
        plan: Plan,
        logits: NDArray[np.float32],
        ids: NDArray[np.int32],
        new_ids: NDArray[np.int32],
        seed: int = 0,
        sample: int = 0,
    ) -> NDArray[np.float32]:
        """See EngineModel.apply_stages."""
        _check_mask(plan, self.n_vocab)
        sampler = Sampler(plan, seed, sample, len(ids))
        processed = sampler.apply(logits, [*ids.tolist(), *new_ids.tolist()])
        return processed.astype(np.float32)

    def forward(
        self,
        ids: NDArray[np.int32],
        locations: Collection[tuple[str, int]],
        logit_rows: NDArray[np.bool_],
        on_activation: OnActivation,
    ) -> NDArray[np.float32]:
        """See EngineModel.forward."""
        by_name = {_oracle_name(point, block): (point, block) for point, block in locations}
        n = len(ids)

        def visit(name: str, value: NDArray[Any]) -> None:
            if name not in by_name:
                return
            point, block = by_name[name]
            if point in ("q", "k", "v"):
                rows = value.swapaxes(0, 1).reshape(n, -1)  # [n, n_head * head_dim]
                on_activation(point, block, rows)
                value[:] = rows.reshape(n, *value.shape[::2]).swapaxes(0, 1)
            elif point in ("scores", "probs"):
                on_activation(point, block, value.reshape(-1, n))
            elif point == "logits":
                rows = value[logit_rows]
                on_activation(point, block, rows)
                value[logit_rows] = rows
            else:
                on_activation(point, block, value)

        with self.held(), np.errstate(over="ignore", invalid="ignore"):
            try:
                logits = gpt2(ids, self.weights, self.config, visit=visit)
            except MemoryError as error:
                raise CacheMemoryError(f"not enough memory for {n} tokens ({error})") from None
        return logits[logit_rows].astype(np.float32)

    def held(self) -> _Hold:
        """See EngineModel.held."""
        outer = self._outer_hold()
        weights = self._weights_until_close if outer is None else outer.weights
        if weights is None:
            raise ClosedError("the model was closed")
        hold = _Hold(weights)
        if outer is None:
            self._threads.hold = weakref.ref(hold)
        return hold

    def _outer_hold(self) -> _Hold | None:
        """Return the hold of this thread's outermost `held` block, or None."""
        reference = getattr(self._threads, "hold", None)
        hold = reference() if reference is not None else None
        return None if hold is None or hold.weights is None else hold

    def close(self) -> None:
        """See EngineModel.close."""
        self._weights_until_close = None

    def check_open(self) -> None:
        """See EngineModel.check_open."""
        if self._weights_until_close is None:
            raise ClosedError("the model was closed")


class _Hold:
    """A context manager that keeps the weights alive, by a reference, until the block ends."""

    def __init__(self, weights: _Weights) -> None:
        self.weights: _Weights | None = weights

    def __enter__(self) -> None:
        """Do nothing: the reference exists already, so an interrupt here does no harm."""

    def __exit__(self, *error: object) -> None:
        self.weights = None


def _oracle_name(point: str, block: int) -> str:
    """Return gpt2c.oracle.reference's name for a point."""
    return point if point in MODEL_POINTS else f"h.{block}.{point}"


def _check_mask(plan: Plan, n_vocab: int) -> None:
    """Raise OptionError if the plan's mask of allowed ids does not fit the vocabulary."""
    for stage in plan.stages:
        if stage.name == ALLOWED_IDS:
            unpack_allowed_ids(stage.ids, n_vocab)


class Sequence:
    """See EngineSequence."""

    def __init__(self, model: Model) -> None:
        """Make an empty sequence."""
        self.model = model
        self.length = 0
        self.past: Past = []
        model.sequences.add(self)

    def key_array_id(self) -> int:
        """Return a number: equal for sequences that share arrays, 0 for an empty sequence.

        Copies share arrays until one of them is fed.
        """
        if not self.past:
            return 0
        keys = self.past[0][0]
        return id(keys if keys.base is None else keys.base)

    def feed(
        self, ids: NDArray[np.int32], n_logits: int, visit: Visit = lambda name, value: None
    ) -> NDArray[np.float32]:
        """See EngineSequence.feed. `visit` gets the activations; see oracle.reference.gpt2."""
        model = self.model
        n = len(ids)
        if n == 0:
            raise OptionError("feed takes at least one token; found 0")
        if self.length + n > model.n_positions:
            raise ContextError(
                f"feeding {n} tokens after {self.length}: the context has {model.n_positions} "
                "positions"
            )
        if ids.min() < 0 or ids.max() >= model.n_vocab:
            raise OptionError(
                f"token ids must be from 0 to {model.n_vocab - 1}; found {ids.min()} to {ids.max()}"
            )
        own_bytes = (self.length + n) * model.token_bytes
        while model.cache_bytes_without(self) + own_bytes > model.cache_limit > 0:
            if model.reclaim is None or not model.reclaim():
                raise CacheMemoryError(
                    cache_full(f"feeding {n} tokens after {self.length}", model.cache_limit)
                )
        # Extend a copy of the list, so an interrupted call leaves the sequence as it was.
        past = list(self.past)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                logits = gpt2(ids, model.weights, model.config, self.length, past, visit)
        except MemoryError as error:
            raise CacheMemoryError(f"not enough memory to feed {n} tokens ({error})") from None
        self.past = past
        self.length += n
        return logits[n - n_logits :].astype(np.float32)

    def truncate(self, length: int) -> None:
        """See EngineSequence.truncate."""
        if not 0 <= length <= self.length:
            raise OptionError(f"truncating to {length} tokens: the sequence has {self.length}")
        self.past = [(k[:, :length], v[:, :length]) for k, v in self.past] if length else []
        self.length = length

    def copy(self) -> Sequence:
        """Return a copy. Both share the arrays, which are never written in place."""
        self.model.check_open()
        other = Sequence(self.model)
        other.length = self.length
        other.past = list(self.past)
        return other


class Job:
    """See EngineJob."""

    def __init__(
        self,
        ids: NDArray[np.int32],
        max_new_tokens: int,
        sampler: Sampler,
        stop_ids: frozenset[int],
        n_top: int | None,
        sequence: EngineSequence,
        n_positions: int,
        n_vocab: int,
    ) -> None:
        """Make a job; `prefill` or the first `step` feeds the prompt."""
        self.sequence = sequence
        self._n_positions, self._n_vocab = n_positions, n_vocab
        self.finish_reason: str | None = None
        self.end_id: int | None = None
        self.cancelled = False
        self.failure: Exception | None = None  # of the last step that a waiter ran
        self._prompt = ids.tolist()
        self._unfed = ids[sequence.length :]
        self._sampler = sampler
        self._stop_ids = stop_ids
        self._max_new_tokens = max_new_tokens
        self._n_top = n_top
        self._scores: list[Scores] = []
        self._end_scores: Scores | None = None
        self._ids: list[int] = []

    def cancel(self) -> None:
        """See EngineJob.cancel."""
        self.cancelled = True

    def set_allowed_ids(self, mask: AllowedIds) -> None:
        """See EngineJob.set_allowed_ids."""
        plan = self._sampler.plan.with_allowed_ids(mask)
        _check_mask(plan, self._n_vocab)
        self._sampler.plan = plan

    def prefill(self, n: int) -> None:
        """See EngineJob.prefill."""
        if (n_new := n - self.sequence.length) > 0:
            self.sequence.feed(self._unfed[:n_new], 0)
            self._unfed = self._unfed[n_new:]

    def raise_failure(self) -> None:
        """See EngineJob.raise_failure."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    @property
    def n_tokens(self) -> int:
        """See EngineJob.n_tokens."""
        return len(self._ids)

    @property
    def draft_counts(self) -> tuple[int, int, int]:
        """See EngineJob.draft_counts: one forward call for each token, and no drafts."""
        return len(self._ids), 0, 0

    def new_ids(self, begin: int = 0) -> list[int]:
        """See EngineJob.new_ids."""
        return self._ids[begin:]

    def scores(self) -> Scores:
        """See EngineJob.scores."""
        none = token_scores(np.empty((0, 1)), np.empty(0, dtype=int), self._n_top or 0)
        scores, top = zip(none, *self._scores, strict=True)
        return np.concatenate(scores), np.concatenate(top)

    def end_scores(self) -> Scores | None:
        """See EngineJob.end_scores."""
        return self._end_scores

    def step(self) -> None:
        """Feed the prompt or the last token, and choose the next one."""
        logits = self.next_logits()
        if np.isnan(logits).any():
            self.finish_reason = "nan"
        else:
            self.advance(logits, logits)

    def next_logits(self) -> NDArray[np.float32]:
        """See EngineJob.next_logits."""
        logits: NDArray[np.float32] = self.sequence.feed(self._unfed, 1)[0]
        return logits

    def advance(self, logits: NDArray[np.float32], raw_logits: NDArray[np.float32]) -> None:
        """See EngineJob.advance."""
        token = self._sampler.choose(logits, [*self._prompt, *self._ids])
        if token is None:
            self.finish_reason = "nothing"
            return
        scores: Scores | None = None
        if self._n_top is not None:
            scores = token_scores(raw_logits[None], np.array([token]), self._n_top)
        if token in self._stop_ids:
            self.finish_reason, self.end_id, self._end_scores = "stop", token, scores
            return
        if scores is not None:
            self._scores.append(scores)
        self._ids.append(token)
        self._unfed = np.array([token], dtype=np.int32)
        if len(self._ids) == self._max_new_tokens:
            self.finish_reason = "length"
        elif self.sequence.length == self._n_positions:
            self.finish_reason = "context"


class SharedWaiter:
    """See EngineSharedWaiter. A thread in `wait` runs one step of each job, one after another."""

    def __init__(self, model: Model) -> None:
        """Make a waiter without jobs."""
        self._model = model
        self._jobs: list[Job] = []
        self._jobs_changed = Condition()  # notified by `add` and `wake`; never held during a step
        self._step_lock = Lock()  # held during a step
        self._is_woken = False
        self._process = os.getpid()

    def add(self, job: EngineJob) -> None:
        """See EngineSharedWaiter.add."""
        self._check_process()
        self._model.check_open()
        if not isinstance(job, Job) or job.finish_reason is not None or job in self._jobs:
            raise OptionError(
                "add takes a job of the NumPy engine that has not finished and is not added already"
            )
        with self._jobs_changed:
            self._jobs.append(job)
            self._jobs_changed.notify_all()

    def remove(self, job: EngineJob) -> None:
        """See EngineSharedWaiter.remove."""
        self._check_process()
        with self._jobs_changed:
            self._jobs = [each for each in self._jobs if each is not job]
        with self._step_lock:  # wait for the end of a step, which may be this job's
            pass

    def wait(self, seconds: float) -> list[EngineJob]:
        """See EngineSharedWaiter.wait."""
        self._check_process()
        stepped: list[EngineJob] = []
        with self._jobs_changed:
            self._jobs_changed.wait_for(lambda: self._jobs or self._is_woken, seconds)
            self._is_woken = False
            n_jobs = len(self._jobs)
        for _ in range(n_jobs):
            with self._step_lock:
                with self._jobs_changed:
                    job = self._jobs.pop(0) if self._jobs else None
                if job is not None:
                    self._step(job)
                    stepped.append(job)
        return stepped

    def _step(self, job: Job) -> None:
        try:
            if not job.cancelled:
                with self._model.held():
                    job.step()
        except Exception as error:
            job.failure = error

    def wake(self) -> None:
        """See EngineSharedWaiter.wake."""
        self._check_process()
        with self._jobs_changed:
            self._is_woken = True
            self._jobs_changed.notify_all()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError("this waiter belongs to the parent process; make another one")
