"""Continuing texts: options and prompts, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import ContextError, OptionError, OptionTypeError
from gpt2c.options import INT32_MAX, choice, integer, is_integer, number
from gpt2c.untrusted import show

IdArray: TypeAlias = "NDArray[np.integer[Any]]"
Ids: TypeAlias = "Sequence[int] | IdArray"
Prompt: TypeAlias = "str | Ids"

# Rows that decode together. More share the weights' bandwidth better, at the price of cache pages.
DEFAULT_BATCH_SIZE: Final = 32
_SEED_LIMIT: Final = 2**64


class StreamOptions(TypedDict, total=False):
    """Keyword arguments of GPT2.stream; see GPT2.complete for what they are."""

    max_new_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    seed: int | None
    truncate: str | None


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of GPT2.generate and GPT2.complete."""

    max_new_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    seed: int | Sequence[int] | None
    truncate: str | None
    batch_size: int


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with.

    text
        The new text alone; None where the prompt was ids.
    ids
        The new ids. The token that ended the text is not among them.
    finish_reason
        "length": max_new_tokens were generated; "stop": the model ended the text; "context": the
        context is full.
    seed
        What reproduces this text; None where nothing was drawn.
    """

    text: str | None
    ids: list[int]
    finish_reason: str
    seed: int | None

    @property
    def new(self) -> str | list[int]:
        """What generate returns: the text, or, of a prompt that was ids, the ids."""
        return self.ids if self.text is None else self.text


@dataclass(frozen=True)
class Options:
    """Checked generation options, Hugging Face's names."""

    max_new_tokens: int
    temperature: float  # 0: greedy
    top_k: int  # 0: all
    seeds: int | tuple[int, ...] | None
    truncate: str | None

    def seed_of(self, index: int) -> int | None:
        """The seed of the prompt at this index; drawn where none was given, None if greedy.

        Raises OptionError past the end of a list of seeds.
        """
        if isinstance(self.seeds, tuple) and index >= len(self.seeds):
            raise OptionError(
                f"seed is a list of {len(self.seeds)}; it must have one for each prompt, and there "
                f"is a prompt {index}"
            )
        if self.temperature == 0:
            return None
        if isinstance(self.seeds, tuple):
            return self.seeds[index]
        return int.from_bytes(os.urandom(4)) if self.seeds is None else self.seeds


# ---- options ----


def check_options(
    *,
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float | None,
    top_k: int | None,
    seed: int | Sequence[int] | None,
    truncate: str | None,
) -> Options:
    """Checked options; sampling is on where do_sample says so or a sampling option is given.

    Raises OptionError or OptionTypeError naming the option, its value and its range.
    """
    n = integer("max_new_tokens", max_new_tokens, 0, INT32_MAX)
    if do_sample is not None and not isinstance(do_sample, bool):
        raise OptionTypeError(f"do_sample is {show(do_sample)}; it must be True, False or None")
    if truncate is not None:
        choice("truncate", truncate, ("left",))
    given = [
        name for name, value in (("temperature", temperature), ("top_k", top_k))
        if value is not None
    ]  # fmt: skip
    if do_sample is False and given:
        raise OptionError(f"do_sample is False, but {given[0]}, which is for sampling, is given")
    heat = 1.0 if temperature is None else number("temperature", temperature, 0, 3e38)
    if not (do_sample or given):
        heat = 0.0
    k = 0 if top_k is None else integer("top_k", top_k, 0, INT32_MAX)
    return Options(n, heat, k, _seeds(seed), truncate)


