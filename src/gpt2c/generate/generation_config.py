"""``generation_config.json``: a model's end tokens, and options that its makers want by default."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from gpt2c.checks.options import INT32_MAX, is_integer
from gpt2c.checks.untrusted import Unusable, read_json_object, show, show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import (
    CheckpointNotFoundError,
    ConfigError,
    OptionError,
    OptionTypeError,
    TokenizerError,
)
from gpt2c.generate.beam_options import NEUTRAL as BEAMS
from gpt2c.generate.sampling import asks_to_sample
from gpt2c.text.special_tokens import ids_in

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

FILE: Final = "generation_config.json"
_MAX_FILE: Final = 16 << 20
_TOKENS: Final = ("eos_token_id", "bos_token_id", "pad_token_id")

# transformers' options that are ours too, and the values with which they do nothing.
SAMPLING: Final[Mapping[str, tuple[object, ...]]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
_OTHERS: Final[Mapping[str, tuple[object, ...]]] = {
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "stop_strings": ([],),
    "max_time": (),
}
# Lengths that count the prompt too: not our options, but a file may have them.
_LENGTHS: Final[Mapping[str, tuple[object, ...]]] = {"max_length": (), "min_length": (0,)}
_OURS: Final = {"bad_words_ids": "bad_words"}
# What would give another text and is not supported, with the values with which it would not.
NOT_SUPPORTED: Final[Mapping[str, tuple[object, ...]]] = {
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "guidance_scale": (1.0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": (),
    "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (),
    "encoder_repetition_penalty": (1.0,),
    "watermarking_config": (),
    "top_h": (),
    "token_healing": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "constraints": (),
    "force_words_ids": (),
    "assistant_ensemble_weight": (),
}
# Options that affect how transformers computes but no token: accepted and ignored.
_FOR_SPEED_NAMES = """
    use_cache cache_implementation cache_config max_cache_len return_legacy_cache compile_config
    disable_compile prefill_chunk_size low_memory continuous_batching_config synced_gpus
    prompt_lookup_num_tokens max_matching_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit
    assistant_lookbehind target_lookbehind speculation_type is_assistant decoder_start_token_id
    trust_remote_code use_model_defaults
"""
FOR_SPEED: Final = frozenset(_FOR_SPEED_NAMES.split())
# Other keys that transformers writes: known, so that they cause no warning.
_OTHER_KEYS = """
    do_sample max_length min_length num_return_sequences output_attentions output_hidden_states
    output_logits output_scores remove_invalid_values renormalize_logits return_dict_in_generate
    use_mtp transformers_version _from_model_config _commit_hash
"""
_KNOWN: Final = frozenset(
    (*_TOKENS, *SAMPLING, *_OTHERS, *NOT_SUPPORTED, *BEAMS, *FOR_SPEED, *_OTHER_KEYS.split())
)
# Numbers too large for the engine are clamped to its max, which has the same effect.
_COUNTS: Final = ("max_new_tokens", "top_k", "no_repeat_ngram_size")
_ERRORS: Final = (OptionError, OptionTypeError, TokenizerError)

R = TypeVar("R")


@dataclass(frozen=True)
class ModelDefaults:
    """Defaults for calls from a model's ``generation_config.json``.

    options
        Options of calls, by our names, and max_length and min_length, which count the prompt too.
    named_ids
        The token ids that the file names, in any role.
    source
        The file, for warnings.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    named_ids: frozenset[int] = frozenset()
    source: str = FILE


