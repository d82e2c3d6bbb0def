"""What a model says of a text: log-probabilities, ranks and entropies, token by token."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import SCORE_TYPE, TOP_TYPE, EngineModel, Scores
from gpt2c.errors import NumericalError

# Short texts run together, up to so many rows; and so many pages of the cache, which are 64
# positions: 150 MB for GPT-2 124M.
_ROWS_TOGETHER: Final = 256
_PAGES_TOGETHER: Final = 32
_PAGE: Final = 64
# Texts that wait for one before them: those without a token to score cost nothing but this.
_TEXTS_WAITING: Final = 10_000

_Pair: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class Score:
    """What the model says of a text's n tokens.

    ids
        int32 [n]. Special tokens in a text are encoded as plain characters, unless
        special_tokens=True.
    logprobs
        float32 [n], in nats: entry i is log p(ids[i] | ids[:i]), or given the part of ids[:i] that
        fits in the window. The first is NaN; with bos=True it is given the BOS token.
    ranks
        int32 [n]: 1 where no id was more likely; 0 where there is no log-probability. Of equally
        likely ids the lower comes first.
    entropies
        float32 [n], in nats, of the distribution that the entry was drawn from; NaN where logprobs
        is.
    top_ids, top_logprobs
        int32 and float32 [n, top_logprobs as it was asked for]: the likeliest ids in each token's
        place, the likeliest first, and their log-probabilities; -1 and NaN where logprobs is NaN,
        and past the vocabulary's end.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    entropies: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    @property
    def n_scored(self) -> int:
        """How many tokens have a log-probability."""
        return int(np.count_nonzero(self.ranks))

    @cached_property
    def total(self) -> float:
        """The log-probability of the whole text; 0.0 where no token has one."""
        return float(np.sum(self.logprobs[self.ranks > 0], dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp(-total / n_scored); NaN where no token has a log-probability."""
        if self.n_scored == 0:
            return math.nan
        mean = -self.total / self.n_scored
        return math.exp(mean) if mean < 700 else math.inf

    def __repr__(self) -> str:
        """The sums."""
        return (
            f"<gpt2c.Score: {len(self.ids)} tokens, total {self.total:.6g}, perplexity "
            f"{self.perplexity:.6g}>"
        )


@dataclass(eq=False)
class _Text:
    ids: NDArray[np.int32]
    n_windows: int
    parts: list[Scores] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Window:
    """Tokens that are fed, and the last of those that follow them, which are scored."""

    text: _Text
    fed: NDArray[np.int32]
    targets: NDArray[np.int32]


def score_texts(
    engine: EngineModel,
    texts: Iterable[NDArray[np.int32]],
    bos: int | None,
    stride: int,
    n_top: int = 0,
) -> Iterator[Score]:
    """The score of each text's ids, in order; texts are asked for as they are needed.

    A text longer than the context is scored in windows of n_positions tokens that begin `stride`
    apart, each token in the first that holds it. Where asking raises, those before are yielded.

    Raises NumericalError naming the text and the position of a logit that is not a number.
    """
    scorer = _Scorer(engine, n_top)
    failure: Exception | None = None
    source = iter(texts)
    while failure is None:
        try:
            ids = next(source)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        scorer.add(ids, _windows(ids, bos, engine.n_positions, stride))
        yield from scorer.finished()
    scorer.run()
    yield from scorer.finished()
    if failure is not None:
        raise failure


class _Scorer:
    """Windows that wait to run together, and texts that wait for their windows."""

    def __init__(self, engine: EngineModel, n_top: int) -> None:
        """Nothing waits."""
        self._engine, self._n_top = engine, n_top
        self._group: list[_Window] = []
        self._n_rows = self._n_pages = 0
        self._texts: deque[_Text] = deque()
        self._n_finished = 0

    def add(self, ids: NDArray[np.int32], windows: list[_Pair]) -> None:
        """The next text, and its windows."""
        text = _Text(ids, len(windows))
        self._texts.append(text)
        if len(self._texts) > _TEXTS_WAITING:
            self.run()
        for fed, targets in windows:
            n_rows = self._n_rows + len(fed)
            n_pages = self._n_pages + _n_pages(fed)
            if n_rows > _ROWS_TOGETHER or n_pages > _PAGES_TOGETHER:
                self.run()
            self._group.append(_Window(text, fed, targets))
            self._n_rows += len(fed)
            self._n_pages += _n_pages(fed)

    def run(self) -> None:
        """Scores the windows that wait."""
        group, self._group = self._group, []
        self._n_rows = self._n_pages = 0
        if not group:
            return
        with self._engine.held():
            scores, top = self._engine.score(
                [self._engine.sequence() for _ in group],
                [window.fed for window in group],
                [window.targets for window in group],
                self._n_top,
            )
        ends = np.cumsum([len(window.targets) for window in group])[:-1]
        for window, *part in zip(group, np.split(scores, ends), np.split(top, ends), strict=True):
            window.text.parts.append((part[0], part[1]))

    def finished(self) -> Iterator[Score]:
        """The texts at the front all of whose windows were scored."""
        while self._texts and len(self._texts[0].parts) == self._texts[0].n_windows:
            text = self._texts.popleft()
            yield _score(self._n_finished, text, self._n_top)
            self._n_finished += 1


def _windows(ids: NDArray[np.int32], bos: int | None, n_positions: int, stride: int) -> list[_Pair]:
    """What is fed, and the last of the tokens that follow it, which are scored: a pair a window.

    None where there is nothing to score.
    """
    if bos is not None:
        ids = np.concatenate([np.array([bos], dtype=np.int32), ids])
    windows = []
    n_done, begin = 1, 0  # the first has nothing before it
    while n_done < len(ids):
        end = min(begin + n_positions, len(ids))
        # Where windows do not overlap, a window's first token is scored after the one before it.
        first_fed = min(begin, n_done - 1)
        if end > n_done:
            windows.append((ids[first_fed : end - 1], ids[n_done:end]))
        n_done = end
        begin += stride
    return windows


def _n_pages(ids: NDArray[np.int32]) -> int:
    return -(-len(ids) // _PAGE)


def _score(index: int, text: _Text, n_top: int) -> Score:
    nothing = np.empty(0, dtype=SCORE_TYPE), np.empty((0, n_top), dtype=TOP_TYPE)
    scores, top = map(np.concatenate, zip(nothing, *text.parts, strict=True))
    n_before = len(text.ids) - len(scores)
    if np.isnan(scores["log_prob"]).any():
        position = n_before + int(np.flatnonzero(np.isnan(scores["log_prob"]))[0])
        raise NumericalError(
            f"text {index}: a logit at position {position} is not a number; are there NaN or "
            "infinite values in the weights?"
        )
    no_number = np.full(n_before, np.nan, dtype=np.float32)
    no_top = np.full((n_before, n_top), -1, dtype=np.int32)
    top_ids = np.concatenate([no_top, top["id"]])
    top_logprobs = np.concatenate([no_top.astype(np.float32), top["log_prob"]])
    top_logprobs[top_ids < 0] = np.nan
    return Score(
        text.ids,
        np.concatenate([no_number, scores["log_prob"]]),
        np.concatenate([np.zeros(n_before, dtype=np.int32), scores["rank"]]),
        np.concatenate([no_number, scores["entropy"]]),
        top_ids,
        top_logprobs,
    )


def as_json(score: Score) -> dict[str, object]:
    """A score as JSON has it: null for what is no finite number; no alternatives unless asked."""

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
