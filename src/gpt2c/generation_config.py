"""``generation_config.json``: a model's end tokens, and options that its makers want by default."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gpt2c.beams import NEUTRAL as BEAMS
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointNotFoundError, ConfigError
from gpt2c.options import is_integer
from gpt2c.sampling import asks_to_sample
from gpt2c.untrusted import read_json_object, show_list

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


def read_generation_config(folder: Path, config: GPT2Config) -> tuple[GPT2Config, dict[str, Any]]:
    """The configuration with the file's end, start and padding tokens, and options by our names.

    Options for sampling count only where the file turns it on with do_sample, as in transformers;
    those of beam search where it has num_beams, and no do_sample: both at once is not supported.
    Where there is no such file nothing changes.

    Raises ConfigError, naming the file, where it cannot be read.
    """
    path = folder / FILE
    try:
        values = read_json_object(path, limit=_MAX_FILE, error=ConfigError)
    except CheckpointNotFoundError:
        return config, {}
    ignored = [name for name, neutral in NOT_SUPPORTED.items() if acts(values, name, neutral)]
    samples = values.get("do_sample") is True
    searches = acts(values, "num_beams", (BEAMS["num_beams"],))
    if samples and searches:
        ignored.append("num_beams")
    if ignored:
        _log.warning("%s: options that are not supported are ignored: %s", path, show_list(ignored))
    wanted = {**_OTHERS, **(SAMPLING if samples else {})}
    if searches and not samples:
        wanted |= {name: (neutral,) for name, neutral in BEAMS.items()}
    defaults: dict[str, Any] = {"do_sample": True} if samples else {}
    for name, neutral in wanted.items():
        if acts(values, name, neutral):
            defaults[_OURS.get(name, name)] = values[name]
    tokens = {name: values[name] for name in _TOKENS if values.get(name) is not None}
    try:
        return replace(config, **tokens), defaults
    except ConfigError as reason:
        raise ConfigError(f"{path}: {reason}") from None


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
    if given.get("max_new_tokens") is not None:
        options.pop("min_new_tokens", None)  # which may be more
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
