"""A model for lm-evaluation-harness (lm-eval), on gpt2c's engine; docs/evaluation.md describes it.

The names below import lm-eval when they are used. Nothing is registered until :func:`register` is
called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2c.compat.lm_eval.model import GPT2LM, register

__all__ = ["GPT2LM", "register"]


def __getattr__(name: str) -> Any:
    """Return a public name. Raises MissingDependencyError without lm-eval."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpt2c.compat.lm_eval import model

    return getattr(model, name)
