"""The options of generation calls, their checks, and `Completion`, what a call returns."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.option_hints import option_hint
from gpt2c.checks.options import INT32_MAX, choice, flag, integer, is_integer, items, number
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import MAX_LOGPROBS, MAX_ROWS, Plan, Scores
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.generate.beam_options import BeamOptions, check_beams
from gpt2c.generate.generation_config import Lengths
from gpt2c.generate.sampling import SamplingOptions, Vocabulary, asks_to_sample, check_sampling
from gpt2c.schedule.requests import LogitsProcessor
from gpt2c.schedule.stops import Callback, StopString

if TYPE_CHECKING:
    from gpt2c.schedule.beams import SearchOptions

# The number of sequences that decode together. A larger batch reads the weights less often per
# token, but its KV caches take more memory.
DEFAULT_BATCH_SIZE: Final = 32
_SEED_LIMIT: Final = 2**64
_MAX_TIME: Final = 1e9  # seconds
_MAX_SEQUENCES: Final = 65536


# max_new_tokens has its own class so that signatures list it before the sampling options.
class _LengthOption(TypedDict, total=False):
    max_new_tokens: int


class _CommonOptions(_LengthOption, SamplingOptions, total=False):
    stop_strings: str | Sequence[str] | None
    stop_token_ids: Sequence[int | str] | None
    eos_token_id: int | Sequence[int] | None
    max_time: float | None
    callback: Callback | None
    logits_processor: LogitsProcessor | None
    truncate: str | None
    overflow: str
    draft: Any
    num_assistant_tokens: int | None


class StreamOptions(_CommonOptions, total=False):
    """Keyword arguments of GPT2.stream; GPT2.complete describes them."""

    seed: int | None


class _BatchOptions(_CommonOptions, BeamOptions, total=False):
    seed: int | Sequence[int] | None
    num_return_sequences: int | None
    batch_size: int
    progress: bool


class GenerateOptions(_BatchOptions, total=False):
    """Keyword arguments of GPT2.generate; GPT2.complete describes them."""


class CompleteOptions(_BatchOptions, total=False):
    """Keyword arguments of GPT2.complete."""

    logprobs: int | None
    echo: bool


# The defaults of the options that do not default to None.
DEFAULTS: Final[Mapping[str, Any]] = {
    "max_new_tokens": 40,
    "overflow": "stop",
    "draft": "auto",
    "batch_size": DEFAULT_BATCH_SIZE,
    "progress": False,
    "echo": False,
}


@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt.

    text
        The new text without the prompt, and without the stop string that ended it; None if the
        prompt was ids.
    ids
        The new ids, without the token that ended the text. A stop string's ids are left out, except
        an id that also holds text before the string.
    finish_reason
        Why the text ended. "length": it has max_new_tokens tokens; "stop": an EOS token, a stop
        string or a stop token ended it; "context": the context is full; "time": max_time has
        passed; "callback": the callback ended it.
    seed, sample
        The prompt's seed (None without sampling), and the number of this text among
        num_return_sequences, from 0. The same prompt, options and seed give the same texts. The
        texts of a beam search are numbered best first.
    logprobs, top_logprobs
        With logprobs: the log-probability of each new token, in nats, computed from the model's
        logits before any option changes them; and for each position a dict from the most likely
        ids to their log-probabilities.
    prompt_logprobs, prompt_top_logprobs
        With echo=True: the same for the prompt's tokens. The first token has NaN and no
        alternatives, because nothing precedes it.
    passes, drafted, accepted
        The numbers of forward passes that chose new tokens, of drafted tokens, and of drafted
        tokens that the model accepted.
    sequence_score
        With beam search: the sum of the log-probabilities, after all options, divided by
        length^length_penalty. The token that ended the text counts in the sum and in the length.
    end_id, end_logprob, end_top_logprobs
        The token that ended the text, which is not in ids; None if no token did. With logprobs,
        also its log-probability, and the most likely ids at its position; beam search has neither.
    """

    text: str | None
    ids: list[int]
    finish_reason: str
    seed: int | None
    sample: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[float] | None = None
    prompt_top_logprobs: list[dict[int, float]] | None = None
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    sequence_score: float | None = None
    end_id: int | None = None
    end_logprob: float | None = None
    end_top_logprobs: dict[int, float] | None = None

    @property
    def new(self) -> str | list[int]:
        """What generate returns: the text, or the ids if the prompt was ids."""
        return self.ids if self.text is None else self.text


