"""Surprisal word by word: scores the tokens of passages and sums them over words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.measure.corrections import Correction, IdSets, corrected_logprobs
from gpt2c.measure.scores import Score
from gpt2c.measure.words import AlignedWords, Aligner, Passage
from gpt2c.text.added_tokens import WHITE_SPACE

Unit: TypeAlias = Literal["bits", "nats"]
UNITS: Final = ("bits", "nats")

# Passages that are scored in one call, so that a long list needs little memory. Passages that begin
# alike share a pass only inside a call.
_PER_CALL: Final = 2000

# GPT2.score for lists of contexts and continuations, with the options of the call filled in.
IdArrays: TypeAlias = "list[NDArray[np.int32]]"
ScorePairs: TypeAlias = Callable[[IdArrays, IdArrays], list[Score]]


class SurprisalOptions(NamedTuple):
    """What to measure of each word; the arguments of gpt2c.surprisal say what they mean."""

    correction: Correction = "none"
    unit: Unit = "bits"
    entropy_reduction: bool = False
    ignore: re.Pattern[str] | None = None
    renyi_orders: tuple[float, ...] = ()
    n_next_tokens: int = 0

    @property
    def needs_end(self) -> bool:
        """Whether the distribution after the text's last token is needed."""
        return self.correction != "none" or self.entropy_reduction or self.n_next_tokens > 0

    @property
    def scale(self) -> float:
        """What to multiply a number in nats with."""
        return 1 / math.log(2) if self.unit == "bits" else 1.0


@dataclass(frozen=True, eq=False)
class PassageScores:
    """The words of a passage with their numbers, [n_words], float64 in the unit of the options.

    passage, words
        The text with the spans of its words; its tokens.
    score
        The scores of the tokens from n_given on, in nats, followed by those of one more id after
        the text if `options.needs_end`.
    surprisals
        Minus the log-probability of each word: the sum over its tokens. NaN if the text's first
        token has no log-probability (bos=False), or if `ignore` leaves no token.
    corrected
        The corrected surprisals; None without a correction.
    ranks
        int64: the rank of each word's first token; 0 if it has none.
    entropies, renyi_entropies
        Of the distribution that predicts each word's first token, [n_words], [n_words, n_orders].
    entropy_reductions
        The entropy before the word's first token minus the one after its last; None unless asked
        for.
    """

    passage: Passage
    words: AlignedWords
    score: Score
    n_given: int
    surprisals: NDArray[np.float64]
    corrected: NDArray[np.float64] | None
    ranks: NDArray[np.int64]
    entropies: NDArray[np.float64]
    renyi_entropies: NDArray[np.float64]
    entropy_reductions: NDArray[np.float64] | None

    def token_ids(self, word: int) -> list[int]:
        """Return the ids of a word's tokens."""
        found: list[int] = self.words.ids[self.words.first[word] : self.words.end[word]].tolist()
        return found


class SurprisalMeter:
    """Scores passages in groups, and sums the scores over words."""

    def __init__(
        self,
        aligner: Aligner,
        score: ScorePairs,
        token_bytes: Callable[[int], bytes],
        options: SurprisalOptions,
        id_sets: IdSets | None,
        start_ids: Sequence[int],
        log_p_start: float,
    ) -> None:
        """`start_ids` are fed before every passage: the BOS token, or nothing.

        log_p_start is the log-probability of id_sets.at_start after them.
        """
        self._aligner, self._score, self._options = aligner, score, options
        self._id_sets, self._log_p_start = id_sets, log_p_start
        self._start = np.array(start_ids, dtype=np.int32)
        self._token_bytes = token_bytes
        self._known_kinds: dict[int, tuple[bool, bool]] = {}

    def measure(self, passages: Sequence[Passage], names: Sequence[str]) -> Iterator[PassageScores]:
        """Yield the scores of each passage, in order; `names` are theirs in messages.

        All passages are encoded before the first is scored. Raises TokenizerError, and the errors
        of GPT2.score.
        """
        aligned = [self._aligner.align(p, name) for p, name in zip(passages, names, strict=True)]
        for begin in range(0, len(passages), _PER_CALL):
            part = slice(begin, begin + _PER_CALL)
            contexts, continuations, given = [], [], []
            end = np.zeros(int(self._options.needs_end), dtype=np.int32)  # any id
            for words in aligned[part]:
                n_given = int(words.first[0]) if len(words.first) else len(words.ids)
                given.append(n_given)
                contexts.append(np.concatenate([self._start, words.ids[:n_given]]))
                continuations.append(np.concatenate([words.ids[n_given:], end]))
            scores = self._score(contexts, continuations) if contexts else []
            for item in zip(passages[part], aligned[part], scores, given, strict=True):
                yield self._summed(*item)

    def _summed(
        self, passage: Passage, words: AlignedWords, score: Score, n_given: int
    ) -> PassageScores:
        options = self._options
        first, end = words.first - n_given, words.end - n_given
        logprobs = score.logprobs.astype(np.float64)
        if options.ignore is not None:
            is_ignored, is_counted = self._kinds(words.ids[n_given:])
            logprobs[: len(is_ignored)][is_ignored] = 0.0
        by_word = _sums(logprobs, first, end)
        if options.ignore is not None:
            n_counted = _sums(is_counted.astype(np.float64), first, end)
            by_word[n_counted == 0] = np.nan
        entropies = score.entropies.astype(np.float64)
        corrected = None
        if self._id_sets is not None:
            corrected = -options.scale * corrected_logprobs(
                by_word, words, score, n_given, self._id_sets, self._log_p_start
            )
        reductions = None
        if options.entropy_reduction:
            reductions = options.scale * (entropies[first] - entropies[end])
        return PassageScores(
            passage,
            words,
            score,
            n_given,
            surprisals=-options.scale * by_word,
            corrected=corrected,
            ranks=score.ranks[first].astype(np.int64),
            entropies=options.scale * entropies[first],
            renyi_entropies=options.scale * score.renyi_entropies[first].astype(np.float64),
            entropy_reductions=reductions,
        )

    def _kinds(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which tokens `ignore` matches, and which others have more than white space.

        It is matched without the white space before a token.
        """
        known, pattern = self._known_kinds, self._options.ignore
        assert pattern is not None
        for id in ids.tolist():
            if id not in known:
                text = self._token_bytes(id).decode("utf-8", "replace").lstrip(WHITE_SPACE)
                is_ignored = pattern.fullmatch(text) is not None
                known[id] = is_ignored, text != "" and not is_ignored
        kinds = np.array([known[id] for id in ids.tolist()], dtype=np.bool_).reshape(-1, 2)
        return kinds[:, 0], kinds[:, 1]


def _sums(
    values: NDArray[np.float64], first: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the sum of values[first[k]:end[k]] for each k; no range is empty."""
    if len(first) == 0:
        return np.empty(0)
    padded = np.append(values, 0.0)  # because an end may be len(values)
    return np.asarray(np.add.reduceat(padded, np.column_stack([first, end]).ravel())[::2])
