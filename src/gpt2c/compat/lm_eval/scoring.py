"""The token ids that lm-eval's requests score: how texts are split, and the model's windows.

The rules are those of lm-eval's HFLM, so that results are comparable. This module needs no lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import ContextError, OptionError
from gpt2c.measure.scores import Score
from gpt2c.measure.scoring import EncodedText, ScoringOptions, score_texts

Encode = Callable[[str, bool], Sequence[int]]  # (text, whether to add special tokens) -> ids


class Pair(NamedTuple):
    """The ids of a context, at least one, and those of its continuation, which are scored."""

    context: Sequence[int]
    continuation: Sequence[int]


def encode_pair(context: str, continuation: str, encode: Encode, prefix_id: int) -> Pair:
    """Return the ids of a context and its continuation.

    The two are encoded as one text, after white space at the end of the context was moved to the
    continuation. An empty context is the token prefix_id, or the continuation's own first token if
    it is prefix_id.

    Raises OptionError if the continuation's characters belong to tokens of the context.
    """
    head = context.rstrip()
    if not head:
        ids = encode(context + continuation, False)
        return Pair(ids[:1], ids[1:]) if ids and ids[0] == prefix_id else Pair([prefix_id], ids)
    ids, given = encode(context + continuation, True), encode(head, True)
    if len(ids) <= len(given) and context + continuation != head:
        raise OptionError(
            f"the continuation {show(continuation)} has no token of its own after the context "
            f"{show(context[-40:])}; begin the continuation at a space"
        )
    return Pair(given, ids[len(given) :])


def score_pairs(
    engine: EngineModel, pairs: Iterable[Pair], max_length: int
) -> Iterator[tuple[float, bool]]:
    """Yield each continuation's log-probability, in nats, and whether greedy decoding chooses it.

    The model sees the last max_length tokens before the last token of the continuation. Contexts
    that are equal or begin alike are computed once.

    Raises ContextError for a continuation of more than max_length tokens; NumericalError;
    CacheMemoryError.
    """
    texts = [_text_of(pair, max_length, index) for index, pair in enumerate(pairs)]
    # A text has at most one token more than the context has positions, because its last token is
    # not fed, so each text is a single window.
    options = ScoringOptions(stride=max_length, window=max_length + 1)
    for score in score_texts(engine, texts, options, looks_ahead=True):
        yield _answer(score)


def _text_of(pair: Pair, max_length: int, index: int) -> EncodedText:
    if len(pair.continuation) > max_length:
        raise ContextError(
            f"request {index}: the continuation has {len(pair.continuation)} tokens; the model "
            f"scores at most {max_length}, its max_length"
        )
    ids = np.array([*pair.context, *pair.continuation][-(max_length + 1) :], dtype=np.int32)
    return EncodedText(ids, len(ids) - len(pair.continuation))


def _answer(score: Score) -> tuple[float, bool]:
    return score.total, bool(score.is_arg_max.all())
