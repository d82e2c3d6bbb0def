"""Fields of JSON requests: tables that say what each field is, and the check of a body by one.

A body that is not strict JSON, an unknown field, and a value that cannot be honoured are errors
that name what is wrong. JSON's null means that a field is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from gpt2c.checks.options import did_you_mean, integer, items, number
from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits

# (name, value, limits) -> the checked value. Raises OptionError or OptionTypeError.
Check: TypeAlias = Callable[[str, Any, Limits], Any]

# A text, or token ids.
TextOrIds: TypeAlias = str | list[int]

MODEL_NAME: Final = 200  # the max length of a model's name


@dataclass(frozen=True)
class Field:
    """A field: its name, how values are checked, and what docs/server.md says about it.

    If it is an option of GPT2.complete, `option` is gpt2c's name for it.
    """

    name: str
    check: Check
    values: str  # the type and the range
    default: Any
    what: str
    option: str | None = None


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse a body, which must be a JSON object. Raises RequestError (400)."""
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise RequestError(400, f"the body {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise RequestError(400, f"the body is a JSON {kind}; it must be an object")
    return value


def check_fields(
    given: Mapping[str, Any],
    table: Sequence[Field],
    limits: Limits,
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the checked value of each field of the table, its default if it is not given.

    `refused` has fields that cannot be honoured, each with the reason; they may be null. Raises
    RequestError (400) whose `param` is the field.
    """
    by_name = {field.name: field for field in table}
    for name, value in given.items():
        if name in by_name or (refused and name in refused and value is None):
            continue
        if refused and name in refused:
            message = f"{name} is not supported: {refused[name]}"
            raise RequestError(400, message, param=name, code="unsupported_field")
        shown = show(name)
        raise RequestError(
            400, f"unknown field {shown}{did_you_mean(name, by_name)}",
            param=name[:100], code="unknown_field",
        )  # fmt: skip
    found = {}
    for field in table:
        value = given.get(field.name)
        try:
            found[field.name] = (
                field.default if value is None else field.check(field.name, value, limits)
            )
        except (OptionError, OptionTypeError) as error:
            raise RequestError(400, str(error), param=field.name) from None
    return found


# ---- checks of single values ----


def whole(lowest: int, highest: int) -> Check:
    """Return the check of an integer."""
    return lambda name, value, _: integer(name, value, lowest, highest)


def real(lowest: float, highest: float) -> Check:
    """Return the check of a number."""
    return lambda name, value, _: number(name, value, lowest, highest)


def limited(lowest: int, limit: str) -> Check:
    """Return the check of an integer of at most the limit of this name."""
    return lambda name, value, limits: integer(name, value, lowest, getattr(limits, limit))


def boolean(name: str, value: Any, _: Limits) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} is {show(value)}; it must be true or false")
    return value


def text(name: str, value: Any, highest: int) -> str:
    """Check a string of at most `highest` characters without unpaired surrogates."""
    if not isinstance(value, str):
        raise OptionTypeError(f"{name} is {show(value)}; it must be a string")
    if len(value) > highest:
        raise OptionError(f"{name} has {len(value)} characters; it may have at most {highest}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise OptionError(f"{name} has an unpaired surrogate: {show(value)}") from None
    return value


def short_text(name: str, value: Any, _: Limits) -> str:
    """Check a short string, such as a model's name."""
    return text(name, value, MODEL_NAME)


def one_of(*choices: str) -> Check:
    """Return the check of a string that is one of `choices`."""

    def check(name: str, value: Any, _: Limits) -> str:
        if not isinstance(value, str) or value not in choices:
            allowed = ", ".join(f'"{choice}"' for choice in choices)
            raise OptionError(f"{name} is {show(value)}; it must be one of {allowed}")
        return value

    return check


def few(name: str, value: Any, limit: int, what: str) -> list[Any]:
    """Check a list of at most `limit` items, which are not checked."""
    found = items(name, value, what)
    if len(found) > limit:
        raise OptionError(f"{name} has {len(found)} items; it may have at most {limit}")
    return found


def id_list(name: str, value: Any, limits: Limits) -> list[int]:
    """Check a list of token ids; whether the vocabulary has them is checked later."""
    ids = few(name, value, limits.max_items, "token ids")
    return [integer(f"an id in {name}", id, 0, 2**31 - 1) for id in ids]


def texts_or_ids(name: str, value: Any, limits: Limits) -> list[TextOrIds]:
    """Check a text, a list of ids, or a list of either; return a list of texts or of lists.

    The four shapes of OpenAI's prompt. An empty list is an error, as it may mean either.
    """
    if isinstance(value, str):
        return [text(name, value, limits.max_prompt_chars)]
    if not isinstance(value, list):
        raise OptionTypeError(
            f"{name} is {show(value)}; it must be a string, a list of strings, a list of token "
            "ids, or a list of lists of token ids"
        )
    if not value:
        raise OptionError(f"{name} is an empty list; pass [[]] or a string for an empty text")
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return [_ids(name, value)]
    few(name, value, limits.max_prompts, "texts")
    if kinds == {str}:
        return [text(f"{name}[{i}]", v, limits.max_prompt_chars) for i, v in enumerate(value)]
    if kinds == {list}:
        return [_ids(f"{name}[{i}]", v) for i, v in enumerate(value)]
    raise OptionTypeError(
        f"{name} is a list that holds {_kinds(kinds)}; its items must be all strings, all token "
        "ids, or all lists of token ids"
    )


def _ids(name: str, value: list[Any]) -> list[int]:
    if value and {type(item) for item in value} != {int}:
        wrong = next(item for item in value if type(item) is not int)
        raise OptionTypeError(f"{name} has {show(wrong)}; it must hold token ids")
    return value


def _kinds(kinds: set[type]) -> str:
    names = {int: "ids", str: "strings", list: "lists", bool: "booleans", float: "numbers"}
    return " and ".join(sorted(names.get(kind, kind.__name__) for kind in kinds))
