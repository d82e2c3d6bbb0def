"""Checks of prompts: texts, token ids, and lists and iterators of texts or ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import is_integer
from gpt2c.checks.untrusted import show
from gpt2c.errors import ContextError, OptionError, OptionTypeError

IdArray: TypeAlias = "NDArray[np.integer[Any]]"
Ids: TypeAlias = "Sequence[int] | IdArray"
Prompt: TypeAlias = "str | Ids"


def is_single(prompts: object) -> bool:
    """Whether this is one prompt, a text or token ids, rather than a list of prompts.

    An empty list counts as a list of prompts. Raises OptionTypeError if `prompts` is neither.
    """
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, np.ndarray):
        if prompts.ndim not in (1, 2) or prompts.dtype.kind not in "iu":
            raise OptionTypeError(
                f"prompt ids are an array of {prompts.dtype} with {prompts.ndim} dimensions; they "
                "must be integers, with one dimension (a prompt) or two (a list of prompts)"
            )
        return prompts.ndim == 1
    if not isinstance(prompts, list | tuple):
        raise OptionTypeError(
            f"a prompt is of type {type(prompts).__name__}; it must be a text, a list or NumPy "
            "array of token ids, or a list of prompts"
        )
    # Each type is looked at once, because a prompt may have many ids.
    kinds = {_kind(item) for item in {type(item): item for item in reversed(prompts)}.values()}
    if len(kinds) > 1:
        raise OptionTypeError(
            "a list of prompts must hold only texts or only lists of ids, and a list of ids only "
            f"integers; found {' and '.join(sorted(kinds))} together"
        )
    return kinds == {"ids"}


def is_lazy(prompts: object) -> bool:
    """Whether this is an iterable to read lazily, such as a generator or an open file."""
    # Tensors, series, ranges, sets and mappings are iterable too, but more likely a mistake.
    return isinstance(prompts, Iterable) and not (
        isinstance(prompts, str | Sequence | Mapping | Set | memoryview)
        or hasattr(prompts, "__array__")
    )


def _kind(item: object) -> str:
    """Return what an item of a list is: "texts", "lists" or "ids"."""
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
    """Return token ids as int32 [n], copied so that the caller cannot change them during the call.

    Raises OptionTypeError for an id that is not an integer, and OptionError for the first id that
    is not in the vocabulary. The messages begin with `where`.
    """
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise OptionTypeError(
                f"{where}: ids are an array of {ids.dtype} with {ids.ndim} dimensions; they must "
                "be integers, with one dimension"
            )
        numbers = np.array(ids, subok=False)
        outside = np.flatnonzero((numbers < 0) | (numbers >= n_vocab))
        if len(outside):
            _refuse_id(where, int(outside[0]), int(numbers[outside[0]]), n_vocab)
        return numbers.astype(np.int32)
    if not isinstance(ids, list | tuple):
        raise OptionTypeError(f"{where}: ids must be a list or a NumPy array, found {show(ids)}")
    items = list(ids)
    if {*map(type, items)} == {int} and min(items) >= 0 and max(items) < n_vocab:
        return np.array(items, dtype=np.int32)
    checked = []
    for position, item in enumerate(items):  # to find the id to refuse, or to convert NumPy's
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
    ids: NDArray[np.int32], n_positions: int, max_new_tokens: int, keep_end: bool, where: str
) -> NDArray[np.int32]:
    """Return the ids of a prompt that fit in the context: all, or with keep_end the last ones.

    With keep_end, there is room for max_new_tokens after the ids, up to half of the context.
    Without keep_end, a prompt longer than the context raises ContextError, with a message that
    begins with `where`.
    """
    if keep_end:
        room = max(min(max_new_tokens - 1, n_positions // 2), 0)
        return ids[-(n_positions - room) :]
    if len(ids) > n_positions:
        raise ContextError(
            f"{where} has {len(ids)} tokens, more than the context's {n_positions} positions; "
            "shorten it, or pass truncate='left' to keep its end"
        )
    return ids
