"""POST /tokenize and /detokenize, and GET /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gpt2c.checks.options import integer, items
from gpt2c.serve.fields import (
    ID_SCHEMA,
    Body,
    Field,
    boolean,
    checks,
    short_text,
    text,
)
from gpt2c.serve.limits import Limits
from gpt2c.serve.models import Encoding, Models, ServedModel


@checks(lambda limits: {"type": "string", "maxLength": limits.max_prompt_chars})
def _prompt(name: str, value: Any, limits: Limits) -> str:
    return text(name, value, limits.max_prompt_chars)


@checks(lambda _: {"type": "array", "items": ID_SCHEMA})
def _ids(name: str, value: Any, limits: Limits) -> list[int]:
    ids = items(name, value, "token ids")
    return [integer(f"an id in {name}", id, 0, 2**31 - 1) for id in ids]


_MODEL: Final = Field("model", short_text, "string", None, "default: the first model")
TOKENIZE: Final = Body(
    (
        _MODEL,
        Field("prompt", _prompt, "string", None, "the text to encode; required"),
        Field("add_special_tokens", boolean, "boolean", True, "as for completions"),
        Field("parse_special", boolean, "boolean", None, "as for completions"),
        Field("return_token_strs", boolean, "boolean", False, "return the tokens' texts too"),
    ),
    ("prompt",),
)
DETOKENIZE: Final = Body(
    (_MODEL, Field("tokens", _ids, "[id]", None, "what to decode; required")), ("tokens",)
)


def tokenize(
    models: Models, body: Mapping[str, Any], limits: Limits, parses_special: bool
) -> dict[str, Any]:
    """Return the ids of a text, which may be longer than the context."""
    given = TOKENIZE.check(body, limits)
    served = models.get(given["model"])
    served.check_has_text()
    special = parses_special and given["parse_special"] is not False
    encoding = Encoding(special, given["add_special_tokens"])
    ids = served.tokenizer.encode(
        given["prompt"], special=encoding.parses_special,
        add_special_tokens=encoding.adds_special_tokens,
    )  # fmt: skip
    strings = [served.decode([id]) for id in ids] if given["return_token_strs"] else None
    return {
        "count": len(ids),
        "max_model_len": served.n_positions,
        "tokens": ids,
        "token_strs": strings,
    }


def detokenize(models: Models, body: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return the text of ids."""
    given = DETOKENIZE.check(body, limits)
    served = models.get(given["model"])
    served.check_has_text()
    return {"prompt": served.tokenizer.decode(given["tokens"])}


def tokenizer_info(served: ServedModel) -> dict[str, Any]:
    """Return what lm-eval asks about a tokenizer. There is never a chat template."""
    config, tokenizer = served.model.config, served.tokenizer

    def name(id: int | None) -> str | None:
        return served.decode([id]) or None if id is not None else None

    eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eot_id
    eos = eos[0] if isinstance(eos, tuple) else eos
    bos = config.bos_token_id if config.bos_token_id is not None else tokenizer.bos_id
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": config.vocab_size,
        "model_max_length": served.n_positions,
        "eos_token": name(eos),
        "bos_token": name(bos),
        "pad_token": name(config.pad_token_id),
        "eos_token_id": eos,
        "bos_token_id": bos,
        "pad_token_id": config.pad_token_id,
        "chat_template": None,
    }