def read_generation_config(folder: Path, config: GPT2Config) -> tuple[GPT2Config, ModelDefaults]:
    """The configuration with the file's EOS, BOS and padding tokens, and options for calls.

    Sampling options count only if the file sets do_sample, as in transformers. Beam search options
    count only if it sets num_beams without do_sample: we do not support both at once. Without the
    file nothing changes. Nothing in it is an error: unreadable values are ignored with a warning,
    and unusable options are ignored in each call, with a warning there.
    """
    path = folder / FILE
    try:
        values = read_json_object(path, limit=_MAX_FILE, error=ConfigError)
    except CheckpointNotFoundError:
        return config, ModelDefaults()
    except ConfigError as reason:
        _log.warning("%s; the file is ignored", reason)
        return config, ModelDefaults()
    ignored = [name for name, neutral in NOT_SUPPORTED.items() if acts(values, name, neutral)]
    if acts(values, "num_return_sequences", (1,)):
        ignored.append("num_return_sequences")
    samples = values.get("do_sample") is True
    searches = acts(values, "num_beams", (BEAMS["num_beams"],))
    if samples and searches:
        ignored.append("num_beams")
    if ignored:
        _log.warning("%s: options that are not supported are ignored: %s", path, show_list(ignored))
    unknown = sorted(values.keys() - _KNOWN)
    if unknown:
        _log.warning("%s: unknown keys are ignored: %s", path, show_list(unknown))
    config = _with_tokens(config, values, path)
    wanted = {**_OTHERS, **_LENGTHS, **(SAMPLING if samples else {})}
    if searches and not samples:
        wanted |= {name: (neutral,) for name, neutral in BEAMS.items()}
    options: dict[str, Any] = {"do_sample": True} if samples else {}
    for name, neutral in wanted.items():
        if acts(values, name, neutral):
            options[_OURS.get(name, name)] = _usable(name, values[name], config)
    if options.get("bad_words") == []:
        del options["bad_words"]
    return config, ModelDefaults(options, ids_in(values), str(path))


def _with_tokens(config: GPT2Config, values: Mapping[str, Any], path: Path) -> GPT2Config:
    """The configuration with the tokens that the file names.

    As in transformers, an EOS token that is null or not in the vocabulary means no EOS token.
    Values that are not token ids are ignored with a warning.
    """
    tokens: dict[str, Any] = {}
    for name in _TOKENS:
        value = values.get(name)
        given = value if isinstance(value, list) and name == "eos_token_id" else [value]
        ids = [int(id) for id in given if id is not None and _is_whole(id)]
        if value is not None and len(ids) < len(given):
            _log.warning(
                "%s: %s is %s; ignored, because it is not a token id", path, name, show(value)
            )
        if name == "eos_token_id":
            if ids or (name in values and value in (None, [])):
                tokens[name] = tuple(ids) or None
        elif ids and 0 <= ids[0] < config.vocab_size:
            tokens[name] = ids[0]
    return replace(config, **tokens)


def _usable(name: str, value: Any, config: GPT2Config) -> Any:
    """The value without ids that transformers ignores too; too large counts are clamped."""
    if name == "suppress_tokens" and isinstance(value, list):
        return [id for id in value if not _is_whole(id) or 0 <= id < config.vocab_size]
    if name == "bad_words_ids" and isinstance(value, list):
        ends = [[id] for id in config.eos_token_ids]
        return [word for word in value if word not in ends]
    if name in (*_COUNTS, *_LENGTHS) and (
        (isinstance(value, Unusable) and value.is_huge) or (_is_number(value) and value > INT32_MAX)
    ):
        return INT32_MAX
    return value


def _is_whole(value: object) -> bool:
    """Whether a JSON number has an integer value, even if written as 5.0."""
    return is_integer(value) or (isinstance(value, float) and value.is_integer())


@dataclass(frozen=True)
class Lengths:
    """The model's default lengths for a call.

    max_length and min_length count the prompt too, as in transformers. None means not set.
    """

    max_length: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    source: str = FILE

    @classmethod
    def of(cls, given: Mapping[str, Any], defaults: ModelDefaults) -> Lengths:
        """The lengths that apply to a call; invalid ones are ignored with a warning."""
        found: dict[str, int | None] = {}
        for name in ("min_new_tokens", *_LENGTHS):
            if (value := defaults.options.get(name)) is None:
                continue
            if _is_number(value) and value >= (1 if name == "max_length" else 0):
                found[name] = int(min(value, INT32_MAX))
            else:
                _log.warning(
                    "%s: %s is %s, which is not a valid length; it is ignored",
                    defaults.source, name, show(value),
                )  # fmt: skip
        if {"max_new_tokens"} & (_said(given) | _said(defaults.options)):
            found["max_length"] = None
        if given.get("min_new_tokens") is not None:
            found["min_length"] = found["min_new_tokens"] = None
        elif found.get("min_new_tokens") is not None:
            found["min_length"] = None
        return cls(**found, source=defaults.source)

    @property
    def has_minimum(self) -> bool:
        """Whether there is a min length."""
        return self.min_new_tokens is not None or self.min_length is not None

    def new_tokens(self, n_prompt: int, most: int) -> tuple[int, int]:
        """The max and min number of new tokens after a prompt of n_prompt tokens.

        most is the max from the call or from our own default. Warns about impossible lengths.
        """
        if self.max_length is not None:
            if self.max_length > n_prompt:
                most = self.max_length - n_prompt
            else:
                _log.warning(
                    "%s: max_length is %d, and the prompt has %d tokens; it is ignored",
                    self.source, self.max_length, n_prompt,
                )  # fmt: skip
        fewest = self.min_new_tokens
        if fewest is None:
            fewest = max((self.min_length or 0) - n_prompt, 0)
        if fewest > most:
            name = "min_length" if self.min_new_tokens is None else "min_new_tokens"
            _log.warning(
                "%s: %s asks for %d new tokens, more than the max of %d",
                self.source, name, fewest, most,
            )  # fmt: skip
        return most, min(fewest, most)


