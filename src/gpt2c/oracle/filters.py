"""The options that remove unlikely ids, in plain NumPy, each as its paper states it.

Each takes logits [n_vocab], where -inf is an id that was removed before, and returns them with
more ids removed. What the compiled engine does is tested against this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]


def probabilities(logits: Logits) -> NDArray[np.float64]:
    """The soft-max, in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(e / e.sum())


def entropy(p: NDArray[np.float64]) -> float:
    """In nats; an id that cannot come adds nothing."""
    return float(-np.sum(p[p > 0] * np.log(p[p > 0])))


def descending(logits: Logits) -> NDArray[np.int64]:
    """Ids by (logit descending, id ascending)."""
    return np.argsort(-logits, kind="stable")


def _keep(logits: Logits, kept: NDArray[np.bool_]) -> Logits:
    """The most likely id always stays."""
    kept[np.argmax(logits)] = True
    return np.where(kept, logits, logits.dtype.type(-np.inf))


def _smallest_reaching(p: NDArray[np.float64], order: NDArray[np.int64], mass: float) -> int:
    """How many of the ids in order it takes for their probabilities to reach mass."""
    return min(int(np.searchsorted(np.cumsum(p[order]), mass)) + 1, len(order))


def temperature(logits: Logits, t: float) -> Logits:
    """Divided by it; where that overflows, the most likely id alone is left."""
    with np.errstate(over="ignore", invalid="ignore"):
        divided = logits / logits.dtype.type(t)
    if np.isinf(divided.max()):
        return _keep(logits, np.zeros(len(logits), dtype=bool))
    return np.asarray(divided)


def top_k(logits: Logits, k: int) -> Logits:
    """The k likeliest ids; of equal ones the lower come first (Fan et al. 2018)."""
    kept = np.zeros(len(logits), dtype=bool)
    kept[descending(logits)[:k]] = True
    return _keep(logits, kept)


def top_p(logits: Logits, p: float) -> Logits:
    """The fewest likeliest ids whose probabilities reach p (Holtzman et al. 2020)."""
    order = descending(logits)
    kept = np.zeros(len(logits), dtype=bool)
    kept[order[: _smallest_reaching(probabilities(logits), order, p)]] = True
    return _keep(logits, kept)


def min_p(logits: Logits, p: float) -> Logits:
    """Ids at least p times as likely as the likeliest (Nguyen et al. 2024)."""
    likelihood = probabilities(logits)
    return _keep(logits, likelihood >= p * likelihood.max())


def typical_p(logits: Logits, mass: float) -> Logits:
    """Ids whose surprise is nearest to the entropy, until they reach mass (Meister et al. 2022)."""
    p = probabilities(logits)
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(p) - entropy(p))
    order = np.argsort(distance, kind="stable")
    farthest = distance[order[_smallest_reaching(p, order, mass) - 1]]
    return np.where(distance <= farthest, logits, logits.dtype.type(-np.inf))


def top_n_sigma(logits: Logits, n: float) -> Logits:
    """Logits within n of their standard deviations below the greatest (Tang et al. 2024)."""
    finite = logits[np.isfinite(logits)].astype(np.float64)
    return _keep(logits, logits >= finite.max() - n * finite.std())


def epsilon_cutoff(logits: Logits, epsilon: float) -> Logits:
    """Ids that are at least epsilon likely (Hewitt et al. 2022)."""
    return _keep(logits, probabilities(logits) >= epsilon)


def eta_cutoff(logits: Logits, epsilon: float) -> Logits:
    """The same, with a bound that falls where the distribution is flat (Hewitt et al. 2022)."""
    p = probabilities(logits)
    return _keep(logits, p >= min(epsilon, np.sqrt(epsilon) * np.exp(-entropy(p))))


def xtc(logits: Logits, threshold: float) -> Logits:
    """Of the ids that reach the threshold all but the least likely go.

    "Exclude top choices", p-e-w 2024 (oobabooga/text-generation-webui pull request 6335); its
    caller draws whether it happens.
    """
    order = descending(logits)
    p = probabilities(logits)
    n_likely = int(((p >= threshold) & (p > 0)).sum())
    kept = np.ones(len(logits), dtype=bool)
    kept[order[: max(n_likely - 1, 0)]] = False
    return np.where(kept, logits, logits.dtype.type(-np.inf))


def mirostat(logits: Logits, mu: float) -> Logits:
    """Ids whose surprise is at most mu bits (Basu et al. 2021, version 2)."""
    return _keep(logits, probabilities(logits) >= 2.0**-mu)
