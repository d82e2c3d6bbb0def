"""Score texts: the log-probability, rank and entropy of every token under a model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import (
    MAX_ROWS,
    PAGE_POSITIONS,
    SCORE_TYPE,
    TOP_TYPE,
    EngineModel,
    Scores,
)
from gpt2c.errors import NumericalError

# The max number of KV cache pages that the windows of one call of the engine may use. (MAX_ROWS
# limits their rows.) 32 pages take 150 MB for GPT-2 124M.
_MAX_PAGES: Final = 32
# The max number of queued texts. Without it, the queue could grow without limit: texts without a
# token to score add no rows, so they never fill a group.
_MAX_QUEUED: Final = 10_000


@dataclass(frozen=True, eq=False)
class Score:
    """The scores of a text's n tokens.

    ids
        int32 [n]. Special tokens in a text are encoded as plain characters, unless
        special_tokens=True.
    logprobs
        float32 [n], in nats: entry i is log p(ids[i] | ids[:i]). If the text is longer than the
        context, only the part of ids[:i] inside the window counts. The first entry is NaN, except
        with bos=True, which conditions it on the BOS token.
    ranks
        int32 [n]: 1 for the most likely id of the vocabulary; ties go to the lower id. 0 where
        logprobs is NaN.
    entropies
        float32 [n], in nats: the entropy of the distribution that predicts each token; NaN where
        logprobs is NaN.
    top_ids, top_logprobs
        int32 and float32 [n, k], where k is the argument top_logprobs: the k most likely ids at
        each token's position, the most likely first, and their log-probabilities. They are -1 and
        NaN where logprobs is NaN; if k exceeds n_vocab, so are the last entries of each row.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    entropies: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    @property
    def n_scored(self) -> int:
        """The number of tokens that have a log-probability."""
        return int(np.count_nonzero(self.ranks))

    @cached_property
    def total(self) -> float:
        """The log-probability of the whole text, in nats; 0.0 if no token has one."""
        return float(np.sum(self.logprobs[self.ranks > 0], dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp(-total / n_scored); NaN if no token has a log-probability."""
        if self.n_scored == 0:
            return math.nan
        mean = -self.total / self.n_scored
        return math.exp(mean) if mean < 700 else math.inf

    def __repr__(self) -> str:
        """The number of tokens, the total and the perplexity."""
        return (
            f"<gpt2c.Score: {len(self.ids)} tokens, total {self.total:.6g}, perplexity "
            f"{self.perplexity:.6g}>"
        )


class _Window(NamedTuple):
    """Ids to feed, and the targets to score: the ids that follow the last len(targets) fed ids."""

    fed: NDArray[np.int32]
    targets: NDArray[np.int32]


@dataclass(eq=False)
class _QueuedText:
    """A text's ids, the number of its windows, and the scores of the windows that have run."""

    ids: NDArray[np.int32]
    n_windows: int
    window_scores: list[Scores] = field(default_factory=list)


def score_texts(
    engine: EngineModel,
    encoded_texts: Iterable[NDArray[np.int32]],
    bos: int | None,
    stride: int,
    n_top: int = 0,
) -> Iterator[Score]:
    """Yield the score of each text, in order; texts are given as ids int32 [n] and read lazily.

    A text longer than the context is scored in windows of n_positions tokens that begin `stride`
    tokens apart; each token is scored in the first window that contains it. `bos` is the id to put
    before each text, if any. `n_top` is the number of the most likely ids to return per token. If
    reading `encoded_texts` raises an exception, the scores of the earlier texts are yielded first.

    Raises NumericalError, naming the text and the position, if a logit is NaN.
    """
    scorer = _Scorer(engine, n_top)
    failure: Exception | None = None
    source = iter(encoded_texts)
    try:
        while failure is None:
            try:
                ids = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            scorer.add(ids, _windows(ids, bos, engine.n_positions, stride))
            yield from scorer.pop_finished()
        scorer.run()
        yield from scorer.pop_finished()
        if failure is not None:
            raise failure
    finally:
        failure = None  # it refers to this frame: the cycle would keep the texts (see run_requests)


class _Scorer:
    """Collects windows of short texts into groups, so that one call of the engine scores many."""

    def __init__(self, engine: EngineModel, n_top: int) -> None:
        """Begin with an empty group and an empty queue."""
        self._engine, self._n_top = engine, n_top
        self._group: list[tuple[_QueuedText, _Window]] = []
        self._n_rows = self._n_pages = 0  # of the group
        self._queue: deque[_QueuedText] = deque()
        self._n_finished = 0  # texts

    def add(self, ids: NDArray[np.int32], windows: list[_Window]) -> None:
        """Queue a text and add its windows to the group; run the group whenever it is full."""
        text = _QueuedText(ids, len(windows))
        self._queue.append(text)
        if len(self._queue) > _MAX_QUEUED:
            self.run()
        for window in windows:
            n_rows, n_pages = len(window.fed), -(-len(window.fed) // PAGE_POSITIONS)
            if self._n_rows + n_rows > MAX_ROWS or self._n_pages + n_pages > _MAX_PAGES:
                self.run()
            self._group.append((text, window))
            self._n_rows += n_rows
            self._n_pages += n_pages

    def run(self) -> None:
        """Score the windows of the group, and empty it."""
        group, self._group = self._group, []
        self._n_rows = self._n_pages = 0
        if not group:
            return
        with self._engine.held():
            scores, top = self._engine.score(
                [self._engine.sequence() for _ in group],
                [window.fed for _, window in group],
                [window.targets for _, window in group],
                self._n_top,
            )
        ends = np.cumsum([len(window.targets) for _, window in group])[:-1]
        for (text, _), window_scores, window_top in zip(
            group, np.split(scores, ends), np.split(top, ends), strict=True
        ):
            text.window_scores.append((window_scores, window_top))

    def pop_finished(self) -> Iterator[Score]:
        """Remove the finished texts at the front of the queue, and yield their scores.

        Raises NumericalError; see score_texts.
        """
        while self._queue and len(self._queue[0].window_scores) == self._queue[0].n_windows:
            text = self._queue.popleft()
            yield _joined(text, self._n_finished, self._n_top)
            self._n_finished += 1


def _windows(
    ids: NDArray[np.int32], bos: int | None, n_positions: int, stride: int
) -> list[_Window]:
    """Cut a text into windows; the list is empty if there is no token to score."""
    if bos is not None:
        ids = np.concatenate([np.array([bos], dtype=np.int32), ids])
    windows = []
    n_done, begin = 1, 0  # nothing precedes the first token, so it is not scored
    while n_done < len(ids):
        end = min(begin + n_positions, len(ids))
        # If windows do not overlap, feed the token before this window to score its first token.
        first_fed = min(begin, n_done - 1)
        if end > n_done:
            windows.append(_Window(ids[first_fed : end - 1], ids[n_done:end]))
        n_done = end
        begin += stride
    return windows


def _joined(text: _QueuedText, index: int, n_top: int) -> Score:
    """Join the scores of a text's windows; `index` is the text's number in messages."""
    empty = np.empty(0, dtype=SCORE_TYPE), np.empty((0, n_top), dtype=TOP_TYPE)
    scores, top = map(np.concatenate, zip(empty, *text.window_scores, strict=True))
    n_before = len(text.ids) - len(scores)  # the first token has no score, except with BOS
    if np.isnan(scores["log_prob"]).any():
        position = n_before + int(np.flatnonzero(np.isnan(scores["log_prob"]))[0])
        raise NumericalError(
            f"text {index}: a logit at position {position} is NaN; do the weights have NaN or "
            "infinite values?"
        )
    nans = np.full(n_before, np.nan, dtype=np.float32)
    no_top = np.full((n_before, n_top), -1, dtype=np.int32)
    top_ids = np.concatenate([no_top, top["id"]])
    top_logprobs = np.concatenate([no_top.astype(np.float32), top["log_prob"]])
    top_logprobs[top_ids < 0] = np.nan
    return Score(
        text.ids,
        np.concatenate([nans, scores["log_prob"]]),
        np.concatenate([np.zeros(n_before, dtype=np.int32), scores["rank"]]),
        np.concatenate([nans, scores["entropy"]]),
        top_ids,
        top_logprobs,
    )


def json_fields(score: Score) -> dict[str, object]:
    """Return a score's arrays, total and perplexity for JSON; NaN and infinities become None.

    top_ids and top_logprobs are left out if none were requested; entries of -1 are left out too.
    """

    def numbers(values: Iterable[float]) -> list[float | None]:
        return [float(value) if math.isfinite(value) else None for value in values]

    top: dict[str, object] = {}
    if score.top_ids.shape[1]:
        top = {
            "top_ids": [[id for id in row if id >= 0] for row in score.top_ids.tolist()],
            "top_logprobs": [
                numbers(row[ids >= 0])
                for row, ids in zip(score.top_logprobs, score.top_ids, strict=True)
            ],
        }
    return {
        "ids": score.ids.tolist(),
        "logprobs": numbers(score.logprobs),
        "ranks": score.ranks.tolist(),
        "entropies": numbers(score.entropies),
        **top,
        "total": numbers([score.total])[0],
        "perplexity": numbers([score.perplexity])[0],
    }
