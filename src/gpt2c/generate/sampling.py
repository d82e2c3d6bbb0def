"""Check the sampling options, and turn them into a plan: the stages that change the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT32_MAX, integer, is_integer, items, number
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import NO_IDS, Plan, Stage, unpack_words
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer, encode_part

_MAX_BIAS: Final = 1e4  # a larger bias would round away the digits of float32 logits
_MIN_TEMPERATURE: Final = 2e-38  # just above the subnormal float32s
_DRY_BREAKERS: Final = ("\n", ":", '"', "*")


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments that control how tokens are chosen; GPT2.complete describes them."""

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    top_n_sigma: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_range: int | None
    dry_sequence_breakers: Sequence[str] | None
    no_repeat_ngram_size: int | None
    bad_words: Sequence[str | Sequence[int]] | None
    logit_bias: Mapping[int | str, float] | None
    suppress_tokens: Sequence[int | str] | None
    min_new_tokens: int | None
    sampler_order: Sequence[str] | None


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary that token ids and texts in options are checked against."""

    n: int  # the number of ids
    stop_ids: frozenset[int]  # EOS and other ids that end a text
    tokenizer: Callable[[], Tokenizer | MissingTokenizer]  # returns the tokenizer, made lazily
    n_padding: int = 0  # the number of last ids that the tokenizer lacks
    named_ids: frozenset[int] = frozenset()  # ids in the model's files, which are never padding

    def checked_id(self, option: str, value: object) -> int:
        """Return the id that `value`, an item of an option, means: an id, or a text of one token.

        A text must not consist of digits only. Raises OptionError or OptionTypeError, naming the
        option, and TokenizerError for a text if there is no tokenizer.
        """
        if isinstance(value, str):
            if value.isascii() and value.isdigit():
                self._refuse_digits(option, value)
            ids = encode_part(self.tokenizer(), value)
            if len(ids) != 1:
                raise OptionError(
                    f"{option} has {show(value)}, which is {len(ids)} tokens, not one"
                )
            return ids[0]
        if not is_integer(value):
            raise OptionTypeError(f"{option} has {show(value)}; it must hold token ids")
        id: int = int(value)  # type: ignore[call-overload]
        if not 0 <= id < self.n:
            raise OptionError(f"{option} has {show(id)}; ids are from 0 to {self.n - 1}")
        return id

    def _refuse_digits(self, option: str, value: str) -> NoReturn:
        """Raise OptionError for a string of digits.

        It is ambiguous: an id that became a JSON key, or the text of another token.
        """
        shown = show(value)
        digits = value.lstrip("0") or "0"
        is_id = len(digits) < 20 and int(digits) < self.n
        as_id = digits if is_id else f"from 0 to {self.n - 1}"
        tokenizer = self.tokenizer()
        as_text = ""
        if not isinstance(tokenizer, MissingTokenizer):
            ids = encode_part(tokenizer, value[:1000])
            as_text = f" (no single token has the text {shown})"
            if len(ids) == 1:
                as_text = f", or the int {ids[0]} for the token whose text is {shown}"
        raise OptionError(
            f"{option} has {shown}, which may be an id or a text; pass the int {as_id} for the "
            f"token with that id{as_text}"
        )


# ---- from options to a plan ----


def check_sampling(given: Mapping[str, Any], vocabulary: Vocabulary) -> Plan:
    """Return the plan for the SamplingOptions in `given`; a value of None means not given.

    Sampling is on if do_sample is True or an option that needs it is given, unless temperature is
    0. Raises OptionError or OptionTypeError, naming the option, its value and its range, and
    TokenizerError for a text if there is no tokenizer.
    """
    options = {name: value for name, value in given.items() if value is not None}
    do_sample = options.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise OptionTypeError(f"do_sample is {show(do_sample)}; it must be True, False or None")
    order = _checked_order(options.get("sampler_order"))
    stages = {stage.name: stage for stage in _stages_of(options, vocabulary)}
    if do_sample is False and (given_names := _sampling_options_in(options)):
        raise OptionError(
            f"do_sample is False, but {given_names[0]}, which is for sampling, is given"
        )
    draws = bool(asks_to_sample(options))
    missing = [name for name in stages if name not in order]
    if missing:
        raise OptionError(
            f"sampler_order lacks {missing[0]}, which is given; name every stage used"
        )
    kept = order if draws else [name for name in order if name not in SAMPLING_STAGES]
    padding = _padding_stage(vocabulary, stages.values())
    return Plan((*padding, *(stages[name] for name in kept if name in stages)), draws)


def asks_to_sample(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the given options that turn sampling on; [] if temperature is 0."""
    temperature = options.get("temperature")
    if isinstance(temperature, int | float | np.number) and temperature == 0:
        return []
    do_sample = ["do_sample"] if options.get("do_sample") is True else []
    return [*_sampling_options_in(options), *do_sample]


