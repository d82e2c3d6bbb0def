"""Checks of single option values.

integer, number, items, flag and choice return the checked value. They raise OptionTypeError for a
wrong type and OptionError for a wrong value; the message names the option, its value and the valid
values.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np

from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError

MAX_ITEMS: Final = 2**24
INT32_MAX: Final = 2**31 - 1  # the engine's counts are int32
INT64_MAX: Final = 2**63 - 1

_P = ParamSpec("_P")
_R = TypeVar("_R")


def is_integer(value: object) -> bool:
    """Return whether this is an int or a NumPy integer; bool and np.timedelta64 do not count."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def integer(name: str, value: object, lowest: int, highest: int) -> int:
    """Return an integer of any type except bool as an int from `lowest` to `highest`."""
    if isinstance(value, bool | np.bool_):
        raise OptionTypeError(f"{name} is {value}; it must be an integer")
    try:
        n = int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise OptionTypeError(f"{name} is {show(value)}; it must be an integer") from None
    if not lowest <= n <= highest:
        raise OptionError(f"{name} is {show(n)}; it must be from {lowest} to {highest}")
    return n


def number(name: str, value: object, lowest: float, highest: float) -> float:
    """Return a number of any type except bool as a finite float from `lowest` to `highest`."""
    if not is_integer(value) and not isinstance(value, float | np.floating):
        raise OptionTypeError(f"{name} is {show(value)}; it must be a number")
    try:
        x = float(value)  # type: ignore[arg-type]
    except OverflowError:
        x = math.inf
    if not lowest <= x <= highest:
        raise OptionError(
            f"{name} is {show(value)}; it must be finite and from {lowest:g} to {highest:g}"
        )
    return x


def items(name: str, value: object, what: str) -> list[Any]:
    """Return the items of a list, tuple, set or array; `what` names the items in messages."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | Set):
        raise OptionTypeError(f"{name} is {show(value)}; it must be a list of {what}")
    if len(value) > MAX_ITEMS:  # a range is small, but the list of its items may be huge
        raise OptionError(f"{name} has {len(value)} items; it may have at most {MAX_ITEMS}")
    return list(value)


def flag(name: str, value: object) -> bool:
    """Return True or False; nothing else is accepted."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} is {show(value)}; it must be True or False")
    return value


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return a string that is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(map(repr, choices))
        kind = OptionError if isinstance(value, str) else OptionTypeError
        raise kind(f"{name} is {show(value)}; it must be one of {allowed}")
    return value


def similar(name: str, names: Iterable[str]) -> str:
    """Return a "did you mean ...?" suffix for an unknown name; empty if no name is similar."""
    import difflib

    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def shows_options(
    options: type, defaults: Mapping[str, object]
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that makes help() and editors show the names of a method's ``**options``.

    `options` is the TypedDict of these options; `defaults` has the defaults that are not None.
    """

    def decorate(method: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(method)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, kind in options.__annotations__.items():
            named.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults.get(name),
                    annotation=getattr(kind, "__forward_arg__", kind),
                )
            )
        method.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return method

    return decorate
