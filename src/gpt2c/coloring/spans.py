"""Divide a text into spans: whole characters, with the tokens that spell them and their rank."""

from __future__ import annotations

import bisect
import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from gpt2c.errors import OptionError, TokenizerError
from gpt2c.measure.scores import Score

# The highest rank of each of GLTR's classes; the last class has no bound.
CLASS_BOUNDS: Final = (10, 100, 1000)
CLASS_NAMES: Final = ("top 10", "top 100", "top 1000", "the rest")

_CONTINUATION_BYTES: Final = range(0x80, 0xC0)  # the continuation bytes of UTF-8


class HasTokenBytes(Protocol):
    """A tokenizer that knows each token's bytes, such as :attr:`GPT2.tokenizer`."""

    def token_bytes(self, id: int, /) -> bytes: ...  # noqa: D102


@dataclass(frozen=True)
class Span:
    """Whole characters, and the tokens that spell them; usually there is one token.

    text
        The characters. Bytes that are not valid UTF-8 become U+FFFD; a token without text becomes
        its id in brackets.
    begin, end
        The span's tokens are the score's tokens [begin, end).
    rank
        The highest rank of these tokens, because a character is as unlikely as its unlikeliest
        token; 0 if none of them was scored.
    """

    text: str
    begin: int
    end: int
    rank: int


def class_of(rank: int) -> int | None:
    """Return the rank's index in CLASS_NAMES; None for rank 0, an unscored token."""
    return bisect.bisect_left(CLASS_BOUNDS, rank) if rank > 0 else None


def shares(score: Score) -> tuple[float, ...]:
    """Return the share of each class among the scored tokens; zeros if no token was scored."""
    ranks = score.ranks[score.ranks > 0]
    counts = np.bincount(np.searchsorted(CLASS_BOUNDS, ranks), minlength=len(CLASS_NAMES))
    return tuple((counts / max(len(ranks), 1)).tolist())


def summary(score: Score) -> str:
    """Describe the number of tokens and the perplexity, as in "5 tokens, perplexity 12.3"."""
    n = len(score.ids)
    length = f"{n:,} token" + ("s" if n != 1 else "")
    if not score.n_scored:
        return f"{length}, none scored"
    return f"{length}, perplexity {score.perplexity:,.4g}"


def spans(score: Score, tokenizer: HasTokenBytes) -> Iterator[Span]:
    """Yield the spans of a score in order; joined, their texts are the decoded ids."""
    ids, ranks = score.ids.tolist(), score.ranks.tolist()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, begin = "", 0
    for index, id in enumerate(ids):
        token = spelling(tokenizer, id)
        continues_character = decoder.getstate()[0] and token[0] in _CONTINUATION_BYTES
        if index > begin and not continues_character:
            text += decoder.decode(b"", final=True)
            yield Span(text, begin, index, max(ranks[begin:index]))
            text, begin = "", index
        text += decoder.decode(token)
    if ids:
        text += decoder.decode(b"", final=True)
        yield Span(text, begin, len(ids), max(ranks[begin:]))


def spelling(tokenizer: HasTokenBytes, id: int) -> bytes:
    """Return a token's bytes, or the id in brackets for a token without bytes."""
    try:
        return tokenizer.token_bytes(id) or b"[%d]" % id
    except (OptionError, TokenizerError):  # an id beyond the vocabulary; a MissingTokenizer
        return b"[%d]" % id
