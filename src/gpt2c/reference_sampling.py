"""Choosing a token, in plain NumPy: what the compiled samplers are tested against.

A draw depends on the logits, the seed, the sample's number and the position of the token that is
drawn: on nothing that runs beside it. It is the Gumbel-max trick with noise from a counter-based
generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(
    counter: NDArray[np.uint32], key: tuple[int, int], rounds: int = 10
) -> NDArray[np.uint32]:
    """Four random words [n, 4] for each counter [n, 4]."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    key0, key1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(rounds):
        a = np.uint64(0xD2511F53) * c0
        b = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ key0, b & _LOW, (a >> _SHIFT) ^ c3 ^ key1, a & _LOW
        key0 = (key0 + np.uint64(0x9E3779B9)) & _LOW
        key1 = (key1 + np.uint64(0xBB67AE85)) & _LOW
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def gumbel_noise(seed: int, sample: int, position: int, ids: NDArray[Any]) -> NDArray[np.float64]:
    """-log(-log u) for each of ids; u = (word + 1/2) / 2^32.

    The word is number id mod 4 of the counter (id / 4, position, sample, 0) under the key seed.
    """
    counter = np.zeros((len(ids), 4), dtype=np.uint32)
    counter[:, 0] = ids // 4
    counter[:, 1] = position
    counter[:, 2] = sample
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[np.arange(len(ids)), ids % 4]
    u = (words.astype(np.float64) + 0.5) / 2.0**32
    return np.asarray(-np.log(-np.log(u)))


def top_k_ids(logits: NDArray[Any], k: int) -> NDArray[np.int64]:
    """The k ids of the greatest logits, by (logit descending, id ascending); all where k is 0."""
    order = np.argsort(-logits, kind="stable")
    return np.sort(order[: k or None])


def choose(
    logits: NDArray[Any], *, temperature: float, top_k: int, seed: int, sample: int, position: int
) -> int:
    """The token at `position` (the number of tokens before it); temperature 0 is greedy.

    Ties go to the lowest id.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        greedy = temperature == 0 or np.isinf(logits.max() / temperature)
    if greedy:
        return int(np.argmax(logits))
    ids = top_k_ids(logits, top_k)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = logits[ids] / temperature + gumbel_noise(seed, sample, position, ids)
    return int(ids[np.argmax(scores)])