@dataclass(frozen=True)
class Logprobs:
    """An engine's scores of tokens, as lists; None if they were not computed."""

    logprobs: list[float] | None = None
    top: list[dict[int, float]] | None = None

    @classmethod
    def of(cls, scores: Scores | None) -> Logprobs:
        """Convert the scores of new tokens."""
        if scores is None:
            return cls()
        tokens, alternatives = scores
        top = [{int(id): float(p) for p, id in row.tolist() if id >= 0} for row in alternatives]
        return cls(tokens["log_prob"].astype(float).tolist(), top)

    @classmethod
    def of_prompt(cls, scores: Scores | None, n: int) -> Logprobs:
        """Convert the scores of a prompt of n tokens; the first token has NaN."""
        rest = cls.of(scores)
        return cls([math.nan, *(rest.logprobs or [])][:n], [{}, *(rest.top or [])][:n])


@dataclass(frozen=True)
class Options:
    """The options of a generation call.

    All are checked, except `draft` and `num_assistant_tokens`: `check_drafts` checks these, because
    their values depend on the engine. `lengths` are the default lengths from the model's files.
    """

    plan: Plan
    beams: SearchOptions | None
    max_new_tokens: int
    seeds: int | tuple[int, ...] | None  # for all prompts, or for each; None: random ones
    stop_strings: tuple[StopString, ...]
    stop_ids: NDArray[np.int32]  # the EOS tokens and stop_token_ids, ascending
    eos_ids: tuple[int, ...] | None  # the call's own EOS tokens; None: the model's
    max_time: float | None
    callback: Callback | None
    logits_processor: LogitsProcessor | None
    truncate: str | None
    overflow: str
    draft: Any
    num_assistant_tokens: Any
    num_return_sequences: int | None
    batch_size: int
    progress: bool
    logprobs: int | None  # the number of alternatives; None: no log-probabilities
    echo: bool
    lengths: Lengths = field(default_factory=Lengths)

    @property
    def n_requests(self) -> int:
        """The number of requests per prompt: one per text, or one beam search for all of them."""
        return 1 if self.beams is not None else self.n_texts

    @property
    def n_texts(self) -> int:
        """The number of texts per prompt."""
        return self.num_return_sequences or 1

    def seed_of(self, index: int) -> int | None:
        """Return the seed of the prompt at this index; None if the call does not sample.

        Without the option seed, each call of this method returns a new random seed.

        Raises OptionError if the list of seeds is too short.
        """
        if isinstance(self.seeds, tuple) and index >= len(self.seeds):
            raise OptionError(
                f"seed is a list of {len(self.seeds)}; it must have one seed for "
                f"each prompt, but prompt {index} has none"
            )
        if not self.plan.draws:
            return None
        if isinstance(self.seeds, tuple):
            return self.seeds[index]
        return int.from_bytes(os.urandom(4)) if self.seeds is None else self.seeds


def check_options(
    given: Mapping[str, Any], allowed: type, method: str, vocabulary: Vocabulary
) -> Options:
    """Return the checked options of a call, completed with gpt2c's defaults.

    `allowed` is the TypedDict whose names are the options of the called method, and `method` is
    that method's name, for messages. Raises OptionError or OptionTypeError, naming the option, its
    value and its range; and TokenizerError if an option needs a tokenizer that is missing.
    """
    names = allowed.__annotations__
    for name in given:
        if name not in names:
            more = option_hint(name, names, CompleteOptions.__annotations__)
            raise OptionTypeError(f"{method} has no option {show(name)}{more}")
    options: dict[str, Any] = {**dict.fromkeys(names), **DEFAULTS, **given}
    eos_ids = _eos_ids(given["eos_token_id"], vocabulary) if "eos_token_id" in given else None
    stop_ids = set(vocabulary.stop_ids if eos_ids is None else eos_ids)
    if (ids := options["stop_token_ids"]) is not None:
        stop_ids |= {
            vocabulary.checked_id("stop_token_ids", id)
            for id in items("stop_token_ids", ids, "ids or texts")
        }
    # The model's own EOS tokens are not padding, whatever ends a text of this call.
    named_ids = vocabulary.named_ids | vocabulary.stop_ids
    vocabulary = replace(vocabulary, stop_ids=frozenset(stop_ids), named_ids=named_ids)
    plan = check_sampling({n: options[n] for n in SamplingOptions.__annotations__}, vocabulary)
    checked = Options(
        plan=plan,
        beams=check_beams({n: options.get(n) for n in BeamOptions.__annotations__}),
        max_new_tokens=integer("max_new_tokens", options["max_new_tokens"], 0, INT32_MAX),
        seeds=_seeds(options["seed"]),
        stop_strings=_stop_strings(options["stop_strings"]),
        stop_ids=np.array(sorted(stop_ids), dtype=np.int32),
        eos_ids=eos_ids,
        max_time=_optional(options["max_time"], _max_time),
        callback=_checked_function("callback", options["callback"]),
        logits_processor=_checked_function("logits_processor", options["logits_processor"]),
        truncate=_optional(options["truncate"], lambda x: choice("truncate", x, ("left",))),
        overflow=choice("overflow", options["overflow"], ("stop", "slide", "crop")),
        draft=options["draft"],
        num_assistant_tokens=options["num_assistant_tokens"],
        num_return_sequences=_optional(options.get("num_return_sequences"), _num_return_sequences),
        batch_size=integer("batch_size", options["batch_size"], 1, MAX_ROWS),
        progress=flag("progress", options["progress"]),
        logprobs=_optional(options.get("logprobs"), _logprobs),
        echo=flag("echo", options["echo"]),
    )
    _check_combinations(checked, options)
    return checked


