"""POST /score, by GPT2.score, and POST /v1/embeddings, by GPT2.embed."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from gpt2c.measure.scores import Score
from gpt2c.serve.admission import Admission
from gpt2c.serve.completions import scored_tokens
from gpt2c.serve.errors import RequestError
from gpt2c.serve.fields import (
    Body,
    Field,
    TextOrIds,
    boolean,
    limited,
    one_of,
    short_text,
    texts_or_ids,
)
from gpt2c.serve.http import encoded_with_list
from gpt2c.serve.limits import Limits
from gpt2c.serve.models import Encoding, Models, ServedModel
from gpt2c.serve.tokens import LogprobsWriter

_MODEL: Final = Field("model", short_text, "string", None, "default: the first model")
_SHAPES: Final = "string, [string], [id] or [[id]]"
_SPECIAL: Final = Field("parse_special", boolean, "boolean", False,
                        "whether names of special tokens become ids")  # fmt: skip
SCORE: Final = Body((
    _MODEL,
    Field("context", texts_or_ids, _SHAPES, None, "what comes before; required"),
    Field("continuation", texts_or_ids, _SHAPES, None, "what is scored; required"),
    Field("logprobs", limited(0, "max_logprobs"), "integer >= 0", 0,
          "return this many most likely tokens too"),
    _SPECIAL,
), ("context", "continuation"))  # fmt: skip
EMBEDDINGS: Final = Body((
    _MODEL,
    Field("input", texts_or_ids, _SHAPES, None, "what to embed; required"),
    Field("encoding_format", one_of("float", "base64"), '"float" or "base64"', "float",
          "base64 is of little-endian float32"),
    Field("user", short_text, "string", None, "accepted, and has no effect"),
    _SPECIAL,
), ("input",), {"dimensions": "a vector has n_embd numbers"})  # fmt: skip


async def _encode(
    served: ServedModel, admission: Admission, given: list[TextOrIds], name: str, special: bool
) -> list[list[int]]:
    encoding = Encoding(special)
    return await admission.in_thread(
        lambda: [served.encode(item, f"{name}[{i}]", encoding) for i, item in enumerate(given)]
    )


async def score(
    models: Models,
    admission: Admission,
    body: Mapping[str, Any],
    limits: Limits,
    parses_special: bool,
) -> bytes:
    """Score continuations given contexts: pairs, or one of either with each of the other."""
    given = SCORE.check(body, limits)
    served = models.get(given["model"])
    contexts, ends = given["context"], given["continuation"]
    if len(contexts) != len(ends) and 1 not in (len(contexts), len(ends)):
        raise RequestError(
            400, f"there are {len(contexts)} contexts and {len(ends)} continuations; give as many "
            "of both, or one of either", param="continuation",
        )  # fmt: skip
    n = max(len(contexts), len(ends))
    special = parses_special and given["parse_special"]
    before = await _encode(served, admission, contexts, "context", special)
    after = await _encode(served, admission, ends, "continuation", special)
    before, after = before * (n // len(before)), after * (n // len(after))
    _check_pairs_fit(served, before, after)
    n_tokens = sum(map(len, before)) + sum(map(len, after))
    async with admission.scoring(n_tokens):
        scores = await admission.score(served, before, after, given["logprobs"])
    return await admission.in_thread(
        lambda: encoded_with_list(
            _head(served, n_tokens), "data",
            (_score_of(served, index, found) for index, found in enumerate(scores)),
        )
    )  # fmt: skip


def _check_pairs_fit(served: ServedModel, before: list[list[int]], after: list[list[int]]) -> None:
    for index, (context, end) in enumerate(zip(before, after, strict=True)):
        if len(context) + len(end) > served.n_positions:
            raise RequestError(
                400, f"context and continuation {index} have {len(context) + len(end)} tokens, "
                f"more than the context's {served.n_positions} positions", param="continuation",
                code="context_length_exceeded",
            )  # fmt: skip


def _head(served: ServedModel, n_tokens: int) -> dict[str, Any]:
    return {
        "object": "list",
        "model": served.name,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _score_of(served: ServedModel, index: int, score: Score) -> dict[str, Any]:
    writer = LogprobsWriter(served.token_bytes, names_are_ids=not served.has_text)
    return {
        "object": "score",
        "index": index,
        "score": score.total,
        "is_greedy": bool(score.is_arg_max.all()),
        "token_ids": score.ids.tolist(),
        "ranks": score.ranks.tolist(),
        "logprobs": writer.write(scored_tokens(score)),
    }


async def embeddings(
    models: Models,
    admission: Admission,
    body: Mapping[str, Any],
    limits: Limits,
    parses_special: bool,
) -> bytes:
    """Embed texts: the mean of their tokens' last hidden states."""
    given = EMBEDDINGS.check(body, limits)
    served = models.get(given["model"])
    special = parses_special and given["parse_special"]
    texts = await _encode(served, admission, given["input"], "input", special)
    if not all(texts):
        raise RequestError(400, f"input[{texts.index([])}] is empty", param="input")
    n_tokens = sum(map(len, texts))
    async with admission.scoring(n_tokens):
        vectors = await admission.embed(served, texts)
    return await admission.in_thread(
        lambda: encoded_with_list(
            _head(served, n_tokens), "data",
            (
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _vector(vector, given["encoding_format"]),
                }
                for index, vector in enumerate(vectors)
            ),
        )
    )  # fmt: skip


def _vector(vector: Any, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode()
    return vector.tolist()
