"""What trainers save beside a model's weights, which is never taken for weights."""

from __future__ import annotations

import re
from typing import Final

from gpt2c.checkpoint.pickle_values import Record, entries_of

# Names of transformers' Trainer and of accelerate.
_NAME = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|trainer_state)"
    r"([_.-].*)?"
)
# The keys that such a file's dict has, and what it then is.
_KEYS: Final = (
    ({"state", "param_groups"}, "the state of an optimizer"),
    ({"last_epoch", "_step_count"}, "the state of a learning-rate scheduler"),
    ({"scale", "growth_factor"}, "the state of a gradient scaler"),
    ({"python", "numpy", "cpu"}, "states of random number generators"),
)


def is_training_file(name: str) -> bool:
    """Whether a file's name is one that trainers give to what is not weights."""
    return _NAME.fullmatch(name) is not None


def training_state(value: object, name: str) -> str | None:
    """What a file called `name`, which holds `value`, is where it holds no weights, but a state

    of training; None where it is another file.
    """
    if isinstance(value, Record) and value.path.endswith("TrainingArguments"):
        return "the arguments of a training"
    keys = {key for key in entries_of(value) or {} if isinstance(key, str)}
    for wanted, what in _KEYS:
        if wanted <= keys:
            return what
    return "the state of a training" if is_training_file(name) else None
