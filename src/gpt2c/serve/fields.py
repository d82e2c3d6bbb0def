"""Fields of JSON requests: tables that say what each field is, and the check of a body by one.

A body that is not strict JSON, an unknown field, and a value that cannot be honoured are errors
that name what is wrong. JSON's null means that a field is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from gpt2c.checks.options import INT32_MAX, did_you_mean, integer, items, number
from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits

# A JSON schema, of the dialect of OpenAPI 3.1.
Schema: TypeAlias = dict[str, Any]

# A text, or token ids.
TextOrIds: TypeAlias = str | list[int]

MODEL_NAME: Final = 200  # the max length of a model's name


@dataclass(frozen=True)
class Check:
    """The check of a value, and the JSON schema that accepts the same values.

    run
        (name, value, limits) -> the checked value. Raises OptionError or OptionTypeError.
    """

    run: Callable[[str, Any, Limits], Any]
    schema: Callable[[Limits], Schema]

    def __call__(self, name: str, value: Any, limits: Limits) -> Any:
        """Return the checked value."""
        return self.run(name, value, limits)


def checks(
    schema: Callable[[Limits], Schema],
) -> Callable[[Callable[[str, Any, Limits], Any]], Check]:
    """Make a function a Check that has this schema."""
    return lambda run: Check(run, schema)


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


@dataclass(frozen=True)
class Body:
    """The fields of a JSON object.

    refused
        Fields that cannot be honoured, each with the reason; they may be null.
    """

    fields: tuple[Field, ...]
    required: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def check(self, given: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
        """Return the checked value of each field, its default if it is not given.

        Raises RequestError (400) whose `param` is the field.
        """
        self._check_names(given)
        found = {}
        for f in self.fields:
            value = given.get(f.name)
            try:
                found[f.name] = f.default if value is None else f.check(f.name, value, limits)
            except (OptionError, OptionTypeError) as error:
                raise RequestError(400, str(error), param=f.name) from None
        for name in self.required:
            if found[name] is None:
                raise RequestError(400, f"{name} is missing", param=name)
        return found

    def _check_names(self, given: Mapping[str, Any]) -> None:
        known = {f.name for f in self.fields}
        for name, value in given.items():
            if name in known or (name in self.refused and value is None):
                continue
            if name in self.refused:
                message = f"{name} is not supported: {self.refused[name]}"
                raise RequestError(400, message, param=name, code="unsupported_field")
            names = [f.name for f in self.fields]
            raise RequestError(
                400, f"unknown field {show(name)}{did_you_mean(name, names)}",
                param=name[:100], code="unknown_field",
            )  # fmt: skip

    def schema(self, limits: Limits) -> Schema:
        """Return the schema of the objects that `check` accepts."""
        properties = {f.name: self._field_schema(f, limits) for f in self.fields}
        for name, reason in self.refused.items():
            properties[name] = {"type": "null", "description": f"not supported: {reason}"}
        schema = {"type": "object", "additionalProperties": False, "properties": properties}
        return {**schema, "required": [*self.required]} if self.required else schema

    def _field_schema(self, field: Field, limits: Limits) -> Schema:
        schema = field.check.schema(limits)
        if field.name not in self.required:
            schema = {"anyOf": [schema, {"type": "null"}]}
        if field.default not in (None, ()):
            schema["default"] = field.default
        return {"description": field.what, **schema}


# ---- schemas ----


def texts_schema(highest: Callable[[Limits], int], longest: Callable[[Limits], int]) -> Any:
    """Return the schema of a list of strings that are not empty."""
    return lambda limits: {
        "type": "array",
        "maxItems": highest(limits),
        "items": {"type": "string", "minLength": 1, "maxLength": longest(limits)},
    }


ID_SCHEMA: Final = {"type": "integer", "minimum": 0, "maximum": INT32_MAX}


def _texts_or_ids_schema(limits: Limits) -> Schema:
    text = {"type": "string", "maxLength": limits.max_prompt_chars}
    ids = {"type": "array", "items": ID_SCHEMA}
    several = {"type": "array", "minItems": 1, "maxItems": limits.max_prompts}
    return {
        "anyOf": [
            text, {**several, "items": text}, {**ids, "minItems": 1}, {**several, "items": ids},
        ]
    }  # fmt: skip


# ---- checks of single values ----


def whole(lowest: int, highest: int) -> Check:
    """Return the check of an integer."""
    return Check(
        lambda name, value, _: integer(name, value, lowest, highest),
        lambda _: {"type": "integer", "minimum": lowest, "maximum": highest},
    )


def real(lowest: float, highest: float) -> Check:
    """Return the check of a number."""
    return Check(
        lambda name, value, _: number(name, value, lowest, highest),
        lambda _: {"type": "number", "minimum": lowest, "maximum": highest},
    )


def limited(lowest: int, limit: str) -> Check:
    """Return the check of an integer of at most the limit of this name."""
    return Check(
        lambda name, value, limits: integer(name, value, lowest, getattr(limits, limit)),
        lambda limits: {"type": "integer", "minimum": lowest, "maximum": getattr(limits, limit)},
    )


@checks(lambda _: {"type": "boolean"})
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


@checks(lambda _: {"type": "string", "maxLength": MODEL_NAME})
def short_text(name: str, value: Any, _: Limits) -> str:
    """Check a short string, such as a model's name."""
    return text(name, value, MODEL_NAME)


def one_of(*choices: str) -> Check:
    """Return the check of a string that is one of `choices`."""

    @checks(lambda _: {"type": "string", "enum": [*choices]})
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


@checks(lambda limits: {"type": "array", "maxItems": limits.max_items, "items": ID_SCHEMA})
def id_list(name: str, value: Any, limits: Limits) -> list[int]:
    """Check a list of token ids; whether the vocabulary has them is checked later."""
    ids = few(name, value, limits.max_items, "token ids")
    return [integer(f"an id in {name}", id, 0, INT32_MAX) for id in ids]


@checks(_texts_or_ids_schema)
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
    if value and not (min(value) >= 0 and max(value) <= INT32_MAX):
        wrong = next(id for id in value if not 0 <= id <= INT32_MAX)
        raise OptionError(f"{name} has {show(wrong)}; ids are from 0 to {INT32_MAX}")
    return value


def _kinds(kinds: set[type]) -> str:
    names = {int: "ids", str: "strings", list: "lists", bool: "booleans", float: "numbers"}
    return " and ".join(sorted(names.get(kind, kind.__name__) for kind in kinds))
