"""The head of a classifier: transformers' GPT2ForSequenceClassification and its like for tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import read_json_object, show
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError, ConfigError
from gpt2c.formats.tensors import STORED_TYPES, TensorSource, check_finite
from gpt2c.weights.checkpoint.shared.names import bare_name

# What a head classifies -> the names of its tensors in transformers.
HEAD_TENSORS: Final = {
    "sequence": ("score.weight",),
    "token": ("classifier.weight", "classifier.bias"),
}
_CLASSES: Final = {
    "sequence": "GPT2ForSequenceClassification",
    "token": "GPT2ForTokenClassification",
}
PROBLEM_TYPES: Final = (
    "single_label_classification", "multi_label_classification", "regression",
)  # fmt: skip
_MAX_CONFIG: Final = 4 << 20  # bytes


@dataclass(frozen=True, eq=False)
class ClassifierHead:
    """A linear layer that turns hidden states into logits of labels."""

    kind: str  # "sequence": a text has logits; "token": each of its tokens has
    weight: NDArray[np.float32]  # [n_labels, n_embd]
    bias: NDArray[np.float32] | None  # [n_labels]
    labels: tuple[str, ...]  # their names
    problem_type: str | None  # one of PROBLEM_TYPES; None if the configuration does not say

    @property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The head's tensors by transformers' names."""
        values = [self.weight] if self.bias is None else [self.weight, self.bias]
        return dict(zip(HEAD_TENSORS[self.kind], values, strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of config.json about the head."""
        numbered = enumerate(self.labels)
        return {
            "architectures": [_CLASSES[self.kind]],
            "id2label": {str(index): label for index, label in numbered},
            "label2id": {label: index for index, label in enumerate(self.labels)},
            **({"problem_type": self.problem_type} if self.problem_type else {}),
        }


def head_names(stored: Iterable[str]) -> dict[str, str]:
    """Return the stored names of a classifier's tensors -> transformers' names; maybe empty."""
    bare = {name: bare_name(name) for name in stored}
    for names in HEAD_TENSORS.values():
        found = {name: short for name, short in bare.items() if short in names}
        if len(found) == len(names):
            return found
    return {}


def read_head(
    sources: Mapping[str, TensorSource], config: GPT2Config, config_file: Path | None, where: str
) -> ClassifierHead | None:
    """Read a head from its tensors, by transformers' names; None if their shapes are no head's.

    `config_file` is a config.json, which names the labels.

    Raises CheckpointError if a tensor cannot be read or is not finite, or if the number of labels
    in the configuration differs; ConfigError if the configuration is malformed.
    """
    kind = next(kind for kind, names in HEAD_TENSORS.items() if names[0] in sources)
    shape = sources[HEAD_TENSORS[kind][0]].shape
    if len(shape) != 2 or shape[1] != config.n_embd or shape[0] == 0:
        return None
    arrays = []
    for name in HEAD_TENSORS[kind]:
        source = sources[name]
        expected = (shape[0],) if name.endswith("bias") else shape
        if source.dtype not in STORED_TYPES or source.shape != expected:
            raise CheckpointError(
                f"{where}: tensor {show(name)}: found {source.dtype} {list(source.shape)}, "
                f"expected a float dtype and the shape {list(expected)}"
            )
        arrays.append(source.read(0, source.shape[0]))
        check_finite(arrays[-1], name, 0, where)
    values = (
        {}
        if config_file is None
        else read_json_object(config_file, limit=_MAX_CONFIG, error=ConfigError)
    )
    labels = _labels(values.get("id2label"), shape[0], where)
    problem = values.get("problem_type")
    return ClassifierHead(
        kind,
        arrays[0],
        arrays[1] if len(arrays) > 1 else None,
        labels,
        problem if problem in PROBLEM_TYPES else None,
    )


def _labels(names: object, n_labels: int, where: str) -> tuple[str, ...]:
    """Return the labels of id2label, or transformers' defaults: LABEL_0, LABEL_1, ..."""
    defaults = tuple(f"LABEL_{index}" for index in range(n_labels))
    if names is None or names == {"0": "LABEL_0", "1": "LABEL_1"}:  # transformers' own default
        return defaults
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{where}: id2label is {show(names)}, expected an object of names")
    found = tuple(names.get(str(index)) for index in range(n_labels))
    if len(names) != n_labels or None in found:
        raise CheckpointError(
            f"{where}: found a head of {n_labels} labels, and id2label in config.json has the "
            f"{len(names)} labels {show(names)}; expected one for each index from 0"
        )
    return tuple(str(label) for label in found)
