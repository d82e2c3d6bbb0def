"""The fields of POST /v1/completions, and the request that they make.

`FIELDS` is the one table of them: docs/server.md lists it, and a test compares the two.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gpt2c.checks.options import INT32_MAX, integer, items, number
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.serve.errors import RequestError
from gpt2c.serve.fields import (
    ID_SCHEMA,
    Body,
    Check,
    Field,
    Schema,
    TextOrIds,
    boolean,
    checks,
    few,
    id_list,
    limited,
    one_of,
    real,
    short_text,
    text,
    texts_or_ids,
    texts_schema,
    whole,
)
from gpt2c.serve.limits import Limits

_MAX_SEED: Final = 2**64 - 1
_ID_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "-_.:")
_MAX_REQUEST_ID: Final = 100


# ---- checks of fields that only this request has ----


_ONE_SEED: Final = {"type": "integer", "minimum": 0, "maximum": _MAX_SEED}
_STOPS: Final = texts_schema(lambda x: x.max_stops, lambda x: x.max_prompt_chars)
_WORDS: Final = texts_schema(lambda x: x.max_items, lambda x: x.max_prompt_chars)


def _seed_schema(limits: Limits) -> Schema:
    several = {"type": "array", "maxItems": limits.max_prompts, "items": _ONE_SEED}
    return {"anyOf": [_ONE_SEED, several]}


@checks(_seed_schema)
def _seed(name: str, value: Any, limits: Limits) -> int | list[int]:
    if isinstance(value, list):
        seeds = few(name, value, limits.max_prompts, "seeds")
        return [integer(f"a seed in {name}", seed, 0, _MAX_SEED) for seed in seeds]
    return integer(name, value, 0, _MAX_SEED)


@checks(lambda limits: {"anyOf": [_STOPS(limits)["items"], _STOPS(limits)]})
def _stops(name: str, value: Any, limits: Limits) -> list[str]:
    given = [value] if isinstance(value, str) else few(name, value, limits.max_stops, "strings")
    for stop in given:
        if not text(f"a string in {name}", stop, limits.max_prompt_chars):
            raise OptionError(f"{name} has an empty string, which every text contains")
    return given


@checks(_WORDS)
def _words(name: str, value: Any, limits: Limits) -> list[str]:
    given = few(name, value, limits.max_items, "strings")
    for word in given:
        if not text(f"a string in {name}", word, limits.max_prompt_chars):
            raise OptionError(f"{name} has an empty string")
    return given


def _logit_bias_schema(limits: Limits) -> Schema:
    return {
        "type": "object",
        "maxProperties": limits.max_items,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    }


@checks(_logit_bias_schema)
def _logit_bias(name: str, value: Any, limits: Limits) -> dict[int, float]:
    if not isinstance(value, dict):
        raise OptionTypeError(
            f"{name} is {show(value)}; it must be an object that maps token ids to numbers"
        )
    if len(value) > limits.max_items:
        raise OptionError(f"{name} has {len(value)} ids; it may have at most {limits.max_items}")
    found: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise OptionError(f"{name} has the key {show(key)}; keys must be token ids")
        if int(key) in found:
            raise OptionError(f"{name} has the id {int(key)} twice")
        found[int(key)] = number(f"{name} of {key}", bias, -100, 100)
    return found


_STREAM_OPTIONS: Final = Body(
    (Field("include_usage", boolean, "boolean", False, "send the token counts before `[DONE]`"),)
)


@checks(_STREAM_OPTIONS.schema)
def _stream_options(name: str, value: Any, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OptionTypeError(f"{name} is {show(value)}; it must be an object")
    try:
        return _STREAM_OPTIONS.check(value, limits)
    except RequestError as error:
        raise OptionError(f"{name}: {error.message}") from None


@checks(lambda _: {"type": "array", "minItems": 1, "items": ID_SCHEMA})
def _allowed_ids(name: str, value: Any, _: Limits) -> list[int]:
    ids = items(name, value, "token ids")
    if not ids:
        raise OptionError(f"{name} is empty, so no token could be chosen")
    return [integer(f"an id in {name}", id, 0, INT32_MAX) for id in ids]


@checks(lambda _: {"type": "integer", "minimum": -1, "maximum": INT32_MAX, "not": {"const": 0}})
def _count_or_minus_one(name: str, value: Any, _: Limits) -> int:
    """Check a count of 1 or more; -1 means all, and is returned as 0."""
    count = integer(name, value, -1, INT32_MAX)
    if count == 0:
        raise OptionError(f"{name} is 0; it must be -1 or at least 1")
    return max(count, 0)


@checks(lambda _: {"type": "integer", "minimum": -1, "maximum": INT32_MAX})
def _top_k(name: str, value: Any, _: Limits) -> int:
    return max(integer(name, value, -1, INT32_MAX), 0)


def request_id(name: str, value: Any, _: Limits | None = None) -> str:
    """Check a client's id of a request, which answers and the log repeat."""
    if not isinstance(value, str) or not value:
        raise OptionTypeError(f"{name} is {show(value)}; it must be a string that is not empty")
    if len(value) > _MAX_REQUEST_ID or not _ID_CHARACTERS.issuperset(value):
        raise OptionError(
            f"{name} is {show(value)}; it may have at most {_MAX_REQUEST_ID} ASCII letters, "
            "digits and characters of -_.:"
        )
    return value


