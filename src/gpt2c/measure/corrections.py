"""Corrections of a word's probability for where its tokens have the space: before the word.

GPT-2's tokens begin with the space before a word. So the product of the probabilities of a word's
tokens does not say that the word ends there, and it does say that a word began after the one
before. Both corrections divide by the probability that a word begins, at its first token, and
multiply by the probability that the next word begins, after its last:

    corrected = surprisal + log p(B | before the word) - log p(B | up to the end of the word)

where B is a set of ids. The factors of two words side by side cancel in a sum.

pimentel
    Tiago Pimentel and Clara Meister, "How to Compute the Probability of a Word", EMNLP 2024
    (arXiv 2406.14561). B is the tokens that begin with a space, and EOS. If the text's first token
    does not begin with a space, the first word divides by the probability of the set B_first
    instead: all tokens that do not begin with a space, EOS among them.
oh_schuler
    Byung-Doh Oh and William Schuler, "Leading Whitespaces of Language Models' Subword Vocabulary
    Pose a Confound for Calculating Word Probabilities", EMNLP 2024 (arXiv 2406.10851). B is the
    tokens that begin with a space. The first word of a text divides by nothing.

At a border where the next token is not in B (a line break, or punctuation that was set apart),
neither word is corrected. The text's end counts as a border.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import OptionError, TokenizerError
from gpt2c.measure.scores import Score
from gpt2c.measure.words import AlignedWords
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer

Correction: TypeAlias = Literal["none", "pimentel", "oh_schuler"]
CORRECTIONS: Final = ("none", "pimentel", "oh_schuler")


@dataclass(frozen=True, eq=False)
class IdSets:
    """The sets of a correction.

    begins_word
        bool [n_vocab]: whether a token begins with a space.
    at_border
        B.
    at_start
        B_first; None if the first word of a text divides by nothing.
    """

    begins_word: NDArray[np.bool_]
    at_border: NDArray[np.int64]
    at_start: NDArray[np.int64] | None = None


def make_id_sets(
    correction: Correction,
    tokenizer: Tokenizer | MissingTokenizer,
    n_vocab: int,
    eos_ids: frozenset[int],
) -> IdSets | None:
    """Return the sets of a correction for a model with n_vocab ids; None for "none".

    Ids that only the model has, and its tokenizer lacks, are in no set.

    Raises TokenizerError if the tokens of the vocabulary do not carry the spaces between words, or
    there is no tokenizer; OptionError if "pimentel" needs an EOS token and there is none.
    """
    if correction == "none":
        return None
    n_known = min(tokenizer.n_vocab, n_vocab)
    source = getattr(tokenizer, "source", "the tokenizer")
    if not getattr(tokenizer, "is_byte_level", False):
        tokenizer.encode("")  # raises the MissingTokenizer's own error
        raise TokenizerError(
            f"correction={correction!r} needs a byte-level BPE vocabulary, whose tokens begin with "
            f"the space before a word; {source} is none"
        )
    begins_word = _begins_word(tokenizer, n_known, n_vocab)
    if not begins_word.any():
        raise TokenizerError(f"correction={correction!r}: no token of {source} begins with a space")
    before_words = set(np.flatnonzero(begins_word).tolist())
    if correction == "oh_schuler":
        return IdSets(begins_word, np.array(sorted(before_words)))
    if not eos_ids:
        raise OptionError("correction='pimentel' needs a model with an EOS token")
    first = set(range(n_known)) - before_words | eos_ids
    at_border = np.array(sorted(before_words | eos_ids))
    return IdSets(begins_word, at_border, np.array(sorted(first)))


@lru_cache(maxsize=4)
def _begins_word(
    tokenizer: Tokenizer | MissingTokenizer, n_known: int, n_vocab: int
) -> NDArray[np.bool_]:
    """Return whether each token begins with a space, [n_vocab]. Nobody changes the array."""
    found = np.zeros(n_vocab, dtype=np.bool_)
    for id in range(n_known):
        found[id] = tokenizer.token_bytes(id)[:1] == b" "
    return found


def corrected_logprobs(
    logprobs: NDArray[np.float64],
    words: AlignedWords,
    score: Score,
    n_given: int,
    id_sets: IdSets,
    log_p_start: float,
) -> NDArray[np.float64]:
    """Return the words' corrected log-probabilities, in nats, float64 [n_words].

    logprobs
        The words' uncorrected log-probabilities, [n_words].
    score
        The scores of the tokens from n_given on, and of one more id after the text's last token,
        with the log-probabilities of B.
    log_p_start
        The log-probability of B_first at the beginning of a text, if the correction has this set.
    """
    if len(logprobs) == 0:
        return logprobs
    log_p = score.set_logprobs[:, 0].astype(np.float64)  # [n_scored], of B
    n_tokens = len(words.ids)
    begins = id_sets.begins_word[words.ids]  # [n_tokens]
    # A border counts if the token after it begins with a space, or the text ends there.
    counts_end = (words.end == n_tokens) | begins[np.minimum(words.end, n_tokens - 1)]
    after = np.where(counts_end, log_p[words.end - n_given], 0.0)
    counts_begin = begins[words.first]
    before = np.where(counts_begin, log_p[words.first - n_given], 0.0)
    if words.first[0] == 0:
        if id_sets.at_start is None:
            before[0] = 0.0
        elif not counts_begin[0]:
            before[0] = log_p_start
    return np.asarray(logprobs - before + after)
