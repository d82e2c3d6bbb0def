"""Checks of single option values.

`integer`, `number`, `items`, `flag` and `choice` return the checked value. They raise
OptionTypeError for a wrong type and OptionError for a wrong value; the message names the option,
its value and the valid values.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np

from gpt2c.checks.names import choice as choice
from gpt2c.checks.names import did_you_mean as did_you_mean
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError

MAX_ITEMS: Final = 2**24  # the max length of a list option
INT32_MAX: Final = 2**31 - 1  # the engine's counts are int32
INT64_MAX: Final = 2**63 - 1

_P = ParamSpec("_P")
_R = TypeVar("_R")


def is_integer(value: object) -> bool:
    """Return whether this is an int or a NumPy integer; bool and np.timedelta64 do not count."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def integer(name: str, value: object, lowest: int, highest: int) -> int:
    """Return an integer as an int from `lowest` to `highest`; accept any integer type but bool."""
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
    """Return an int or float, Python's or NumPy's, as a finite float in [lowest, highest]."""
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
    """Return the items of a sequence, set or array as a list; `what` names them in messages.

    The items are not checked. A str is not accepted.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | Set):
        raise OptionTypeError(f"{name} is {show(value)}; it must be a list of {what}")
    if len(value) > MAX_ITEMS:  # check first: a huge range is small, but not the list of its items
        raise OptionError(f"{name} has {len(value)} items; it may have at most {MAX_ITEMS}")
    return list(value)


def flag(name: str, value: object) -> bool:
    """Return True or False; nothing else is accepted."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} is {show(value)}; it must be True or False")
    return value


def shows_options(
    options: type, defaults: Mapping[str, object]
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that makes help() and editors show the names of a method's ``**options``.

    `options` is the TypedDict of these options. `defaults` has their defaults; an option that it
    lacks defaults to None.
    """

    def decorate(method: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(method)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, annotation in options.__annotations__.items():
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults.get(name),
                    annotation=getattr(annotation, "__forward_arg__", annotation),
                )
            )
        method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return method

    return decorate
