"""One sequence while it is generated, and results of sequences without new tokens."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import (
    SCORE_TYPE,
    TOP_TYPE,
    EngineJob,
    EngineModel,
    EngineSequence,
    Scores,
)
from gpt2c.errors import CacheMemoryError, Error, NumericalError, OptionError
from gpt2c.schedule.prefix_cache import MIN_SHARED_PREFIX, PrefixCache, common_prefix
from gpt2c.schedule.requests import LogitsProcessor, Request, Result, n_kept
from gpt2c.schedule.stops import Watcher

# The nth token after a crop has the noise of another sample, n * _CROP_SAMPLES further on. That is
# more than any num_return_sequences.
_CROP_SAMPLES: Final = 1 << 16


class Continuation:
    """One sequence while it is generated.

    A continuation has one job of the engine at a time. With overflow="slide" or "crop", a new job
    follows when the context is full.
    """

    def __init__(
        self,
        engine: EngineModel,
        prefixes: PrefixCache,
        request: Request,
        sequence: EngineSequence | None = None,
    ) -> None:
        """Make the job. It takes over `sequence`, which already holds the prompt's first tokens."""
        self._engine, self._prefixes = engine, prefixes
        self.request = request
        self.result: Result | None = None
        self.watcher = Watcher(request.stops, request.index)
        self._scores: list[Scores] = []
        self._draft_counts = (0, 0, 0)
        self._n_crops = 0  # how often overflow="crop" has begun a new context
        self._prompt_scores: Scores | None = None
        if request.scores_prompt:
            sequence, self._prompt_scores = score_prompt(engine, request)
        self.job = self._start(request.ids, request.max_new_tokens, sequence)

    def step(self) -> None:
        """Run one step, and set `result` if the sequence ends.

        A step adds one token, or several with drafts.
        """
        if self.request.logits_processor is None:
            self._engine.run([self.job], 1)
        else:
            self.process(self.request.logits_processor, self.job.next_logits())
        self.collect()

    def process(self, process: LogitsProcessor, raw: NDArray[np.float32]) -> None:
        """Choose the next token from processed logits; `raw` is the result of job.next_logits."""
        if np.isnan(raw).any():
            self._fail("nan")
        before = [*self._ids.tolist(), *self.job.new_ids()]
        logits = check_logits(process(before, raw.copy()), len(raw))
        self.job.advance(logits, raw)

    def collect(self) -> None:
        """Give the engine's new tokens to the watcher; set `result` if the sequence ends."""
        job = self.job
        reason = job.finish_reason
        for id in job.new_ids(self._n_collected):
            self._n_collected += 1
            if stopped := self.watcher.push(id):
                return self._end(stopped)
        if reason is None and self.request.stops.is_late:
            return self._end("time")
        if reason in ("nan", "nothing"):
            self._fail(reason)
        if reason == "context" and self.request.overflow != "stop":
            return self._go_on()
        if reason is not None:
            self._end(reason, job.end_id)

    def cancel(self) -> None:
        """Make a `step` in another thread return soon, perhaps without a result."""
        self.job.cancel()

    def stop(self, reason: str) -> None:
        """End the sequence after the tokens that were collected so far."""
        self._end(reason)

    def free(self) -> None:
        """Free the KV cache, even if somebody still refers to this continuation."""
        with suppress(Error):  # the model may be closed, or a last step may still run
            self.job.sequence.truncate(0)

    @property
    def scores(self) -> Scores:
        """The scores of the tokens so far, for a request with n_top."""
        if self.result is not None and self.result.scores is not None:
            return self.result.scores
        tokens, top = map(np.concatenate, zip(*self._scores, self.job.scores(), strict=True))
        return tokens, top

    def shared_length(self, request: Request) -> int:
        """Return the length of the prefix that a request can copy."""
        ids = self._ids
        # Only the job itself feeds its last prompt token, because it needs the logits. Other
        # requests can share that token afterwards.
        limit = min(len(request.ids) - 1, max(len(ids) - 1, self.job.sequence.length))
        return min(common_prefix(request.ids, ids), limit)

    def copy_prefix(self, n: int) -> EngineSequence | None:
        """Return a sequence of the first n tokens; n must not exceed shared_length(request).

        Return None if the KV cache has no room for them now.
        """
        try:
            self.job.prefill(n)
        except CacheMemoryError:
            return None
        sequence = self.job.sequence.copy()
        sequence.truncate(n)
        return sequence

    def _start(
        self, ids: NDArray[np.int32], max_new_tokens: int, sequence: EngineSequence | None
    ) -> EngineJob:
        r = self.request
        self._ids, self._n_collected = ids, 0
        self.prefix_key = ids[:MIN_SHARED_PREFIX].tobytes()
        plan = r.plan.after(len(self.watcher.ids))
        # All tokens after a crop have the same position, which is a part of the key of their noise.
        # The number of crops takes its place there.
        sample = (r.sample + _CROP_SAMPLES * self._n_crops) % 2**32
        return self._engine.job(
            ids, max_new_tokens, plan, r.seed or 0, sample, r.stop_ids, r.n_top,
            sequence, r.drafts,
        )  # fmt: skip

    def _go_on(self) -> None:
        """Continue with the last tokens of the full context as the prompt of a new job."""
        self._keep_job_results()
        n_left = self.request.max_new_tokens - len(self.watcher.ids)
        ids = np.concatenate([self._ids, np.array(self.job.new_ids(), dtype=np.int32)])
        ids = ids[-n_kept(self.request.overflow, self._engine.n_positions) :]
        self._n_crops += self.request.overflow == "crop"
        self.job = self._start(
            ids, n_left, self._prefixes.copy_longest(ids, space=self.request.cache_space)
        )

    def _keep_job_results(self) -> None:
        """Keep the scores and draft counts of a job that ends.

        Its KV cache goes into the prefix cache, unless it is one of the many full contexts of
        overflow="crop", which would drive all others out.
        """
        passes, drafted, accepted = self._draft_counts
        new_passes, new_drafted, new_accepted = self.job.draft_counts
        self._draft_counts = (passes + new_passes, drafted + new_drafted, accepted + new_accepted)
        if self.request.n_top is not None:
            self._scores.append(self.job.scores())
        if (n := self.job.sequence.length) >= MIN_SHARED_PREFIX and not self._n_crops:
            ids = np.concatenate([self._ids, np.array(self.job.new_ids(), dtype=np.int32)])
            self._prefixes.put(ids[:n], self.job.sequence, self.request.cache_space)

    def _end(self, reason: str, end_id: int | None = None) -> None:
        self.job.cancel()  # so that the running batch does not expect it to go on
        self._keep_job_results()
        self.watcher.finish()
        ids, scores = self.watcher.ids, None
        if self._scores:
            tokens, top = map(np.concatenate, zip(*self._scores, strict=True))
            scores = tokens[: len(ids)], top[: len(ids)]
        self.result = Result(
            ids, reason, self.watcher.end, scores,
            self._prompt_scores, self._draft_counts, end_id=end_id,
            end_scores=None if end_id is None else self.job.end_scores(),
        )  # fmt: skip

    def _fail(self, reason: str) -> NoReturn:
        raise_failure(reason, self.request.index, len(self._ids) + self.job.n_tokens)