def _request_id_schema(_: Limits) -> Schema:
    return {"type": "string", "pattern": f"^[A-Za-z0-9_.:-]{{1,{_MAX_REQUEST_ID}}}$"}


@checks(lambda _: {"type": "string", "maxLength": 1000})
def _ignored_text(name: str, value: Any, _: Limits) -> str:
    return text(name, value, 1000)


# ---- the table ----


def _option(name: str, check: Check, values: str, what: str, option: str | None = None) -> Field:
    """Return a field that is an option of GPT2.complete, by its own name or that of `option`."""
    return Field(name, check, values, None, what, option or name)


OPENAI: Final = (
    Field("model", short_text, "string", None, "a model's name or alias; default: the first model"),
    Field("prompt", texts_or_ids, "string, [string], [id] or [[id]]", None,
          "what to continue; required"),
    Field("max_tokens", limited(0, "max_tokens"), "integer >= 0", 16,
          "the max number of new tokens; 0 with `echo` and `logprobs` scores the prompt"),
    _option("temperature", real(0, 100), "0 to 100", "0 is greedy decoding; default: 1"),
    _option("top_p", real(0, 1), "0 to 1", "keep the most likely tokens of this total probability"),
    Field("n", limited(1, "max_n"), "integer >= 1", 1, "the number of choices per prompt"),
    Field("best_of", limited(1, "max_n"), "integer >= n", None,
          "draw this many texts, and return the n with the highest mean log-probability"),
    Field("echo", boolean, "boolean", False, "return the prompt before the new text"),
    Field("logprobs", limited(0, "max_logprobs"), "integer >= 0", None,
          "return log-probabilities, also of this many most likely tokens"),
    Field("stop", _stops, "string or [string]", (), "strings that end a text; not returned"),
    Field("stream", boolean, "boolean", False, "send server-sent events, one per token"),
    Field("stream_options", _stream_options, "object", None,
          "`include_usage`: send the token counts before `[DONE]`"),
    Field("seed", _seed, "integer from 0 to 2^64 - 1, or one per prompt", None,
          "the seed of the draws; default: a random one, which the choice reports"),
    _option("presence_penalty", real(-2, 2), "-2 to 2", "subtract once from generated tokens"),
    _option("frequency_penalty", real(-2, 2), "-2 to 2", "subtract for each time generated"),
    _option("logit_bias", _logit_bias, "object of ids and -100 to 100", "add to the logits of ids"),
    Field("user", _ignored_text, "string", None, "accepted, and has no effect"),
)  # fmt: skip