def _seeds(seed: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    if seed is None:
        return None
    if isinstance(seed, np.ndarray) and seed.ndim:
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        return tuple(integer("a seed", item, 0, _SEED_LIMIT - 1) for item in list(seed))
    return integer("seed", seed, 0, _SEED_LIMIT - 1)


# ---- prompts ----


def is_single(prompts: object) -> bool:
    """Whether this is one prompt (a text, or a sequence of ids) rather than a list of prompts.

    Raises OptionTypeError where it is neither.
    """
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, np.ndarray):
        if prompts.ndim not in (1, 2) or prompts.dtype.kind not in "iu":
            raise OptionTypeError(
                f"prompt ids are an array of {prompts.dtype} with {prompts.ndim} dimensions; "
                "they must be integers with one (a prompt) or two (a list of them)"
            )
        return prompts.ndim == 1
    if not isinstance(prompts, list | tuple):
        raise OptionTypeError(
            f"a prompt is of type {type(prompts).__name__}; it must be a text, a list or NumPy "
            "array of token ids, or a list of prompts"
        )
    kinds = {_kind(item) for item in prompts}
    if len(kinds) > 1:
        raise OptionTypeError(
            "a list of prompts must be all texts or all lists of ids (and a prompt of ids all "
            f"integers); found {' and '.join(sorted(kinds))} together"
        )
    return kinds == {"ids"}


def is_lazy(prompts: object) -> bool:
    """Whether these are prompts to be taken one by one, as from a generator or an open file."""
    # What holds numbers (tensors, series, ranges) or has no order is more likely a slip.
    return isinstance(prompts, Iterable) and not (
        isinstance(prompts, str | Sequence | Mapping | Set | memoryview)
        or hasattr(prompts, "__array__")
    )


def _kind(item: object) -> str:
    if isinstance(item, str):
        return "texts"
    if isinstance(item, list | tuple | np.ndarray):
        return "lists"
    if is_integer(item):
        return "ids"
    raise OptionTypeError(
        f"a list of prompts holds {show(item)} of type {type(item).__name__}; it must hold texts, "
        "lists of token ids, or be a list of token ids itself"
    )


def check_ids(ids: object, n_vocab: int, where: str) -> NDArray[np.int32]:
    """Token ids as int32 [n], in memory of their own: nobody can change them under the engine.

    Raises OptionTypeError where they are not integers, OptionError naming the first that the
    vocabulary does not have.
    """
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise OptionTypeError(
                f"{where}: ids are an array of {ids.dtype} with {ids.ndim} dimensions; they must "
                "be integers with one"
            )
        numbers = np.array(ids, subok=False)
        outside = np.flatnonzero((numbers < 0) | (numbers >= n_vocab))
        if len(outside):
            _refuse_id(where, int(outside[0]), int(numbers[outside[0]]), n_vocab)
        return numbers.astype(np.int32)
    if not isinstance(ids, list | tuple):
        raise OptionTypeError(f"{where}: ids must be a list or a NumPy array, found {show(ids)}")
    checked = []
    for position, item in enumerate(list(ids)):
        if not is_integer(item):
            raise OptionTypeError(
                f"{where}: token {position} is {show(item)}; it must be an integer"
            )
        id = int(item)
        if not 0 <= id < n_vocab:
            _refuse_id(where, position, id, n_vocab)
        checked.append(id)
    return np.array(checked, dtype=np.int32)


def _refuse_id(where: str, position: int, id: int, n_vocab: int) -> NoReturn:
    raise OptionError(f"{where}: token {position} is {show(id)}; ids are from 0 to {n_vocab - 1}")


def fit_context(
    ids: NDArray[np.int32], n_positions: int, options: Options, where: str
) -> NDArray[np.int32]:
    """The ids that are fed: all of them, or, under truncate="left", the last ones.

    So that there is something to generate, "left" leaves room for max_new_tokens, but for at most
    half of the context.

    Raises ContextError where they do not fit.
    """
    if options.truncate == "left":
        room = max(min(options.max_new_tokens - 1, n_positions // 2), 0)
        return ids[-(n_positions - room) :]
    if len(ids) > n_positions:
        raise ContextError(
            f"{where} has {len(ids)} tokens, more than the context's {n_positions} positions; "
            "shorten it, or pass truncate='left' to keep its end"
        )
    return ids
