"""transformers' ``model.generate``, on gpt2c's engine."""

from __future__ import annotations

from gpt2c.compat.transformers.model import from_transformers

__all__ = ["from_transformers"]