VLLM: Final = (
    _option("top_k", _top_k, "integer >= -1",
            "keep this many most likely tokens; -1 and 0: all"),
    _option("min_p", real(0, 1), "0 to 1", "drop tokens less likely than this share of the max"),
    _option("repetition_penalty", real(0.01, 100), "0.01 to 100",
            "divide positive logits of seen tokens by it, and multiply negative ones"),
    _option("min_tokens", limited(0, "max_tokens"), "integer >= 0",
            "the number of tokens before an EOS or stop token", "min_new_tokens"),
    _option("stop_token_ids", id_list, "[id]", "tokens that end a text; not part of it"),
    Field("ignore_eos", boolean, "boolean", False, "never choose an EOS token (as llama.cpp does)"),
    _option("bad_words", _words, "[string]", "words that are never generated"),
    Field("allowed_token_ids", _allowed_ids, "[id]", None, "the only tokens that may be chosen"),
    Field("truncate_prompt_tokens", _count_or_minus_one, "integer >= 1, or -1", None,
          "cut prompts to this many tokens; -1: to the context"),
    Field("truncation_side", one_of("left", "right"), '"left" or "right"', "left",
          "which end of a prompt is cut off"),
    Field("add_special_tokens", boolean, "boolean", True,
          "add what the tokenizer puts around a text (GPT-2's adds nothing)"),
    Field("priority", whole(0, INT32_MAX), "integer >= 0", 0,
          "requests with lower numbers begin earlier"),
    Field("request_id", Check(request_id, _request_id_schema), "string", None,
          "the id of the answer, after `cmpl-`"),
    Field("return_tokens_as_token_ids", boolean, "boolean", False,
          "name tokens in logprobs `token_id:N`"),
    Field("return_token_ids", boolean, "boolean", False,
          "add `prompt_token_ids` and `token_ids` to choices"),
)  # fmt: skip

LLAMA_CPP: Final = (
    Field("parse_special", boolean, "boolean", None,
          "whether names of special tokens in a prompt become ids; default: as the server says"),
    _option("typical_p", real(0, 1), "0 to 1", "keep the most typical tokens"),
    _option("top_n_sigma", real(0, 1e6), ">= 0", "keep logits near the max, in deviations"),
    _option("xtc_probability", real(0, 1), "0 to 1", "how often XTC removes likely tokens"),
    _option("xtc_threshold", real(0, 1), "0 to 1", "which tokens XTC removes"),
    _option("mirostat_tau", real(0, 100), "0 to 100", "turns mirostat 2 on; surprisal in bits"),
    _option("mirostat_eta", real(0, 10), "0 to 10", "mirostat's learning rate"),
    _option("dry_multiplier", real(0, 100), "0 to 100", "turns the DRY penalty on"),
    _option("dry_base", real(1, 100), "1 to 100", "DRY's base"),
    _option("dry_allowed_length", whole(1, INT32_MAX), "integer >= 1", "DRY's free length"),
    _option("dry_penalty_last_n", _count_or_minus_one, "integer >= 1, or -1",
            "how far back DRY looks; -1: the whole text", "dry_range"),
    _option("dry_sequence_breakers", _words, "[string]", "strings that DRY does not cross"),
    _option("t_max_predict_ms", whole(1, INT32_MAX), "integer >= 1",
            "the time limit in milliseconds; the text then ends with finish_reason `time`",
            "max_time"),
)  # fmt: skip

TRANSFORMERS: Final = (
    _option("epsilon_cutoff", real(0, 1), "0 to 1", "drop tokens less likely than this"),
    _option("eta_cutoff", real(0, 1), "0 to 1", "the same, adapted to the entropy"),
    _option("no_repeat_ngram_size", whole(0, INT32_MAX), "integer >= 0",
            "never generate the same n tokens twice"),
    _option("suppress_tokens", id_list, "[id]", "tokens that are never generated"),
)  # fmt: skip

GROUPS: Final[Mapping[str, tuple[Field, ...]]] = {
    "OpenAI": OPENAI,
    "vLLM": VLLM,
    "llama.cpp": LLAMA_CPP,
    "transformers": TRANSFORMERS,
}
FIELDS: Final = tuple(field for group in GROUPS.values() for field in group)

