"""Which characters of a text belong to which tokens, and how unlikely those were."""

from __future__ import annotations

import bisect
import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from gpt2c.errors import OptionError, TokenizerError
from gpt2c.measure.scores import Score

# GLTR's classes: the greatest rank of each but the last, which has no bound.
CLASS_BOUNDS: Final = (10, 100, 1000)
CLASS_NAMES: Final = ("top 10", "top 100", "top 1000", "the rest")

_CONTINUATION: Final = range(0x80, 0xC0)  # bytes that only go on with a character of UTF-8


class HasTokenBytes(Protocol):
    """What is needed of a tokenizer; :attr:`GPT2.tokenizer` has it."""

    def token_bytes(self, id: int, /) -> bytes: ...  # noqa: D102


@dataclass(frozen=True)
class Span:
    """Whole characters, and the tokens that spell them: mostly one.

    text
        The characters; U+FFFD for bytes that are none, and an id that has no text in brackets.
    begin, end
        The tokens are those from begin to end, end excluded, of the score.
    rank
        The greatest of theirs, for a character is foreseen if all its tokens are; 0 where none of
        them has a rank.
    """

    text: str
    begin: int
    end: int
    rank: int


def class_of(rank: int) -> int | None:
    """The index in CLASS_NAMES of a rank; None of rank 0, which a token has that is not scored."""
    return bisect.bisect_left(CLASS_BOUNDS, rank) if rank > 0 else None


def shares(score: Score) -> tuple[float, ...]:
    """What part of the tokens that are scored each class has; zeros where none is."""
    ranks = score.ranks[score.ranks > 0]
    counts = np.bincount(np.searchsorted(CLASS_BOUNDS, ranks), minlength=len(CLASS_NAMES))
    return tuple((counts / max(len(ranks), 1)).tolist())


def summary(score: Score) -> str:
    """How long a text is, and its perplexity."""
    n = len(score.ids)
    found = f"{n:,} token" + ("s" if n != 1 else "")
    if not score.n_scored:
        return f"{found}, none scored"
    return f"{found}, perplexity {score.perplexity:,.4g}"


def spans(score: Score, tokenizer: HasTokenBytes) -> Iterator[Span]:
    """The text of a score in order; joined, the spans are what the tokenizer decodes."""
    ids, ranks = score.ids.tolist(), score.ranks.tolist()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, begin = "", 0
    for index, id in enumerate(ids):
        new = spelling(tokenizer, id)
        is_inside = decoder.getstate()[0] and new[0] in _CONTINUATION
        if index > begin and not is_inside:
            text += decoder.decode(b"", final=True)
            yield Span(text, begin, index, max(ranks[begin:index]))
            text, begin = "", index
        text += decoder.decode(new)
    if ids:
        text += decoder.decode(b"", final=True)
        yield Span(text, begin, len(ids), max(ranks[begin:]))


def spelling(tokenizer: HasTokenBytes, id: int) -> bytes:
    """The bytes of a token; of one that has none its id in brackets."""
    try:
        return tokenizer.token_bytes(id) or b"[%d]" % id
    except (OptionError, TokenizerError):  # an id beyond its vocabulary; no tokenizer at all
        return b"[%d]" % id
