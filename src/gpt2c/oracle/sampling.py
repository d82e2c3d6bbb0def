"""Choose a token, in plain NumPy; the compiled sampler is tested against this module.

A draw uses the Gumbel-max trick: it adds noise to each logit and takes the argmax. The noise comes
from a counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1,
2, 3"), so a draw depends only on the logits, the seed, the sample's number and the position of the
drawn token, never on other sequences in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import Plan, Stage, unpack_allowed_ids, unpack_words
from gpt2c.oracle import filters, penalties

Logits = NDArray[Any]

_LOW_WORD = np.uint64(0xFFFFFFFF)  # selects the lower 32 bits
_WORD_BITS = np.uint64(32)


# ---- random numbers ----


def philox4x32(
    counter: NDArray[np.uint32], key: tuple[int, int], rounds: int = 10
) -> NDArray[np.uint32]:
    """Return four random 32-bit words for each counter; both arrays are uint32 [n, 4]."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    key0, key1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(rounds):
        a = np.uint64(0xD2511F53) * c0
        b = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (b >> _WORD_BITS) ^ c1 ^ key0,
            b & _LOW_WORD,
            (a >> _WORD_BITS) ^ c3 ^ key1,
            a & _LOW_WORD,
        )
        key0 = (key0 + np.uint64(0x9E3779B9)) & _LOW_WORD
        key1 = (key1 + np.uint64(0xBB67AE85)) & _LOW_WORD
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def _random_words(seed: int, counter: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Call philox4x32 with the two halves of the 64-bit seed as the key."""
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def gumbel_noise(seed: int, sample: int, position: int, ids: NDArray[Any]) -> NDArray[np.float64]:
    """Return -log(-log u), float64 [n], for each of ids [n]; u = (word + 1/2) / 2^32.

    An id's word is output word id % 4 of Philox for the counter (id // 4, position, sample, 0).
    """
    counter = np.zeros((len(ids), 4), dtype=np.uint32)
    counter[:, 0] = ids // 4
    counter[:, 1] = position
    counter[:, 2] = sample
    words = _random_words(seed, counter)[np.arange(len(ids)), ids % 4]
    u = (words.astype(np.float64) + 0.5) / 2.0**32
    return np.asarray(-np.log(-np.log(u)))


def uniform(seed: int, sample: int, position: int) -> float:
    """Return a uniform random number in [0, 1), made of the top 24 bits of a word.

    The word is output word 0 of Philox for the counter (0, position, sample, 1).
    """
    word = _random_words(seed, np.array([[0, position, sample, 1]], dtype=np.uint32))[0, 0]
    return float(int(word) >> 8) / 2.0**24


# ---- the stages and the draw ----


@dataclass
class Sampler:
    """Chooses the tokens of one sequence, and keeps mirostat's state between tokens.

    plan
        The stages, in order, and whether to draw or take the argmax.
    seed, sample
        The user's seed, and the number of this sample among the samples of one prompt. The random
        numbers depend on both.
    n_prompt
        The number of prompt tokens at the start of each history.
    mu
        The max surprisal that mirostat allows, in bits. None before the first draw, which uses
        2 * tau.
    """

    plan: Plan
    seed: int
    sample: int
    n_prompt: int
    mu: float | None = None

    def apply(self, logits: Logits, history: Sequence[int]) -> Logits:
        """Return logits [n_vocab] after all stages; the logits of removed ids are -inf."""
        for stage in self.plan.stages:
            logits = self._apply(stage, logits, history)
        return logits

    def choose(self, logits: Logits, history: Sequence[int]) -> int | None:
        """Return the next token from logits [n_vocab]; None if the stages removed every id.

        `history` holds the ids so far. Ties go to the lower id. A draw updates mirostat's mu.
        """
        before_mirostat = logits
        for stage in self.plan.stages:
            if stage.name == "mirostat":
                before_mirostat = logits
            logits = self._apply(stage, logits, history)
        if logits.max() == -np.inf:
            return None
        if not self.plan.draws or np.isinf(logits.max()):
            return int(np.argmax(logits))
        ids = np.flatnonzero(logits > -np.inf)
        scores = logits[ids] + gumbel_noise(self.seed, self.sample, len(history), ids)
        token = int(ids[np.argmax(scores)])
        for stage in self.plan.stages:
            if stage.name == "mirostat":  # value is tau, other is eta
                surprisal = -math.log2(filters.probabilities(before_mirostat)[token])
                self.mu = self._mu(stage) - stage.other * (surprisal - stage.value)
        return token

    def _mu(self, stage: Stage) -> float:
        return 2 * stage.value if self.mu is None else self.mu

    def _apply(self, stage: Stage, logits: Logits, history: Sequence[int]) -> Logits:
        if stage.name in _PENALTIES:
            logits = logits.copy()
            with np.errstate(over="ignore", invalid="ignore"):
                _PENALTIES[stage.name](logits, stage, history, history[self.n_prompt :])
            return logits
        if not np.isfinite(logits.max()):  # all ids are removed, or a logit is infinite or NaN
            return logits
        if stage.name == "xtc":
            applies = uniform(self.seed, self.sample, len(history)) < np.float32(stage.value)
            return filters.xtc(logits, stage.other) if applies else logits
        if stage.name == "mirostat":
            return filters.mirostat(logits, self._mu(stage))
        argument = stage.count if stage.name == "top_k" else stage.value
        filtered: Logits = getattr(filters, stage.name)(logits, argument)
        return filtered


def _logit_bias(x: Logits, stage: Stage, _: Sequence[int], __: Sequence[int]) -> None:
    x[stage.ids] += stage.values


def _suppress_tokens(x: Logits, stage: Stage, _: Sequence[int], __: Sequence[int]) -> None:
    x[stage.ids] = -np.inf


def _min_new_tokens(x: Logits, stage: Stage, _: Sequence[int], new: Sequence[int]) -> None:
    if len(new) < stage.count:
        x[stage.ids] = -np.inf


# A function that changes logits in place. Its arguments are the logits, the stage, the history and
# the new ids.
_Penalty = Callable[[Logits, Stage, Sequence[int], Sequence[int]], None]
_PENALTIES: dict[str, _Penalty] = {
    "allowed_ids": lambda x, s, ids, new: penalties.allowed_ids(
        x, unpack_allowed_ids(s.ids, len(x))
    ),
    "logit_bias": _logit_bias,
    "suppress_tokens": _suppress_tokens,
    "min_new_tokens": _min_new_tokens,
    "repetition_penalty": lambda x, s, ids, new: penalties.repetition_penalty(x, ids, s.value),
    "presence_penalty": lambda x, s, ids, new: penalties.presence_penalty(x, new, s.value),
    "frequency_penalty": lambda x, s, ids, new: penalties.frequency_penalty(x, new, s.value),
    "no_repeat_ngram_size": lambda x, s, ids, new: penalties.no_repeat_ngram(x, ids, s.count),
    "bad_words": lambda x, s, ids, new: penalties.bad_words(x, ids, unpack_words(s.ids)),
    "dry": lambda x, s, ids, new: penalties.dry(
        x, ids, s.value, s.other, s.count, s.span, s.ids.tolist()
    ),
}