# Fields that cannot be honoured, and why.
REFUSED: Final[Mapping[str, str]] = {
    "suffix": "GPT-2 only continues texts",
    "use_beam_search": "a beam search cannot join the running batch; use GPT2.complete(num_beams=)",
    "prompt_logprobs": "use echo with logprobs",
    "response_format": "the server has no constrained output",
    "structured_outputs": "the server has no constrained output",
    "grammar": "the server has no constrained output",
    "json_schema": "the server has no constrained output",
    "include_stop_str_in_output": "a stop string is never part of the text",
    "messages": "GPT-2 has no chat format; send a prompt to /v1/completions",
    "cache_salt": "each API key has its own space of the prefix cache",
}


BODY: Final = Body(FIELDS, ("prompt",), REFUSED)


@dataclass(frozen=True)
class CompletionRequest:
    """A checked request. `options` are those of GPT2.complete that it gives."""

    model: str | None
    prompts: list[TextOrIds]
    max_tokens: int = 16
    n: int = 1
    best_of: int = 1
    echo: bool = False
    logprobs: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    seeds: tuple[int, ...] | None = None  # one per prompt; None: random ones
    ignore_eos: bool = False
    allowed_ids: tuple[int, ...] | None = None
    truncate_to: int | None = None  # the max number of a prompt's tokens; 0: the context
    keeps_end: bool = True
    adds_special_tokens: bool = True
    parses_special: bool | None = None  # None: as the server says
    priority: int = 0
    request_id: str | None = None
    names_are_ids: bool = False
    returns_ids: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_completion(body: Mapping[str, Any], limits: Limits) -> CompletionRequest:
    """Return the request of a parsed body. Raises RequestError (400) that names the field."""
    given = BODY.check(body, limits)
    best_of = given["n"] if given["best_of"] is None else given["best_of"]
    _check_combinations(given, best_of)
    options = {f.option: given[f.name] for f in FIELDS if f.option and given[f.name] is not None}
    if "max_time" in options:
        options["max_time"] /= 1000
    stream_options = given["stream_options"] or {}
    return CompletionRequest(
        model=given["model"],
        prompts=given["prompt"],
        max_tokens=given["max_tokens"],
        n=given["n"],
        best_of=best_of,
        echo=given["echo"],
        logprobs=given["logprobs"],
        stops=tuple(given["stop"]),
        stream=given["stream"],
        include_usage=stream_options.get("include_usage", False),
        seeds=_seeds(given["seed"], len(given["prompt"])),
        ignore_eos=given["ignore_eos"],
        allowed_ids=None if (ids := given["allowed_token_ids"]) is None else tuple(ids),
        truncate_to=given["truncate_prompt_tokens"],
        keeps_end=given["truncation_side"] == "left",
        adds_special_tokens=given["add_special_tokens"],
        parses_special=given["parse_special"],
        priority=given["priority"],
        request_id=given["request_id"],
        names_are_ids=given["return_tokens_as_token_ids"],
        returns_ids=given["return_token_ids"],
        options=options,
    )


def _seeds(given: int | list[int] | None, n_prompts: int) -> tuple[int, ...] | None:
    if given is None:
        return None
    seeds = [given] * n_prompts if isinstance(given, int) else given
    if len(seeds) != n_prompts:
        raise RequestError(
            400, f"seed is a list of {len(seeds)}; it must have one seed for each of the "
            f"{n_prompts} prompts", param="seed",
        )  # fmt: skip
    return tuple(seeds)


def _check_combinations(given: Mapping[str, Any], best_of: int) -> None:
    if best_of < given["n"]:
        message = f"best_of is {best_of}, less than n, {given['n']}"
        raise RequestError(400, message, param="best_of")
    if given["stream"] and best_of > given["n"]:
        message = "best_of cannot be streamed: the best texts are known only at the end"
        raise RequestError(400, message, param="best_of")
    if given["stream_options"] is not None and not given["stream"]:
        message = "stream_options is given without stream"
        raise RequestError(400, message, param="stream_options")
    if (given["min_tokens"] or 0) > given["max_tokens"]:
        message = f"min_tokens is {given['min_tokens']}, more than max_tokens"
        raise RequestError(400, message, param="min_tokens")
