"""Sampling stages that penalise or ban single ids, in plain NumPy.

Each function changes logits [n_vocab], float32 or float64, in place. `history` holds the ids of the
prompt and of the new tokens; `new_ids` holds only those of the new tokens. The compiled engine is
tested against these functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]


def allowed_ids(logits: Logits, mask: NDArray[np.bool_]) -> None:
    """Ban each id whose element of mask, bool [n_vocab], is False."""
    logits[~mask] = -np.inf


def repetition_penalty(logits: Logits, history: Sequence[int], penalty: float) -> None:
    """Divide the logits of the history's ids by penalty, but multiply negative ones by it.

    Keskar et al. 2019, "CTRL".
    """
    ids = sorted(set(history))
    x = logits[ids]
    logits[ids] = np.where(x < 0, x * penalty, x / penalty)


def presence_penalty(logits: Logits, new_ids: Sequence[int], penalty: float) -> None:
    """Subtract penalty once from the logit of each generated id, as OpenAI's API does."""
    logits[sorted(set(new_ids))] -= penalty


def frequency_penalty(logits: Logits, new_ids: Sequence[int], penalty: float) -> None:
    """Subtract penalty from the logit of each generated id once per occurrence, as OpenAI does."""
    for id, count in Counter(new_ids).items():
        logits[id] -= penalty * count


def dry(
    logits: Logits,
    history: Sequence[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    span: int,
    breakers: Sequence[int],
) -> None:
    """Penalise ids that would lengthen a repetition ("don't repeat yourself").

    p-e-w 2024 (oobabooga/text-generation-webui pull request 5677).

    If the last `length` ids of the history also occur earlier, the id that follows them there would
    lengthen a repetition. If several such occurrences precede an id, the longest counts. If its
    length is at least allowed_length, multiplier * base ** (length - allowed_length) is subtracted
    from the id's logit. A repetition cannot contain any of the ids `breakers`, and these are never
    penalised. Only the last `span` ids of the history count; 0 means all.
    """
    recent = list(history)[-span:] if span else list(history)
    longest: dict[int, int] = {}  # id -> length of the longest repetition that it would lengthen
    for i in range(1, len(recent)):
        length = 0
        while (
            length < i
            and recent[i - 1 - length] == recent[-1 - length]
            and recent[-1 - length] not in breakers
        ):
            length += 1
        longest[recent[i]] = max(longest.get(recent[i], 0), length)
    for id, length in longest.items():
        if length >= max(allowed_length, 1) and id not in breakers:
            with np.errstate(over="ignore"):
                logits[id] -= multiplier * np.float64(base) ** (length - allowed_length)


def no_repeat_ngram(logits: Logits, history: Sequence[int], n: int) -> None:
    """Ban each id that would complete an n-gram of the history again (Paulus et al. 2017)."""
    ids = list(history)
    if len(ids) < n:
        return
    last = ids[len(ids) - (n - 1) :]
    for i in range(len(ids) - n + 1):
        if ids[i : i + n - 1] == last:
            logits[ids[i + n - 1]] = -np.inf


def bad_words(logits: Logits, history: Sequence[int], words: Sequence[Sequence[int]]) -> None:
    """Ban each id that would complete one of the words, each of which is a sequence of ids."""
    ids = list(history)
    for word in words:
        *before, last = word
        if len(before) <= len(ids) and ids[len(ids) - len(before) :] == before:
            logits[last] = -np.inf
