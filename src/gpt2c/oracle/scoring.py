"""Compute log-probabilities, entropies and ranks, in plain NumPy: the oracle of scoring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import SCORE_TYPE, TOP_TYPE, Measures, Scores


def token_scores(logits: NDArray[Any], ids: NDArray[Any], n_top: int) -> Scores:
    """Score ids, int [n], from logits [n, n_vocab]; return SCORE_TYPE [n] and TOP_TYPE [n, n_top].

    "log_prob" is log p(id), or NaN if a logit of the row is NaN. "entropy" is that of the whole
    distribution, in nats. "rank" is 1 for the most likely id; ties go to the lower id. The second
    array has the n_top most likely ids of each row; if n_top exceeds n_vocab, the last entries have
    id -1 and log_prob 0.
    """
    shifted, e, total = _softmax_terms(logits)
    n, n_vocab = logits.shape
    rows = np.arange(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_probs = shifted - np.log(total)  # [n, n_vocab]
        terms = np.where(e > 0, e * shifted, e)  # [n, n_vocab]; 0 * log 0 is 0, a NaN stays NaN
        scores = np.empty(n, dtype=SCORE_TYPE)
        scores["log_prob"] = log_probs[rows, ids]
        scores["entropy"] = np.log(total[:, 0]) - terms.sum(axis=1) / total[:, 0]
        id_logits = logits[rows, ids][:, None]  # [n, 1]
        is_lower_id = np.arange(n_vocab) < np.asarray(ids)[:, None]  # [n, n_vocab]
        scores["rank"] = 1 + ((logits > id_logits) | (is_lower_id & (logits == id_logits))).sum(
            axis=1
        )
    top = np.empty((n, n_top), dtype=TOP_TYPE)
    top["id"], top["log_prob"] = -1, 0
    most_likely = np.argsort(-logits, axis=1, kind="stable")[:, :n_top]  # [n, <= n_top]
    top["id"][:, : most_likely.shape[1]] = most_likely
    top["log_prob"][:, : most_likely.shape[1]] = np.take_along_axis(log_probs, most_likely, axis=1)
    return scores, top


def measured_values(
    logits: NDArray[Any],
    measures: Measures,
    ids: NDArray[Any],
    other_logits: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Return the values of `measures` for logits [n, n_vocab]: float32 [n, n_values].

    ids, int [n], are the scored ones. other_logits, of the logits' shape, are those of
    measures.other.
    """
    log_p = log_probabilities(logits)
    p = np.exp(log_p)
    values = []
    with np.errstate(invalid="ignore", divide="ignore"):
        if measures.second_moment:
            values.append(_expectation(p, log_p**2))
        for order in measures.orders:
            if np.isinf(order):
                values.append(-log_p.max(axis=1))
            else:
                values.append(_log_sum_exp(order * log_p) / (1 - order))
        values.extend(_log_sum_exp(log_p + added) for added in measures.sets)
        if other_logits is not None:
            log_q = log_probabilities(other_logits)
            values.append(-_expectation(p, log_q))
            values.append(log_q[np.arange(len(log_q)), ids])
    found = np.array(values, dtype=np.float64).reshape(len(values), len(logits))
    found[:, np.isnan(log_p).any(axis=1)] = np.nan
    return found.T.astype(np.float32)


def _expectation(p: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of p * values over the ids, where 0 * infinity is 0."""
    return np.asarray(np.where(p > 0, p * values, p).sum(axis=1))


def _log_sum_exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(sum of exp(x)) of each row; -infinity for a row of -infinity."""
    top = x.max(axis=1, keepdims=True)
    shift = np.where(np.isinf(top), 0, top)
    return np.asarray(np.log(np.exp(x - shift).sum(axis=1)) + shift[:, 0])


def log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return log p of every id, [n, n_vocab], from logits [n, n_vocab].

    A row with a NaN logit is all NaN.
    """
    shifted, _, total = _softmax_terms(logits)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(shifted - np.log(total))


def _softmax_terms(
    logits: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return logits minus their row's max, the exponentials of these, and their row sums [n, 1]."""
    x = logits.astype(np.float64)  # [n, n_vocab]
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=1, keepdims=True)  # [n, n_vocab]
        e = np.exp(shifted)  # [n, n_vocab]
    return shifted, e, e.sum(axis=1, keepdims=True)
