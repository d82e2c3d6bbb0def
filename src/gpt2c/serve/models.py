"""The models of a server: their names, loading them, and turning texts into ids and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gpt2c
from gpt2c.errors import ContextError, OptionError
from gpt2c.generate.prompts import check_ids
from gpt2c.model import GPT2
from gpt2c.scheduler import Scheduler
from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer


@dataclass(frozen=True)
class ModelSource:
    """A model to load: its name, aliases, and the arguments of GPT2.from_pretrained."""

    name: str
    path: str | None
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    draft: str | None = "auto"  # how its texts draft tokens: see GPT2.complete


@dataclass(frozen=True)
class Encoding:
    """How to encode prompts; CompletionRequest has the same attributes."""

    parses_special: bool = True
    adds_special_tokens: bool = True
    truncate_to: int | None = None  # the max number of tokens; 0: the context
    keeps_end: bool = True


class ServedModel:
    """A loaded model, and the scheduler that runs its requests."""

    def __init__(
        self,
        name: str,
        model: GPT2,
        limits: Limits,
        aliases: Sequence[str] = (),
        draft: str | None = "auto",
    ) -> None:
        """Serve a model. Closing it is the caller's duty."""
        self.name, self.aliases, self.model = name, tuple(aliases), model
        self.draft = draft
        self.created = int(time.time())
        self.limits = limits
        self.scheduler = Scheduler(model, thread=True, max_running=limits.max_running)

    def close(self) -> None:
        """Cancel the model's requests, and free its memory once scoring has ended."""
        self.scheduler.close()
        self.model.close()

    @property
    def tokenizer(self) -> Tokenizer | MissingTokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def has_text(self) -> bool:
        """Whether the model has a tokenizer, and so can take and return texts."""
        return not isinstance(self.tokenizer, MissingTokenizer)

    @property
    def n_positions(self) -> int:
        """The number of positions of the context."""
        return self.model.config.n_positions

    @property
    def fingerprint(self) -> str:
        """What an answer's bits depend on, besides the request and the weights."""
        if self.model.backend == "numpy":
            return f"gpt2c-{gpt2c.__version__}-numpy-{self.model.dtype}"
        return f"gpt2c-arithmetic-{gpt2c.ARITHMETIC}-{self.model.dtype}"

    @cached_property
    def _max_token_bytes(self) -> int | None:
        """The length of the longest token; None if encoding may drop characters."""
        tokenizer = self.tokenizer
        if type(tokenizer) is not Tokenizer:
            return None
        return max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.n_vocab))

    def token_bytes(self, id: int) -> bytes:
        """Return a token's bytes; b"" if the tokenizer lacks the token, or is missing."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, MissingTokenizer) or id >= tokenizer.n_vocab:
            return b""
        return tokenizer.token_bytes(id)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; "" without a tokenizer."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def encode(self, given: str | list[int], where: str, encoding: Encoding) -> list[int]:
        """Return the ids of a text, or check ids, and cut them as the encoding says.

        A text that cannot fit is refused before it is encoded. Raises ContextError, OptionError,
        OptionTypeError or TokenizerError, with a message that begins with `where`.
        """
        limit = encoding.truncate_to
        if isinstance(given, str):
            self.check_has_text()
            if limit is None:
                self._check_length(given, where)
            ids = self.tokenizer.encode(
                given, special=encoding.parses_special,
                add_special_tokens=encoding.adds_special_tokens,
            )  # fmt: skip
        else:
            if limit is None:
                self._check_fits(len(given), where)
            ids = given
        checked: list[int] = check_ids(ids, self.model.config.vocab_size, where).tolist()
        if limit is not None:
            n = min(limit or self.n_positions, self.n_positions)
            checked = checked[-n:] if encoding.keeps_end else checked[:n]
        self._check_fits(len(checked), where)
        return checked

    def check_has_text(self) -> None:
        """Raise RequestError unless the model has a tokenizer.

        The tokenizer's own error is not for clients: it names files.
        """
        if not self.has_text:
            message = f"the model {self.name!r} has no tokenizer; send token ids"
            raise RequestError(400, message, code="no_tokenizer")

    def _check_length(self, text: str, where: str) -> None:
        """Raise ContextError for a text with more characters than n_positions tokens may have."""
        longest = self._max_token_bytes
        if longest is not None and len(text) > self.n_positions * longest:
            raise ContextError(
                f"{where} has {len(text)} characters, more than the context's {self.n_positions} "
                f"tokens of at most {longest} bytes can hold; shorten it, or pass "
                "truncate_prompt_tokens"
            )

    def _check_fits(self, n: int, where: str) -> None:
        if n > self.n_positions:
            raise ContextError(
                f"{where} has {n} tokens, more than the context's {self.n_positions} positions; "
                "shorten it, or pass truncate_prompt_tokens"
            )


class Models:
    """The models of a server, which are loaded after it has begun to listen."""

    def __init__(self, sources: Sequence[ModelSource], limits: Limits) -> None:
        """Check the names. Raises OptionError if two models have the same."""
        self._sources, self._limits = tuple(sources), limits
        self._by_name: dict[str, ServedModel] = {}
        self.served: list[ServedModel] = []
        self.is_ready = False
        self.is_stopping = False
        names = [name for source in sources for name in (source.name, *source.aliases)]
        for name in names:
            if not name or len(name) > 200:
                raise OptionError(f"a model's name is {name!r}; it must have 1 to 200 characters")
            if names.count(name) > 1:
                raise OptionError(f"two models have the name {name!r}")
        if not sources:
            raise OptionError("a server needs a model")

    @property
    def names(self) -> list[str]:
        """The names of the models, loaded or not."""
        return [source.name for source in self._sources]

    def load(self, load: Callable[..., GPT2] = GPT2.from_pretrained) -> None:
        """Load all models. Raises the errors of from_pretrained; loaded models are then closed."""
        try:
            for source in self._sources:
                if self.is_stopping:
                    return
                model = load(source.path, **source.options)
                self.add(
                    ServedModel(source.name, model, self._limits, source.aliases, source.draft)
                )
        except BaseException:
            self.close()
            raise
        self.is_ready = True

    def add(self, served: ServedModel) -> None:
        """Add a loaded model."""
        self.served.append(served)
        for name in (served.name, *served.aliases):
            self._by_name[name] = served

    def get(self, name: str | None) -> ServedModel:
        """Return the model of this name or alias, the first model for None.

        Raises RequestError: 503 while the models load or the server stops, 404 for a wrong name.
        """
        if self.is_stopping:
            raise RequestError(503, "the server is stopping", code="stopping")
        if not self.is_ready:
            raise RequestError(503, "the server loads its models", code="loading")
        if name is None:
            return self.served[0]
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise RequestError(
                404, f"there is no model {name[:200]!r}; the models are {known}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return self._by_name[name]

    def close(self) -> None:
        """Cancel all requests, and free the models."""
        self.is_stopping, self.is_ready = True, False
        for served in self.served:
            served.close()


def default_name(path: str | None) -> str:
    """Return the name of a model that is given without one: its path's last part."""
    return "tales" if path is None else Path(path).name or path
