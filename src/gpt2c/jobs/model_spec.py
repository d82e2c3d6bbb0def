"""Which model a job uses, as plain data that a worker in another process can load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt2c.model import GPT2


@dataclass(frozen=True)
class ModelSpec:
    """A model to load.

    model
        The `path` of GPT2.from_pretrained; None is the embedded model.
    arguments
        Its other arguments, such as dtype and threads; they must pickle.
    """

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def load(self, *, progress: bool = False) -> GPT2:
        """Load the model. Raises the errors of GPT2.from_pretrained."""
        return GPT2.from_pretrained(self.model, progress=progress, **self.arguments)
