"""A model for lm-evaluation-harness (lm-eval), on gpt2c's engine; docs/evaluation.md describes it.

Importing this package imports lm-eval. It registers nothing; :func:`register` does.
"""

from gpt2c.compat.lm_eval.model import GPT2LM, register

__all__ = ["GPT2LM", "register"]
