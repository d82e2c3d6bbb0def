"""Temperature and the filters, which remove unlikely ids, in plain NumPy, as papers define them.

Each stage takes logits [n_vocab], float32 or float64, and returns new logits; -inf marks a removed
id. All filters except typical_p and xtc always keep the most likely id. The compiled engine is
tested against these functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]


def probabilities(logits: Logits) -> NDArray[np.float64]:
    """Return the softmax of logits, computed in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(e / e.sum())


def entropy(p: NDArray[np.float64]) -> float:
    """Return the entropy of probabilities, in nats; removed ids add nothing."""
    return float(-np.sum(p[p > 0] * np.log(p[p > 0])))


def by_probability(logits: Logits) -> NDArray[np.int64]:
    """Return all ids, the most likely first; ties go to the lower id."""
    return np.argsort(-logits, kind="stable")


def _keep(logits: Logits, kept: NDArray[np.bool_]) -> Logits:
    """Remove the ids that are False in `kept`."""
    return np.where(kept, logits, logits.dtype.type(-np.inf))


def _keep_top_and(logits: Logits, kept: NDArray[np.bool_]) -> Logits:
    """Remove the ids that are False in `kept`, but never the most likely id."""
    kept[np.argmax(logits)] = True
    return _keep(logits, kept)


def _keep_top_and_ids(logits: Logits, ids: NDArray[np.int64]) -> Logits:
    """Remove all ids except `ids` and the most likely id."""
    kept = np.zeros(len(logits), dtype=bool)
    kept[ids] = True
    return _keep_top_and(logits, kept)


def _n_to_reach(mass: float, p: NDArray[np.float64], order: NDArray[np.int64]) -> int:
    """Return how many of the first ids in `order` have a total probability of at least `mass`."""
    return min(int(np.searchsorted(np.cumsum(p[order]), mass)) + 1, len(order))


def temperature(logits: Logits, t: float) -> Logits:
    """Divide the logits by t; if the max overflows, keep only the most likely id."""
    with np.errstate(over="ignore", invalid="ignore"):
        divided = logits / logits.dtype.type(t)
    if np.isinf(divided.max()):
        return _keep_top_and(logits, np.zeros(len(logits), dtype=bool))
    return np.asarray(divided)


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the k most likely ids; ties go to the lower id (Fan et al. 2018)."""
    return _keep_top_and_ids(logits, by_probability(logits)[:k])


def top_p(logits: Logits, p: float) -> Logits:
    """Keep the smallest set of most likely ids with a total probability of at least p.

    Nucleus sampling (Holtzman et al. 2020); ties go to the lower id.
    """
    order = by_probability(logits)
    return _keep_top_and_ids(logits, order[: _n_to_reach(p, probabilities(logits), order)])


def min_p(logits: Logits, p: float) -> Logits:
    """Keep ids at least p times as likely as the most likely id (Nguyen et al. 2024)."""
    probs = probabilities(logits)
    return _keep_top_and(logits, probs >= p * probs.max())


def typical_p(logits: Logits, mass: float) -> Logits:
    """Keep the smallest set of most typical ids with a total probability of at least mass.

    The nearer an id's surprisal, -log p, is to the entropy, the more typical the id is. Ids tied
    with the last id of the set are kept too (Meister et al. 2022).
    """
    p = probabilities(logits)
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(p) - entropy(p))
    order = np.argsort(distance, kind="stable")
    farthest = distance[order[_n_to_reach(mass, p, order) - 1]]
    return _keep(logits, distance <= farthest)


def top_n_sigma(logits: Logits, n: float) -> Logits:
    """Keep logits at most n standard deviations below the max (Tang et al. 2024)."""
    finite = logits[np.isfinite(logits)].astype(np.float64)
    return _keep_top_and(logits, logits >= finite.max() - n * finite.std())


def epsilon_cutoff(logits: Logits, epsilon: float) -> Logits:
    """Keep ids of probability at least epsilon (Hewitt et al. 2022)."""
    return _keep_top_and(logits, probabilities(logits) >= epsilon)


def eta_cutoff(logits: Logits, epsilon: float) -> Logits:
    """Keep ids of probability at least eta = min(epsilon, sqrt(epsilon) * exp(-entropy)).

    The threshold falls as the distribution flattens (Hewitt et al. 2022).
    """
    p = probabilities(logits)
    return _keep_top_and(logits, p >= min(epsilon, np.sqrt(epsilon) * np.exp(-entropy(p))))


def xtc(logits: Logits, threshold: float) -> Logits:
    """Remove the ids of probability at least threshold, except the least likely of them.

    "Exclude top choices", p-e-w 2024 (oobabooga/text-generation-webui pull request 6335). At each
    token, the caller decides at random whether to apply this filter.
    """
    order = by_probability(logits)
    p = probabilities(logits)
    n_likely = int(((p >= threshold) & (p > 0)).sum())
    kept = np.ones(len(logits), dtype=bool)
    kept[order[: max(n_likely - 1, 0)]] = False
    return _keep(logits, kept)


def mirostat(logits: Logits, mu: float) -> Logits:
    """Keep ids whose surprisal, -log2 p, is at most mu bits (Basu et al. 2021, version 2)."""
    return _keep_top_and(logits, probabilities(logits) >= 2.0**-mu)
