"""gpt2c: GPT-2 text generation on CPUs, fast and exact.

>>> from gpt2c import GPT2
>>> model = GPT2.from_pretrained()  # the embedded model; or pass a folder, or a name on the hub
>>> model.generate("Once upon a time", max_new_tokens=40)
>>> model.generate(["The king", "The fox"], temperature=0.8, top_k=40, seed=1)
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Final

from gpt2c._version import ARITHMETIC, __version__
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
    SharingWarning,
    TableError,
    TokenizerError,
    TokenizerWarning,
)
from gpt2c.forks import IMPORTING
from gpt2c.gen_text import gen_text

if TYPE_CHECKING:
    from gpt2c.compat.transformers import from_transformers
    from gpt2c.generate.options import Completion
    from gpt2c.generate.sampling import SAMPLER_ORDER
    from gpt2c.measure.choices import Choices
    from gpt2c.measure.scores import Score
    from gpt2c.measure.word_table import Surprisals
    from gpt2c.model import GPT2
    from gpt2c.pico import load_encoder_hparams_and_params
    from gpt2c.scheduler import Scheduler
    from gpt2c.session import Session
    from gpt2c.text.tokenizer import Tokenizer
    from gpt2c.word_surprisal import surprisal

logging.getLogger("gpt2c").addHandler(logging.NullHandler())

__all__ = [
    "ARITHMETIC",
    "GPT2",
    "SAMPLER_ORDER",
    "BackendError",
    "CacheMemoryError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Choices",
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
    "SharingWarning",
    "Surprisals",
    "TableError",
    "Tokenizer",
    "TokenizerError",
    "TokenizerWarning",
    "__version__",
    "from_transformers",
    "gen_text",
    "load_encoder_hparams_and_params",
    "surprisal",
]

# Names and their modules. A module is imported when its name is first used, so that a program
# imports only what it needs: `gpt2c --version` needs no NumPy, only the scheduler needs asyncio.
_LAZY_NAMES: Final = {
    "Choices": "gpt2c.measure.choices",
    "Completion": "gpt2c.generate.options",
    "GPT2": "gpt2c.model",
    "SAMPLER_ORDER": "gpt2c.generate.sampling",
    "Scheduler": "gpt2c.scheduler",
    "Score": "gpt2c.measure.scores",
    "Session": "gpt2c.session",
    "Surprisals": "gpt2c.measure.word_table",
    "Tokenizer": "gpt2c.text.tokenizer",
    "from_transformers": "gpt2c.compat.transformers",
    "load_encoder_hparams_and_params": "gpt2c.pico",
    "surprisal": "gpt2c.word_surprisal",
}
_LAZY_MODULES: Final = ("coloring", "pico", "scheduler")  # with public names of their own

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name not in _LAZY_NAMES and name not in _LAZY_MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with IMPORTING:
            if name in _LAZY_MODULES:
                return import_module(f"gpt2c.{name}")
            value = globals()[name] = getattr(import_module(_LAZY_NAMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