def _sampling_options_in(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the given options that turn on one of SAMPLING_STAGES."""
    given = (name for name, value in options.items() if value is not None)
    return [name for name in given if _STAGE_OF.get(name) in SAMPLING_STAGES]


def _padding_stage(vocabulary: Vocabulary, stages: Iterable[Stage]) -> Iterator[Stage]:
    """Yield a stage that bans the padding ids, except those that an option or the model names."""
    if not vocabulary.n_padding:
        return
    named = set(vocabulary.named_ids | vocabulary.stop_ids)
    for stage in stages:
        if stage.name == "bad_words":
            named.update(id for word in unpack_words(stage.ids) for id in word)
        elif stage.name in ("logit_bias", "suppress_tokens"):
            named.update(stage.ids.tolist())
    first = vocabulary.n - vocabulary.n_padding
    ids = [id for id in range(first, vocabulary.n) if id not in named]
    if ids:
        yield Stage("suppress_tokens", ids=_id_array(ids))


def _stages_of(options: dict[str, Any], vocabulary: Vocabulary) -> Iterator[Stage]:
    """Yield the stages for the options, in any order; an option without effect yields none."""
    for name, (low, high, neutral) in _NUMBERS.items():
        if name in options:
            value = number(name, options[name], low, high)
            if name == "temperature":
                value = max(value, _MIN_TEMPERATURE)
            if value != neutral:
                yield Stage(name, value=value)
    for name in ("top_k", "no_repeat_ngram_size"):
        if name in options and (count := integer(name, options[name], 0, INT32_MAX)):
            yield Stage(name, count=count)
    min_new = integer("min_new_tokens", options.get("min_new_tokens", 0), 0, INT32_MAX)
    if min_new and vocabulary.stop_ids:
        yield Stage("min_new_tokens", count=min_new, ids=_id_array(sorted(vocabulary.stop_ids)))
    if "logit_bias" in options:
        yield _logit_bias_stage(options["logit_bias"], vocabulary)
    if "suppress_tokens" in options:
        ids = items("suppress_tokens", options["suppress_tokens"], "token ids")
        yield Stage(
            "suppress_tokens",
            ids=_id_array([vocabulary.checked_id("suppress_tokens", id) for id in ids]),
        )
    if "bad_words" in options:
        yield Stage("bad_words", ids=_packed_words(options["bad_words"], vocabulary))
    yield from _dry_stage(options, vocabulary)
    yield from _two_number_stage(
        options, "xtc", ("xtc_probability", 0, 1), ("xtc_threshold", 0, 1, 0.1)
    )
    yield from _two_number_stage(
        options, "mirostat", ("mirostat_tau", 0, 100), ("mirostat_eta", 0, 10, 0.1)
    )


def _two_number_stage(
    options: dict[str, Any],
    stage: str,
    first: tuple[str, float, float],
    second: tuple[str, float, float, float],
) -> Iterator[Stage]:
    """Yield a stage of two numbers if the first number, which turns the stage on, is given.

    `first` is an option with its min and max; `second` is another with min, max and default.
    """
    name, low, high = second[:3]
    other = number(name, options.get(name, second[3]), low, high)
    if first[0] in options:
        yield Stage(stage, value=number(first[0], options[first[0]], *first[1:]), other=other)
    elif name in options:
        raise OptionError(f"{name} is given without {first[0]}, which turns it on")


def _logit_bias_stage(given: object, vocabulary: Vocabulary) -> Stage:
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"logit_bias is {show(given)}; it must map token ids to numbers")
    biases = {
        vocabulary.checked_id("logit_bias", id): number(
            f"logit_bias of {show(id)}", bias, -_MAX_BIAS, _MAX_BIAS
        )
        for id, bias in given.items()
    }
    values = np.array(list(biases.values()), dtype=np.float32)
    return Stage("logit_bias", ids=_id_array(list(biases)), values=values)


def _packed_words(given: object, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Return the given words packed into one array: for each word, its length and its ids.

    A text is packed as written and, unless it begins with white space, also with a space before it.
    """
    packed: list[int] = []
    for word in items("bad_words", given, "texts or lists of token ids"):
        if isinstance(word, str):
            spellings = [word] if word[:1].isspace() else [word, " " + word]
            variants = [encode_part(vocabulary.tokenizer(), text) for text in spellings if word]
        else:
            variants = [items("bad_words", word, "texts or lists of token ids")]
        if not variants or not all(variants):
            raise OptionError("bad_words has an empty word")
        for ids in variants:
            packed += [len(ids), *(vocabulary.checked_id("bad_words", id) for id in ids)]
    return _id_array(packed)


def _dry_stage(options: dict[str, Any], vocabulary: Vocabulary) -> Iterator[Stage]:
    base = number("dry_base", options.get("dry_base", 1.75), 1, 100)
    allowed = integer("dry_allowed_length", options.get("dry_allowed_length", 2), 1, INT32_MAX)
    span = integer("dry_range", options.get("dry_range", 0), 0, INT32_MAX)
    breakers = options.get("dry_sequence_breakers")
    if "dry_multiplier" not in options:
        for name in ("dry_base", "dry_allowed_length", "dry_range", "dry_sequence_breakers"):
            if name in options:
                raise OptionError(f"{name} is given without dry_multiplier, which turns it on")
        return
    multiplier = number("dry_multiplier", options["dry_multiplier"], 0, 100)
    ids = _breaker_ids(breakers, vocabulary)
    if multiplier:
        yield Stage("dry", value=multiplier, other=base, count=allowed, span=span, ids=ids)


def _breaker_ids(given: object, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Return the ids of all tokens that contain one of the breaker strings, ascending."""
    if given is None and isinstance(vocabulary.tokenizer(), MissingTokenizer):
        return NO_IDS
    ids: set[int] = set()
    strings = _DRY_BREAKERS if given is None else items("dry_sequence_breakers", given, "strings")
    for text in strings:
        if not isinstance(text, str) or not text:
            raise OptionTypeError(
                f"dry_sequence_breakers has {show(text)}; it must hold strings that are not empty"
            )
        vocabulary.tokenizer().encode(text)  # raises if the text or the tokenizer is unusable
        ids |= _ids_containing(vocabulary.tokenizer(), text, vocabulary.n)
    return _id_array(sorted(ids))


@lru_cache(maxsize=64)
def _ids_containing(
    tokenizer: Tokenizer | MissingTokenizer, text: str, n_vocab: int
) -> frozenset[int]:
    part = text.encode()
    n = min(n_vocab, tokenizer.n_vocab)
    return frozenset(id for id in range(n) if part in tokenizer.token_bytes(id))


def _id_array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)


# ---- order ----

# The stages in their default order, which is transformers' order for the stages that transformers
# has. `PENALTIES` change the logits of single ids, also in greedy decoding. `SAMPLING_STAGES` are
# temperature and the filters, which remove unlikely ids; they run only with sampling. C has the
# same lists: GPT2C_PENALTIES, which also has allowed_ids, and GPT2C_FILTERS.
PENALTIES: Final = (
    "logit_bias",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry",
    "no_repeat_ngram_size",
    "bad_words",
    "min_new_tokens",
    "suppress_tokens",
)
SAMPLING_STAGES: Final = (
    "temperature",
    "top_n_sigma",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "xtc",
    "mirostat",
)
SAMPLER_ORDER: Final = (*PENALTIES, *SAMPLING_STAGES)

# Options that are one number: min, max, and the value without effect.
_NUMBERS: Final = {
    "repetition_penalty": (0.01, 100.0, 1.0),
    "presence_penalty": (-100.0, 100.0, 0.0),
    "frequency_penalty": (-100.0, 100.0, 0.0),
    "temperature": (0.0, 3e38, 1.0),
    "top_n_sigma": (0.0, 1e6, math.inf),
    "top_p": (0.0, 1.0, 1.0),
    "min_p": (0.0, 1.0, 0.0),
    "typical_p": (0.0, 1.0, 1.0),
    "epsilon_cutoff": (0.0, 1.0, 0.0),
    "eta_cutoff": (0.0, 1.0, 0.0),
}

# Maps each option to the stage that it turns on. Add every option whose name differs from its
# stage's name. If an option of SAMPLING_STAGES is missing here, it does not turn sampling on.
_STAGE_OF: Final = {
    **{name: name for name in SAMPLER_ORDER},
    "xtc_probability": "xtc",
    "mirostat_tau": "mirostat",
    "dry_multiplier": "dry",
}


def _checked_order(given: object) -> list[str]:
    if given is None:
        return list(SAMPLER_ORDER)
    names = items("sampler_order", given, "names of stages")
    for name in names:
        if not isinstance(name, str) or name not in SAMPLER_ORDER:
            raise OptionError(
                f"sampler_order has {show(name)}; the stages are {', '.join(SAMPLER_ORDER)}"
            )
    if len(set(names)) < len(names):
        raise OptionError("sampler_order has a stage twice")
    return names
