"""Encode texts, or contexts and their continuations, to ids, and score them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt2c.checks.options import flag
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.generate.encoder import Encoder
from gpt2c.generate.prompts import is_lazy, is_single
from gpt2c.measure.scores import Score
from gpt2c.measure.scoring import EncodedText, ScoringOptions, score_texts


class TextsToScore:
    """Encodes the texts of a call of GPT2.score or GPT2.embed."""

    def __init__(self, encoder: Encoder, bos: bool, special_tokens: bool) -> None:
        """Raises OptionError if bos=True and the model has no BOS token."""
        self._encoder = encoder
        self._special = flag("special_tokens", special_tokens)
        self._start = encoder.start_id("bos=True") if flag("bos", bos) else None

    def encode(self, text: Any, index: int, continuation: Any = None) -> EncodedText:
        """Encode a text, or a context and its continuation; `index` is its place, for messages.

        Raises OptionError, OptionTypeError or TokenizerError.
        """
        start = np.array([] if self._start is None else [self._start], dtype=np.int32)
        ids = self._encoder.encode_for_scoring(text, index, self._special, self._start)
        if continuation is None:
            return EncodedText(np.concatenate([start, ids]), len(start))
        continued = self._encoder.encode_continuation(continuation, index, self._special)
        return EncodedText(np.concatenate([start, ids, continued]), len(start) + len(ids))


def score_given(
    engine: EngineModel,
    encoder: TextsToScore,
    texts: Any,
    continuations: Any,
    options: ScoringOptions,
) -> Score | list[Score] | Iterator[Score]:
    """Score one text, a list or an iterator of texts, or continuations; see GPT2.score."""
    if is_lazy(texts):
        if continuations is not None:
            raise OptionTypeError("with continuations, texts must be a list, not an iterator")
        encoded = (encoder.encode(text, i) for i, text in enumerate(texts))
        return score_texts(engine, encoded, options, looks_ahead=False)
    is_list, pairs = pairs_to_score(texts, continuations)
    texts_to_score = [
        encoder.encode(context, i, continuation) for i, (context, continuation) in enumerate(pairs)
    ]
    with engine.held():
        scores = list(score_texts(engine, texts_to_score, options, looks_ahead=True))
    return scores if is_list else scores[0]


def pairs_to_score(texts: Any, continuations: Any) -> tuple[bool, list[tuple[Any, Any]]]:
    """Return whether the result is a list, and the pairs of a context and a continuation.

    Without continuations the second of each pair is None. Raises OptionError or OptionTypeError.
    """
    if is_lazy(continuations):
        raise OptionTypeError("continuations must be a text, ids or a list, not an iterator")
    contexts = [texts] if is_single(texts) else list(texts)
    if continuations is None:
        return not is_single(texts), [(context, None) for context in contexts]
    ends = [continuations] if is_single(continuations) else list(continuations)
    if is_single(texts):
        contexts = contexts * len(ends)
    elif is_single(continuations):
        ends = ends * len(contexts)
    elif len(contexts) != len(ends):
        raise OptionError(
            f"there are {len(contexts)} texts and {len(ends)} continuations; give as many of both, "
            "or a single one of either"
        )
    is_list = not (is_single(texts) and is_single(continuations))
    return is_list, list(zip(contexts, ends, strict=True))
