"""The scores of a text's tokens: log-probability, rank, entropy and further measures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


def _no_columns() -> NDArray[np.float32]:
    return np.empty((0, 0), dtype=np.float32)


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
    second_moments, renyi_entropies, set_logprobs, cross_entropies
        Further measures of the distributions p that predict the tokens, if they were asked for;
        float32, in nats, NaN where logprobs is NaN. The arguments of GPT2.score say what they are.
        Their shapes are [n], [n, n_orders], [n, n_sets] and [n]; the first and last are None, and
        the others have no columns, if not asked for.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    entropies: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    second_moments: NDArray[np.float32] | None = None
    renyi_entropies: NDArray[np.float32] = field(default_factory=_no_columns)
    set_logprobs: NDArray[np.float32] = field(default_factory=_no_columns)
    cross_entropies: NDArray[np.float32] | None = None

    @property
    def is_arg_max(self) -> NDArray[np.bool_]:
        """bool [n]: whether each token was the most likely one; False where logprobs is NaN."""
        return np.asarray(self.ranks == 1)

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