def _check_combinations(checked: Options, options: Mapping[str, Any]) -> None:
    """Raise OptionError for options that cannot be combined, or need another option."""
    if checked.beams is not None:
        _check_beam_combinations(checked, checked.beams, asks_to_sample(options))
    elif checked.n_texts > 1 and not checked.plan.draws:
        raise OptionError(
            f"num_return_sequences is {checked.n_texts}, but without sampling all texts would be "
            "the same; pass do_sample=True, a temperature or num_beams"
        )
    if checked.echo and checked.logprobs is None:
        raise OptionError("echo is given without logprobs; pass logprobs=0 or more")
    if (options["min_new_tokens"] or 0) > checked.max_new_tokens:
        raise OptionError(
            f"min_new_tokens is {options['min_new_tokens']}, more than max_new_tokens, "
            f"{checked.max_new_tokens}"
        )


def _check_beam_combinations(checked: Options, beams: SearchOptions, sampling: list[str]) -> None:
    """Raise OptionError for options that cannot be combined with beam search.

    `sampling` has the names of the given options that turn sampling on.
    """
    refused = [f"{name}, which is for sampling" for name in sampling]
    if checked.callback is not None:
        refused.append("a callback")
    if checked.overflow != "stop":
        refused.append(f"overflow='{checked.overflow}'")
    if refused:
        raise OptionError(
            f"num_beams is {beams.n_beams}, and beam search cannot be combined with "
            f"{refused[0]}; pass num_beams=1, or leave out the other option"
        )
    if checked.n_texts > beams.n_beams:
        raise OptionError(
            f"num_return_sequences is {checked.n_texts}, more than num_beams, {beams.n_beams}"
        )


def _optional(value: Any, check: Callable[[Any], Any]) -> Any:
    return None if value is None else check(value)


def _max_time(value: object) -> float:
    return number("max_time", value, 0, _MAX_TIME)


def _num_return_sequences(value: object) -> int:
    return integer("num_return_sequences", value, 1, _MAX_SEQUENCES)


def _logprobs(value: object) -> int:
    return integer("logprobs", value, 0, MAX_LOGPROBS)


def _checked_function(name: str, value: object) -> Any:
    if value is not None and not callable(value):
        raise OptionTypeError(f"{name} is {show(value)}; it must be a function")
    if inspect.iscoroutinefunction(value):
        raise OptionTypeError(f"{name} is an async function; it must be a plain function")
    return value


def _eos_ids(value: object, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the EOS tokens that a call sets: an id, a list of ids, or None for no EOS token."""
    if value is None:
        return ()
    name = "eos_token_id"
    ids = [value] if is_integer(value) else items(name, value, "token ids, an id, or None")
    return tuple(vocabulary.checked_id(name, id) for id in ids)


def _stop_strings(value: object) -> tuple[StopString, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else items("stop_strings", value, "strings")
    for string in strings:
        if not isinstance(string, str):
            raise OptionTypeError(f"stop_strings has {show(string)}; it must hold strings")
        if not string:
            raise OptionError("stop_strings has an empty string, which every text contains")
    try:
        return tuple(StopString(string.encode()) for string in strings)
    except UnicodeEncodeError as error:
        raise OptionError(f"stop_strings has a string that is not Unicode: {error}") from None


def _seeds(seed: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    if seed is None:
        return None
    if isinstance(seed, np.ndarray) and seed.ndim:
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        seeds = items("seed", seed, "seeds")
        return tuple(integer("a seed", item, 0, _SEED_LIMIT - 1) for item in seeds)
    return integer("seed", seed, 0, _SEED_LIMIT - 1)
