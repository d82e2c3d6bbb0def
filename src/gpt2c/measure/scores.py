"""The scores of a text's tokens: log-probability, rank, entropy and further measures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import OptionError


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
    other_logprobs
        float32 [n], in nats: the log-probabilities that the other model gives the tokens; NaN where
        logprobs is NaN, None without another model.
    end_cross_entropy
        The cross-entropy after the last token, where no token follows; None without another model,
        or if no token has a log-probability. Binoculars needs it.

    The properties mean_logprob, mean_log_rank, mean_entropy, lrr, curvature and binoculars are
    statistics from papers on the detection of generated text (docs/detection.md); all are NaN if no
    token has a log-probability.
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
    other_logprobs: NDArray[np.float32] | None = None
    end_cross_entropy: float | None = None

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
        return perplexity_of(self.total, self.n_scored)

    # ---- statistics for the detection of generated text ----

    @property
    def mean_logprob(self) -> float:
        """The mean log-likelihood, total / n_scored, in nats per token."""
        return _mean(self._scored(self.logprobs))

    @property
    def mean_log_rank(self) -> float:
        """The mean natural logarithm of the ranks, which begin at 1.

        Generated text has lower ranks (Gehrmann et al., GLTR, arXiv 1906.04043; Mitchell et al.,
        DetectGPT, arXiv 2301.11305). Some programs report minus this number.
        """
        return _mean(np.log(self._scored(self.ranks)))

    @property
    def mean_entropy(self) -> float:
        """The mean entropy of the distributions that predict the tokens, in nats."""
        return _mean(self._scored(self.entropies))

    @property
    def lrr(self) -> float:
        """The log-likelihood log-rank ratio, -(sum of log p) / (sum of log rank).

        It is higher for generated text (Su et al., DetectLLM, arXiv 2306.05540). It is infinite if
        each token was the most likely one.
        """
        return _ratio(-self.mean_logprob, self.mean_log_rank)

    @property
    def curvature(self) -> float:
        """The conditional probability curvature of Fast-DetectGPT, with one model.

        (sum of log p(x) - sum of m) / sqrt(sum of v), where m and v are the mean and the variance
        of log p at each token, for ids that p itself draws: m is minus the entropy, v the second
        moment minus the square of the entropy. It is higher for generated text (Bao et al., arXiv
        2310.05130; the analytic form is in its appendix).

        Raises OptionError if the score has no second moments.
        """
        if self.second_moments is None:
            raise OptionError(
                "curvature needs the second moments; score the text with second_moments=True"
            )
        entropies = self._scored(self.entropies)
        variances = self._scored(self.second_moments) - entropies**2
        # Rounding can make the variance of a nearly certain distribution negative.
        deviation = math.sqrt(max(_mean(variances), 0.0)) if len(variances) else math.nan
        difference = self.mean_logprob + _mean(entropies)
        return _ratio(difference * math.sqrt(max(len(variances), 1)), deviation)

    @property
    def binoculars(self) -> float:
        """The Binoculars score: this model is the observer p, the other one the performer q.

        -(mean of log q(x) over the tokens) / (mean cross-entropy, minus the sum of p log q), where
        the second mean also counts the distribution after the last token, as the authors' program
        does. It is lower for generated text (Hans et al., arXiv 2401.12070).

        Raises OptionError if the text was scored without another model.
        """
        if self.cross_entropies is None or self.other_logprobs is None:
            raise OptionError(
                "binoculars needs a second model, the performer; score the text with other=model"
            )
        if self.end_cross_entropy is None:
            return math.nan
        crossed = np.append(self._scored(self.cross_entropies), self.end_cross_entropy)
        return _ratio(-_mean(self._scored(self.other_logprobs)), _mean(crossed))

    def _scored(self, values: NDArray[np.float32] | NDArray[np.int32]) -> NDArray[np.float64]:
        """Return the values of the tokens that have a log-probability: float64 [n_scored]."""
        return values[self.ranks > 0].astype(np.float64)

    def __repr__(self) -> str:
        """The number of tokens, the total and the perplexity."""
        return (
            f"<gpt2c.Score: {len(self.ids)} tokens, total {self.total:.6g}, perplexity "
            f"{self.perplexity:.6g}>"
        )


def perplexity_of(total: float, n: int) -> float:
    """Return exp(-total / n), total being in nats; infinite if too large, NaN if n is 0."""
    if n == 0:
        return math.nan
    mean = -total / n
    return math.exp(mean) if mean < 700 else math.inf


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _ratio(a: float, b: float) -> float:
    """Return a / b; infinite or NaN if b is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(a) / np.float64(b))


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
