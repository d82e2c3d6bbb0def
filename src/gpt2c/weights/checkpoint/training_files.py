"""Recognises files that trainers save beside a model's weights; they are never read as weights."""

from __future__ import annotations

import re
from typing import Final

from gpt2c.formats.pickle_values import Record, entries_of

# File names used by transformers' Trainer and by accelerate.
_NAME = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|trainer_state)"
    r"([_.-].*)?"
)
# The keys of such a file's dict, and what the file then is.
_KEYS: Final = (
    ({"state", "param_groups"}, "the state of an optimizer"),
    ({"last_epoch", "_step_count"}, "the state of a learning-rate scheduler"),
    ({"scale", "growth_factor"}, "the state of a gradient scaler"),
    ({"python", "numpy", "cpu"}, "states of random number generators"),
)


def is_training_file(name: str) -> bool:
    """Whether trainers use this file name for something other than weights."""
    return _NAME.fullmatch(name) is not None


def training_state(value: object, name: str) -> str | None:
    """What training state a file called `name` that holds `value` is; None for other files."""
    if isinstance(value, Record) and value.path.endswith("TrainingArguments"):
        return "a trainer's arguments"
    keys = {key for key in entries_of(value) or {} if isinstance(key, str)}
    for wanted, what in _KEYS:
        if wanted <= keys:
            return what
    return "a trainer's state" if is_training_file(name) else None
