"""Every exception that gpt2c raises on purpose.

All derive from :class:`Error`, so ``except gpt2c.Error`` catches whatever the library
rejects; each is also the builtin that a reader would expect, so ``except ValueError``
keeps working in programs that know nothing of gpt2c.
"""

from __future__ import annotations

import sys
import warnings


class Error(Exception):
    """The base of every exception gpt2c raises on purpose."""


class OptionError(Error, ValueError):
    """An argument's value is out of its range; the message names both."""


class OptionTypeError(Error, TypeError):
    """An argument is of the wrong type; the message names what is accepted."""


class ConfigError(Error, ValueError):
    """A model configuration is impossible, unknown or unsupported."""


class CheckpointError(Error, ValueError):
    """A checkpoint's file is malformed or does not fit its configuration."""


class CheckpointNotFoundError(Error, FileNotFoundError):
    """There is no checkpoint at the place that was named."""


class TokenizerError(Error, ValueError):
    """A text or a vocabulary cannot be used by the tokenizer."""


class ContextError(Error, ValueError):
    """More tokens were given than the model has positions."""


class NumericalError(Error, ArithmeticError):
    """A logit is not a number, so no token can be chosen from it."""


class CacheMemoryError(Error, MemoryError):
    """The memory for a model, a cache page or a call's scratch could not be had."""


class BackendError(Error, RuntimeError):
    """The backend that was asked for cannot run here."""


class ClosedError(Error, RuntimeError):
    """The model was closed."""


class ForkError(Error, RuntimeError):
    """A call was forked in its middle, and the child lacks the threads that it runs on."""


class MissingDependencyError(Error, ImportError):
    """An optional package is needed; the message says how to install it."""


class Gpt2cWarning(UserWarning):
    """The base of every warning that gpt2c gives."""


class FallbackWarning(Gpt2cWarning, RuntimeWarning):
    """The compiled engine is not available and NumPy is used instead."""


class TokenizerWarning(Gpt2cWarning):
    """Text may be encoded to other token ids than the model was trained with."""


def warn(message: str, kind: type[Gpt2cWarning]) -> None:
    """Issue a warning that points at the caller's line outside this package."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("gpt2c."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, kind, stacklevel=level)
