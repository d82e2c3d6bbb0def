"""Read ``generation_config.json``: a model's EOS tokens and its default options for calls."""

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

FILE: Final = "generation_config.json"
_MAX_FILE: Final = 16 << 20  # bytes
_TOKEN_KEYS: Final = ("eos_token_id", "bos_token_id", "pad_token_id")

# Sampling options that gpt2c shares with transformers, and the values with which they have no
# effect. The tables below have the same form.
SAMPLING: Final[Mapping[str, tuple[object, ...]]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
_GENERAL: Final[Mapping[str, tuple[object, ...]]] = {
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "stop_strings": ([],),
    "max_time": (),
}
# Lengths that include the prompt: gpt2c has no such options, but a file may set them.
_LENGTHS: Final[Mapping[str, tuple[object, ...]]] = {"max_length": (), "min_length": (0,)}
# transformers' names -> gpt2c's, if they differ.
_GPT2C_NAMES: Final = {"bad_words_ids": "bad_words"}
# Options that would change the text and are not supported, with the values that have no effect.
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
# Options that change how transformers loads or runs a model, but not the tokens.
_IGNORED_NAMES = """
    use_cache cache_implementation cache_config max_cache_len return_legacy_cache compile_config
    disable_compile prefill_chunk_size low_memory continuous_batching_config synced_gpus
    prompt_lookup_num_tokens max_matching_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit
    assistant_lookbehind target_lookbehind speculation_type is_assistant decoder_start_token_id
    trust_remote_code use_model_defaults
"""
IGNORED: Final = frozenset(_IGNORED_NAMES.split())
# Other keys that transformers writes; they cause no warning.
_OTHER_KEYS = """
    do_sample max_length min_length num_return_sequences output_attentions output_hidden_states
    output_logits output_scores remove_invalid_values renormalize_logits return_dict_in_generate
    use_mtp transformers_version _from_model_config _commit_hash
"""
_KNOWN: Final = frozenset(
    (*_TOKEN_KEYS, *SAMPLING, *_GENERAL, *NOT_SUPPORTED, *BEAMS, *IGNORED, *_OTHER_KEYS.split())
)
# Options whose numbers are clamped to the engine's max, which has the same effect.
_COUNTS: Final = ("max_new_tokens", "top_k", "no_repeat_ngram_size")
_ERRORS: Final = (OptionError, OptionTypeError, TokenizerError)

R = TypeVar("R")


@dataclass(frozen=True)
class ModelDefaults:
    """The default options for calls from a model's ``generation_config.json``.

    options
        The options by gpt2c's names. They may include max_length and min_length, which count the
        prompt too and are not options of gpt2c.
    named_ids
        The token ids that the file names, for any purpose.
    source
        The file's path, for warnings.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    named_ids: frozenset[int] = frozenset()
    source: str = FILE


def read_generation_config(folder: Path, config: GPT2Config) -> tuple[GPT2Config, ModelDefaults]:
    """Return the configuration with the file's special tokens, and the default options.

    The special tokens are EOS, BOS and padding.

    Sampling options are used only if the file sets do_sample, as in transformers. Beam search
    options are used only if the file sets num_beams without do_sample: gpt2c does not support the
    two together. Without the file the result is `config` and no options.

    The file never causes an error. Unreadable values are ignored with a warning when the file is
    read; invalid options are ignored with a warning in each call.
    """
    path = folder / FILE
    try:
        values = read_json_object(path, limit=_MAX_FILE, error=ConfigError)
    except CheckpointNotFoundError:
        return config, ModelDefaults()
    except ConfigError as reason:
        _log.warning("%s; the file is ignored", reason)
        return config, ModelDefaults()
    ignored = [name for name, neutral in NOT_SUPPORTED.items() if has_effect(values, name, neutral)]
    if has_effect(values, "num_return_sequences", (1,)):
        ignored.append("num_return_sequences")
    uses_sampling = values.get("do_sample") is True
    uses_beams = has_effect(values, "num_beams", (BEAMS["num_beams"],))
    if uses_sampling and uses_beams:
        ignored.append("num_beams")
    if ignored:
        _log.warning("%s: options that are not supported are ignored: %s", path, show_list(ignored))
    unknown = sorted(values.keys() - _KNOWN)
    if unknown:
        _log.warning("%s: unknown keys are ignored: %s", path, show_list(unknown))
    config = _with_tokens(config, values, path)
    wanted = {**_GENERAL, **_LENGTHS, **(SAMPLING if uses_sampling else {})}
    if uses_beams and not uses_sampling:
        wanted |= {name: (neutral,) for name, neutral in BEAMS.items()}
    options: dict[str, Any] = {"do_sample": True} if uses_sampling else {}
    for name, neutral in wanted.items():
        if has_effect(values, name, neutral):
            options[_GPT2C_NAMES.get(name, name)] = _cleaned(name, values[name], config)
    if options.get("bad_words") == []:
        del options["bad_words"]
    return config, ModelDefaults(options, ids_in(values), str(path))


def _with_tokens(config: GPT2Config, values: Mapping[str, Any], path: Path) -> GPT2Config:
    """Return the configuration with the tokens that the file names.

    As in transformers, an EOS token that is null or not in the vocabulary means no EOS token.
    Values that are not token ids are ignored with a warning.
    """
    tokens: dict[str, Any] = {}
    for name in _TOKEN_KEYS:
        value = values.get(name)
        given = value if isinstance(value, list) and name == "eos_token_id" else [value]
        ids = [int(id) for id in given if id is not None and _is_integral(id)]
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


def _cleaned(name: str, value: Any, config: GPT2Config) -> Any:
    """Drop the ids that transformers also ignores, and clamp counts that are too large."""
    if name == "suppress_tokens" and isinstance(value, list):
        return [id for id in value if not _is_integral(id) or 0 <= id < config.vocab_size]
    if name == "bad_words_ids" and isinstance(value, list):
        ends = [[id] for id in config.eos_token_ids]
        return [word for word in value if word not in ends]
    if name in (*_COUNTS, *_LENGTHS) and (
        (isinstance(value, Unusable) and value.is_huge)
        or (_is_integral_or_inf(value) and value > INT32_MAX)
    ):
        return INT32_MAX
    return value


def _is_integral(value: object) -> bool:
    """Return whether a JSON number has an integer value, even if written as 5.0."""
    return is_integer(value) or (isinstance(value, float) and value.is_integer())


@dataclass(frozen=True)
class Lengths:
    """The model's default lengths for a call, in tokens; None means not set.

    max_length and min_length include the prompt, as in transformers. `source` is the path of the
    file that sets them, for warnings.
    """

    max_length: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    source: str = FILE

    @classmethod
    def of(cls, given: Mapping[str, Any], defaults: ModelDefaults) -> Lengths:
        """Return the default lengths that a call with the options `given` does not override.

        Invalid lengths are ignored with a warning.
        """
        found: dict[str, int | None] = {}
        for name in ("min_new_tokens", *_LENGTHS):
            if (value := defaults.options.get(name)) is None:
                continue
            if _is_integral_or_inf(value) and value >= (1 if name == "max_length" else 0):
                found[name] = int(min(value, INT32_MAX))
            else:
                _log.warning(
                    "%s: %s is %s, which is not a valid length; it is ignored",
                    defaults.source, name, show(value),
                )  # fmt: skip
        if any(o.get("max_new_tokens") is not None for o in (given, defaults.options)):
            found["max_length"] = None
        if given.get("min_new_tokens") is not None:
            found["min_length"] = found["min_new_tokens"] = None
        elif found.get("min_new_tokens") is not None:
            found["min_length"] = None
        return cls(**found, source=defaults.source)

    @property
    def has_minimum(self) -> bool:
        """Whether a min length is set."""
        return self.min_new_tokens is not None or self.min_length is not None

    def new_token_limits(self, n_prompt: int, max_new: int) -> tuple[int, int]:
        """Return the max and min number of new tokens after a prompt of n_prompt tokens.

        max_new is the max from the call, or gpt2c's own default. Impossible lengths are ignored or
        clamped with a warning.
        """
        if self.max_length is not None:
            if self.max_length > n_prompt:
                max_new = self.max_length - n_prompt
            else:
                _log.warning(
                    "%s: max_length is %d, and the prompt has %d tokens; max_length is ignored",
                    self.source, self.max_length, n_prompt,
                )  # fmt: skip
        min_new = self.min_new_tokens
        if min_new is None:
            min_new = max((self.min_length or 0) - n_prompt, 0)
        if min_new > max_new:
            name = "min_length" if self.min_new_tokens is None else "min_new_tokens"
            _log.warning(
                "%s: %s asks for %d new tokens, more than the max of %d",
                self.source, name, min_new, max_new,
            )  # fmt: skip
        return max_new, min(min_new, max_new)


def _is_integral_or_inf(value: object) -> bool:
    return _is_integral(value) or value == math.inf


def with_usable_defaults(
    given: Mapping[str, Any],
    defaults: ModelDefaults,
    allowed: Container[str],
    check: Callable[[Mapping[str, Any]], R],
) -> R:
    """Return check's result for a call's options, completed with the model's defaults.

    `given` are the call's own options; `allowed` has the names of the options that the call
    accepts. Defaults that are invalid, or conflict with the call's own options, are ignored with a
    warning. Raises whatever check raises for the call's own options.
    """
    found = {name: v for name, v in defaults.options.items() if name not in _LENGTHS}
    if "min_new_tokens" in found:
        found["min_new_tokens"] = 1  # a placeholder: Lengths sets the number
    elif "min_length" in defaults.options and given.get("min_new_tokens") is None:
        found["min_new_tokens"] = 1
    if given.get("do_sample") is True and found.get("temperature") == 0:
        _log.warning(
            "%s: temperature is 0, but the call has do_sample=True; this temperature is ignored",
            defaults.source,
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
    """Return check's result with the usable defaults only, found by adding them one by one.

    A count such as 5.0 is used as 5. Each unusable default is logged as a warning.
    """
    used: dict[str, Any] = {}
    problem = _error_message(check, given)
    for name, value in found.items():
        reason = _error_message(check, with_defaults(given, {**used, name: value}, allowed))
        action = "the option is ignored"
        if reason is not None and isinstance(value, float) and value.is_integer():
            value = int(value)
            if _error_message(check, with_defaults(given, {**used, name: value}, allowed)) is None:
                action = f"{value} is used"
                used[name] = value
        # If the reason is the same without this default, the default is not to blame.
        if reason is None or reason == problem:
            used[name], problem = value, reason
        else:
            _log.warning("%s: %s; %s", source, reason, action)
    return check(with_defaults(given, used, allowed))


def _error_message(
    check: Callable[[Mapping[str, Any]], Any], options: Mapping[str, Any]
) -> str | None:
    """Return the message of the error that check raises for these options; None without one."""
    try:
        check(options)
    except _ERRORS as reason:
        return str(reason)
    return None


def with_defaults(
    given: Mapping[str, Any], defaults: Mapping[str, Any], allowed: Container[str]
) -> dict[str, Any]:
    """Return a call's options, completed with defaults; an option given as None has its default.

    If the call asks for greedy decoding, the default sampling options are dropped; if it asks for
    sampling or one beam, the default beam search options are dropped.
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


def has_effect(values: Mapping[str, Any], name: str, neutral: tuple[object, ...]) -> bool:
    """Return whether `values` sets the option to a value with an effect: one not in `neutral`."""
    value = values.get(name)
    try:
        return value is not None and value not in neutral
    except (ValueError, RuntimeError):  # the truth of an array's comparison is ambiguous
        return True
