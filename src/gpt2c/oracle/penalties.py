"""The options that change single logits by what the text holds, in plain NumPy.

Each function takes logits [n_vocab] of any float type and changes them in place. history is the
prompt's ids and the new ones; what the compiled engine does is tested against this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]


def repetition_penalty(logits: Logits, history: Sequence[int], penalty: float) -> None:
    """Keskar et al. 2019, "CTRL": ids of the text are divided by it, negative ones multiplied."""
    ids = sorted(set(history))
    x = logits[ids]
    logits[ids] = np.where(x < 0, x * penalty, x / penalty)


def presence_penalty(logits: Logits, new_ids: Sequence[int], penalty: float) -> None:
    """As OpenAI's API: once for each id that was generated."""
    logits[sorted(set(new_ids))] -= penalty


def frequency_penalty(logits: Logits, new_ids: Sequence[int], penalty: float) -> None:
    """As OpenAI's API: for each time that an id was generated."""
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
    """p-e-w 2024 (oobabooga/text-generation-webui pull request 5677), "don't repeat yourself".

    An id that would lengthen a repetition of at least allowed_length ids loses
    multiplier * base ** (length - allowed_length). A repetition holds no breaker. span is how much
    of the text's end is looked at; 0: all.
    """
    text = list(history)[-span:] if span else list(history)
    longest: dict[int, int] = {}
    for i in range(1, len(text)):
        length = 0
        while (
            length < i
            and text[i - 1 - length] == text[-1 - length]
            and text[-1 - length] not in breakers
        ):
            length += 1
        longest[text[i]] = max(longest.get(text[i], 0), length)
    for id, length in longest.items():
        if length >= max(allowed_length, 1) and id not in breakers:
            with np.errstate(over="ignore"):
                logits[id] -= multiplier * np.float64(base) ** (length - allowed_length)


def no_repeat_ngram(logits: Logits, history: Sequence[int], n: int) -> None:
    """Paulus et al. 2017: no n ids in a row come twice."""
    text = list(history)
    if len(text) < n:
        return
    last = text[len(text) - (n - 1) :]
    for i in range(len(text) - n + 1):
        if text[i : i + n - 1] == last:
            logits[text[i + n - 1]] = -np.inf


def bad_words(logits: Logits, history: Sequence[int], words: Sequence[Sequence[int]]) -> None:
    """What would complete one of the words is banned."""
    text = list(history)
    for word in words:
        *before, last = word
        if len(before) <= len(text) and text[len(text) - len(before) :] == before:
            logits[last] = -np.inf