def raise_failure(reason: str, index: int, position: int) -> NoReturn:
    """Raise the error for a step of prompt `index` that cannot choose a token.

    reason is "nan" for a NaN logit, or "nothing" if the options leave no id.
    """
    if reason == "nan":
        raise NumericalError(
            f"prompt {index}: a logit at position {position} is not a number; are there NaN or "
            "infinite values in the weights?"
        )
    raise OptionError(
        f"prompt {index}: suppress_tokens, bad_words and the other options leave no token to "
        f"choose at position {position}"
    )


def check_logits(logits: Any, n_vocab: int) -> NDArray[np.float32]:
    """Return a logits_processor's result as float32 [n_vocab]. Raises OptionError."""
    try:
        given = np.asarray(logits)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"its dtype is {given.dtype}")
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            checked = np.ascontiguousarray(given, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(
            f"logits_processor returned {show(logits)}; it must return an array of numbers: {error}"
        ) from None
    if checked.shape != (n_vocab,):
        raise OptionError(
            f"logits_processor returned an array of shape {list(checked.shape)}; it must be "
            f"[{n_vocab}]"
        )
    if np.isnan(checked).any():
        raise OptionError("logits_processor returned a NaN; it must return numbers or -infinity")
    return checked


def immediate_result(engine: EngineModel, request: Request) -> Result | None:
    """Return the result of a request that needs no new token; None for others.

    No new token is needed if max_new_tokens is 0 or the deadline has passed. After the deadline,
    the prompt is not scored either.
    """
    is_late = request.stops.is_late
    if request.max_new_tokens and not is_late:
        return None
    is_cut = is_late and (request.max_new_tokens > 0 or request.scores_prompt)
    prompt_scores = None
    if request.scores_prompt and not is_late:
        prompt_scores = score_prompt(engine, request)[1]
    return empty_result(request, "time" if is_cut else "length", prompt_scores)


def empty_result(
    request: Request, finish_reason: str, prompt_scores: Scores | None = None
) -> Result:
    """Return the result of a request that ends without a new token."""
    scores = None if request.n_top is None else empty_scores(request.n_top)
    return Result([], finish_reason, scores=scores, prompt_scores=prompt_scores)


def empty_scores(n_top: int) -> Scores:
    """Return the scores of no tokens."""
    return np.empty(0, dtype=SCORE_TYPE), np.empty((0, n_top), dtype=TOP_TYPE)


def score_prompt(
    engine: EngineModel, request: Request
) -> tuple[EngineSequence | None, Scores | None]:
    """Feed the prompt without its last token; return the sequence and the prompt's scores.

    The first token has no score. Returns (None, None) for a prompt of one token.
    """
    ids = request.ids
    if len(ids) < 2:
        return None, None
    with engine.held():
        sequence = engine.sequence()
        try:
            scores = engine.score([sequence], [ids[:-1]], [ids[1:]], request.n_top or 0)
        except BaseException:
            del sequence  # the error's traceback refers to this frame
            raise
    return sequence, scores
