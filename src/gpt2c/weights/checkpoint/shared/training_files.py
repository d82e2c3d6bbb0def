"""Recognises the files that trainers save beside a model's weights; they hold no weights."""

from __future__ import annotations

import re
from typing import Final

from gpt2c.formats.pickle_values import Record, entries_of

# File names used by transformers' Trainer and by accelerate.
_NAME = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|trainer_state)"
    r"([_.-].*)?"
)
# Keys that identify such a file's dict, and what the file holds.
_KEYS: Final = (
    ({"state", "param_groups"}, "the state of an optimizer"),
    ({"last_epoch", "_step_count"}, "the state of a learning-rate scheduler"),
    ({"scale", "growth_factor"}, "the state of a gradient scaler"),
    ({"python", "numpy", "cpu"}, "states of random number generators"),
)


def is_training_file(name: str) -> bool:
    """Return whether trainers use this file name for data that are not weights."""
    return _NAME.fullmatch(name) is not None


def training_state(value: object, name: str) -> str | None:
    """Describe the training state in a file called `name` that holds `value`, or return None."""
    if isinstance(value, Record) and value.path.endswith("TrainingArguments"):
        return "a trainer's arguments"
    keys = {key for key in entries_of(value) or {} if isinstance(key, str)}
    for wanted, what in _KEYS:
        if wanted <= keys:
            return what
    return "a trainer's state" if is_training_file(name) else None
