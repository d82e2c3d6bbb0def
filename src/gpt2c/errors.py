"""The exceptions and warnings of gpt2c.

Every exception derives from :class:`Error`, so ``except gpt2c.Error`` catches every exception. Each
also derives from the closest builtin exception, so a program's ``except ValueError`` works too.
"""

from __future__ import annotations

import sys
import warnings


class Error(Exception):
    """The base class of gpt2c's exceptions."""


class OptionError(Error, ValueError):
    """An argument has an invalid value; the message says which values are valid."""


class OptionTypeError(Error, TypeError):
    """An argument has the wrong type; the message says which types are accepted."""


class ConfigError(Error, ValueError):
    """A model configuration is invalid or unsupported."""


class CheckpointError(Error, ValueError):
    """A checkpoint's file is malformed or does not match its configuration."""


class CheckpointNotFoundError(Error, FileNotFoundError):
    """There is no checkpoint, or no file, at the given path."""


class TokenizerError(Error, ValueError):
    """A tokenizer's file is invalid, or the tokenizer cannot encode a text."""


class TableError(Error, ValueError):
    """An input of texts or a table is malformed or lacks a column, or a table cannot be written."""


class ContextError(Error, ValueError):
    """The tokens do not fit in the context: the model has fewer positions."""


class NumericalError(Error, ArithmeticError):
    """A logit is NaN, so no token can be chosen or scored."""


class CacheMemoryError(Error, MemoryError):
    """There is not enough memory for a model, for a KV cache page or for a call's activations."""


class BackendError(Error, RuntimeError):
    """The requested backend cannot run on this machine."""


class ClosedError(Error, RuntimeError):
    """The model, the scheduler or a checkpoint was closed, or Python is shutting down."""


class ForkError(Error, RuntimeError):
    """A forked child lacks what the call needs: it exists only in the parent process."""


class MissingDependencyError(Error, ImportError):
    """An optional package is needed; the message says how to install it."""


class Gpt2cWarning(UserWarning):
    """The base class of gpt2c's warnings."""


class FallbackWarning(Gpt2cWarning, RuntimeWarning):
    """The compiled engine is not available, so NumPy is used."""


class TokenizerWarning(Gpt2cWarning):
    """Texts may be encoded to token ids that differ from those of the model's training."""


class SharingWarning(Gpt2cWarning):
    """Weights that were to be shared between processes are loaded for this process alone."""


def warn(message: str, kind: type[Gpt2cWarning]) -> None:
    """Issue a warning that points at the line outside gpt2c that called gpt2c."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("gpt2c."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, kind, stacklevel=level)
