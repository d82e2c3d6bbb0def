"""gpt2c: GPT-2 text generation on CPUs, fast and exact.

>>> from gpt2c import GPT2
>>> model = GPT2.from_pretrained()  # the embedded model; or pass a folder, or a name on the hub
>>> model.generate("Once upon a time", max_new_tokens=40)
>>> model.generate(["The king", "The fox"], temperature=0.8, top_k=40, seed=1)
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Final

from gpt2c._version import __version__
from gpt2c.config import GPT2Config
from gpt2c.errors import (
    BackendError,
    CacheMemoryError,
    CheckpointError,
    CheckpointNotFoundError,
    ClosedError,
    ConfigError,
    ContextError,
    Error,
    FallbackWarning,
    ForkError,
    Gpt2cWarning,
    MissingDependencyError,
    NumericalError,
    OptionError,
    OptionTypeError,
    TokenizerError,
    TokenizerWarning,
)
from gpt2c.forks import IMPORTING
from gpt2c.gen_text import gen_text
from gpt2c.generate.options import Completion
from gpt2c.generate.sampling import SAMPLER_ORDER
from gpt2c.model import GPT2
from gpt2c.pico import load_encoder_hparams_and_params
from gpt2c.session import Session
from gpt2c.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2c.compat.transformers import from_transformers
    from gpt2c.measure.scores import Score
    from gpt2c.scheduler import Scheduler

# The version of the arithmetic: raised when any logit's bits change (CONTRIBUTING.md, contract 2).
ARITHMETIC = 1

logging.getLogger("gpt2c").addHandler(logging.NullHandler())

__all__ = [
    "ARITHMETIC",
    "GPT2",
    "SAMPLER_ORDER",
    "BackendError",
    "CacheMemoryError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ClosedError",
    "Completion",
    "ConfigError",
    "ContextError",
    "Error",
    "FallbackWarning",
    "ForkError",
    "GPT2Config",
    "Gpt2cWarning",
    "MissingDependencyError",
    "NumericalError",
    "OptionError",
    "OptionTypeError",
    "Scheduler",
    "Score",
    "Session",
    "Tokenizer",
    "TokenizerError",
    "TokenizerWarning",
    "__version__",
    "from_transformers",
    "gen_text",
    "load_encoder_hparams_and_params",
]

# Names that few programs use, and their modules. A module is imported when its name is first used,
# so that other programs start faster. The scheduler imports asyncio, which takes 25 ms.
_LAZY_NAMES: Final = {
    "Scheduler": "gpt2c.scheduler",
    "Score": "gpt2c.measure.scores",
    "from_transformers": "gpt2c.compat.transformers",
}

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name not in ("scheduler", *_LAZY_NAMES):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with IMPORTING:
            if name == "scheduler":
                return import_module("gpt2c.scheduler")  # has public names of its own: Token, ...
            value = globals()[name] = getattr(import_module(_LAZY_NAMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