def _is_number(value: object) -> bool:
    return _is_whole(value) or value == math.inf


def _said(options: Mapping[str, Any]) -> set[str]:
    return {name for name, value in options.items() if value is not None}


def with_usable_defaults(
    given: Mapping[str, Any],
    defaults: ModelDefaults,
    allowed: Container[str],
    check: Callable[[Mapping[str, Any]], R],
) -> R:
    """Run check on a call's options plus the usable defaults of the model.

    Defaults that are invalid, or conflict with the call's options, are ignored with a warning.
    Raises whatever check raises for the call's own options.
    """
    found = {name: v for name, v in defaults.options.items() if name not in _LENGTHS}
    if "min_new_tokens" in found:
        found["min_new_tokens"] = 1  # a placeholder: Lengths sets the number
    elif "min_length" in defaults.options and given.get("min_new_tokens") is None:
        found["min_new_tokens"] = 1
    if given.get("do_sample") is True and found.get("temperature") == 0:
        _log.warning(
            "%s: temperature is 0, and the call has do_sample=True; it is ignored", defaults.source
        )
        del found["temperature"]
    try:
        return check(with_defaults(given, found, allowed))
    except _ERRORS:
        if not found:
            raise
    return _without_unusable(given, found, allowed, check, defaults.source)


def _without_unusable(
    given: Mapping[str, Any],
    found: Mapping[str, Any],
    allowed: Container[str],
    check: Callable[[Mapping[str, Any]], R],
    source: str,
) -> R:
    """As :func:`with_usable_defaults` if a default is unusable: try them one by one."""
    used: dict[str, Any] = {}
    problem = _problem(check, given)
    for name, value in found.items():
        reason = _problem(check, with_defaults(given, {**used, name: value}, allowed))
        action = "the option is ignored"
        if reason is not None and isinstance(value, float) and value.is_integer():
            value = int(value)
            if _problem(check, with_defaults(given, {**used, name: value}, allowed)) is None:
                action = f"{value} is used"
                used[name] = value
        # If the call's own options fail alone, this default is not to blame.
        if reason is None or reason == problem:
            used[name], problem = value, reason
        else:
            _log.warning("%s: %s; %s", source, reason, action)
    return check(with_defaults(given, used, allowed))


def _problem(check: Callable[[Mapping[str, Any]], Any], options: Mapping[str, Any]) -> str | None:
    try:
        check(options)
    except _ERRORS as reason:
        return str(reason)
    return None


def with_defaults(
    given: Mapping[str, Any], defaults: Mapping[str, Any], allowed: Container[str]
) -> dict[str, Any]:
    """The options of a call, completed: what is given counts, where it is not None.

    Who asks for greedy text gets it, whatever the model's makers sample with, and who samples does
    so instead of their beam search.
    """
    options = {name: value for name, value in defaults.items() if name in allowed}
    temperature = given.get("temperature")
    is_zero = isinstance(temperature, int | float) and temperature == 0
    if given.get("do_sample") is False or is_zero:
        for name in ("do_sample", *SAMPLING):
            options.pop(name, None)
    n_beams = given.get("num_beams")
    has_one = is_integer(n_beams) and n_beams == 1
    if has_one or (n_beams is None and asks_to_sample(given)):
        for name in BEAMS:
            options.pop(name, None)
    for name, value in given.items():
        if value is not None or name not in options:
            options[name] = value
    return options


def acts(values: Mapping[str, Any], name: str, neutral: tuple[object, ...]) -> bool:
    """Whether the option is given, and not as what does nothing."""
    value = values.get(name)
    try:
        return value is not None and value not in neutral
    except (ValueError, RuntimeError):  # arrays and tensors are not equal to one thing as a whole
        return True
