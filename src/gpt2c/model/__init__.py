"""GPT2: the class that loads a model, and generates and scores text with it."""

from gpt2c.model.gpt2 import GPT2

__all__ = ["GPT2"]
