"""JSON schemas of the answers, for the OpenAPI page. Tests hold real answers against them."""

from __future__ import annotations

from typing import Any, Final

from gpt2c.serve.fields import Schema

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_NUMBER: Final = {"type": "number"}
_BOOLEAN: Final = {"type": "boolean"}


def _object(optional: dict[str, Schema] | None = None, **required: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [*required],
        "properties": {**required, **(optional or {})},
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _just(value: str) -> Schema:
    return {"type": "string", "const": value}


def _use(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _data(item: str, **fields: Schema) -> Schema:
    return _object(object=_just("list"), data=_list(_use(item)), **fields)


_SCORED_USAGE: Final = _object(prompt_tokens=_COUNT, total_tokens=_COUNT)

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object(
        error=_object(
            message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT),
        )
    ),
    "Logprobs": _object(
        text_offset=_list(_COUNT),
        token_logprobs=_list(_or_null(_NUMBER)),
        tokens=_list(_TEXT),
        top_logprobs=_list(_or_null({"type": "object", "additionalProperties": _NUMBER})),
    ),
    "Choice": _object(
        {"prompt_token_ids": _list(_COUNT), "token_ids": _list(_COUNT)},
        index=_COUNT,
        text=_TEXT,
        logprobs=_or_null(_use("Logprobs")),
        finish_reason={"anyOf": [{"enum": ["length", "stop", "time"]}, {"type": "null"}]},
        seed=_or_null(_COUNT),
    ),
    "Usage": _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
    "Completion": _object(
        {"usage": _or_null(_use("Usage"))},
        id=_TEXT,
        object=_just("text_completion"),
        created=_COUNT,
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices=_list(_use("Choice")),
    ),
    "Embeddings": _data("Embedding", model=_TEXT, usage=_SCORED_USAGE),
    "Embedding": _object(
        object=_just("embedding"), index=_COUNT, embedding={"anyOf": [_list(_NUMBER), _TEXT]},
    ),
    "Scores": _data("Score", model=_TEXT, usage=_SCORED_USAGE),
    "Score": _object(
        object=_just("score"),
        index=_COUNT,
        score={**_NUMBER, "description": "the sum of the log-probabilities, in nats"},
        is_greedy=_BOOLEAN,
        token_ids=_list(_COUNT),
        ranks=_list(_COUNT),
        logprobs=_use("Logprobs"),
    ),
    "Tokens": _object(
        count=_COUNT,
        max_model_len=_COUNT,
        tokens=_list(_COUNT),
        token_strs=_or_null(_list(_TEXT)),
    ),
    "Text": _object(prompt=_TEXT),
    "TokenizerInfo": _object(
        tokenizer_class=_TEXT,
        vocab_size=_COUNT,
        model_max_length=_COUNT,
        chat_template={"type": "null"},
        **{
            f"{name}_token{end}": _or_null(kind)
            for name in ("eos", "bos", "pad")
            for end, kind in (("", _TEXT), ("_id", _COUNT))
        },
    ),
    "Models": _data("Model"),
    "Model": _object(
        id=_TEXT,
        object=_just("model"),
        created=_COUNT,
        owned_by=_TEXT,
        root=_TEXT,
        parent=_or_null(_TEXT),
        max_model_len=_COUNT,
        dtype=_TEXT,
    ),
    "Health": _object(status=_just("ok")),
    "Version": _object(version=_TEXT, arithmetic=_COUNT),
    "OpenAPI": {"type": "object"},
}  # fmt: skip


def stream_description() -> dict[str, Any]:
    """Return the media type of a streamed completion."""
    return {
        "schema": {
            "type": "string",
            "description": "server-sent events: each has a Completion with the new parts of one "
            "choice, or an Error; the last is [DONE]",
        }
    }
