"""Log-probabilities, entropies and ranks from logits, in plain NumPy: the oracle of scoring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import SCORE_TYPE, TOP_TYPE, Scores


def token_scores(logits: NDArray[Any], ids: NDArray[Any], n_top: int) -> Scores:
    """What logits [n, n_vocab] say of ids [n]: arrays of SCORE_TYPE [n] and TOP_TYPE [n, n_top].

    "log_prob" is log p(id), a NaN where a logit is one; "entropy" that of the whole distribution,
    in nats; "rank" is 1 for the likeliest id, the lower of two equally likely ones being first.
    Past the vocabulary's end the alternatives' id is -1.
    """
    x = logits.astype(np.float64)  # [n, n_vocab]
    n, n_vocab = x.shape
    rows = np.arange(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = x - x.max(axis=1, keepdims=True)  # [n, n_vocab]
        e = np.exp(below)  # [n, n_vocab]
        total = e.sum(axis=1)  # [n]
        log_probs = below - np.log(total)[:, None]  # [n, n_vocab]
        terms = np.where(e > 0, e * below, e)  # 0 * log 0 is 0; a NaN stays
        scores = np.empty(n, dtype=SCORE_TYPE)
        scores["log_prob"] = log_probs[rows, ids]
        scores["entropy"] = np.log(total) - terms.sum(axis=1) / total
        own = logits[rows, ids][:, None]  # [n, 1]
        before = np.arange(n_vocab) < np.asarray(ids)[:, None]  # [n, n_vocab]
        scores["rank"] = 1 + ((logits > own) | (before & (logits == own))).sum(axis=1)
    top = np.empty((n, n_top), dtype=TOP_TYPE)
    top["id"], top["log_prob"] = -1, 0
    likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :n_top]  # [n, up to n_top]
    top["id"][:, : likeliest.shape[1]] = likeliest
    top["log_prob"][:, : likeliest.shape[1]] = np.take_along_axis(log_probs, likeliest, axis=1)
    return scores, top


def log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """log p of every id, by logits [n, n_vocab]; all of a row are NaN where a logit is one."""
    x = logits.astype(np.float64)  # [n, n_vocab]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = x - x.max(axis=1, keepdims=True)  # [n, n_vocab]
        return np.asarray(below - np.log(np.exp(below).sum(axis=1, keepdims=True)))
