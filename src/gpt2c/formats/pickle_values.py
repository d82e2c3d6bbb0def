"""The values that PickleReader returns: plain Python values, and records of all other objects.

A record keeps the name of a class or function from the file, the arguments of its call, and the
object's attributes and contents. The name is never imported or called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gpt2c.checks.untrusted import show

_MAX_PAIRS: Final = 100_000


class PickleError(ValueError):
    """A malformed or unsafe pickle; the caller puts the file's name before the message."""


class Global:
    """A class or function that the file names, such as "collections.OrderedDict"; not imported."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        """Keep the name, `path`: "module.name"."""
        self.path = path


class Record:
    """A placeholder for an object of an unknown class or for the result of an unknown function.

    `path` is the name of the class or function, and `arguments` are the arguments of the call.
    `state` holds the object's attributes. `entries` and `items` hold the dict entries and the list
    items that the pickle adds to the object (opcodes SETITEMS and APPENDS).
    """

    __slots__ = ("arguments", "entries", "items", "path", "problem", "state")

    def __init__(
        self, path: str, arguments: tuple[Any, ...] = (), problem: str | None = None
    ) -> None:
        """Begin without state or contents.

        `problem` says why an object of a known class cannot be used, as the end of a sentence about
        the file: "has a tensor ...".
        """
        self.path = path
        self.arguments = arguments
        self.problem = problem
        self.state: Any = None
        self.entries: dict[Any, Any] | None = None
        self.items: list[Any] | None = None


class OpaqueKey:
    """A dict key that is neither a string nor a small integer.

    It is compared by identity, because a file could choose many keys with equal hashes, which make
    a dict slow.
    """

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        """Keep `value`, the key in the file."""
        self.value = value


def describe(value: object) -> str:
    """Describe a value for a message, without a container's contents, which may be recursive."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return show(value)
    if isinstance(value, Record):
        return f"an object of {show(value.path)}"
    if isinstance(value, Global):
        return f"the global {show(value.path)}"
    if isinstance(value, OpaqueKey):
        return describe(value.value)
    return f"a {type(value).__name__}"


def entries_of(value: object) -> Mapping[Any, Any] | None:
    """Return the entries of a dict, or of an object derived from dict; None for other values."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Record):
        return None
    # Python 2 wrote an OrderedDict as a call with a list of pairs. Convert the list only once,
    # because a file may refer to the record any number of times.
    if value.entries is None and value.path == "collections.OrderedDict" and value.arguments:
        value.entries, value.arguments = _dict_from_pairs(value.arguments[0]), ()
    return value.entries


def _dict_from_pairs(pairs: object) -> dict[Any, Any] | None:
    if not isinstance(pairs, list) or len(pairs) > _MAX_PAIRS:
        return None
    result = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            return None
        result[pair[0]] = pair[1]
    return result


def _field_mappings(value: object) -> tuple[Mapping[Any, Any], ...]:
    """Return the mappings that hold a value's fields: entries, attributes, or OmegaConf's content.

    The mappings are not copied, because a file may refer to one value any number of times.
    """
    entries = entries_of(value)
    if entries:
        return (entries,)
    state = value.state if isinstance(value, Record) else None
    if isinstance(state, dict):
        content = state.get("_content")
        return (content,) if isinstance(content, dict) else (state,)
    # The state of a class with __slots__ is a pair: its __dict__ or None, and its slots.
    if isinstance(state, tuple) and len(state) == 2:
        return tuple(part for part in state if isinstance(part, dict))
    return ()


def has_fields(value: object, names: Iterable[str]) -> bool:
    """Return whether a configuration (see :func:`fields_of`) has all these fields."""
    mappings = _field_mappings(value)
    return all(any(name in mapping for mapping in mappings) for name in names)


def fields_of(value: object, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the fields of a configuration: a dict, an object, or an OmegaConf config.

    `names` selects fields; None means all. NumPy integers become int. The result is empty for any
    other kind of `value`.
    """
    found = {}
    for mapping in _field_mappings(value):
        for key in mapping if names is None else names:
            if isinstance(key, str) and key in mapping:
                found[key] = _unwrapped(mapping[key])
    return found


def _unwrapped(value: object) -> object:
    """Return the value in an OmegaConf node or a NumPy integer; any other value as it is."""
    if not isinstance(value, Record):
        return value
    if value.path.startswith("omegaconf.") and isinstance(value.state, dict):
        return value.state.get("_val", value)
    number = _numpy_integer(value)
    return value if number is None else number


def _numpy_integer(value: Record) -> int | None:
    """Return the value of a NumPy integer, stored as dtype and bytes; None for anything else."""
    if not value.path.endswith("core.multiarray.scalar") or len(value.arguments) != 2:
        return None
    dtype, raw = value.arguments
    # Before protocol 3, bytes are stored as a call that encodes a string.
    if isinstance(raw, Record) and raw.path == "_codecs.encode" and raw.arguments:
        string = raw.arguments[0]
        is_valid = (
            isinstance(string, str) and len(string) <= 8 and all(ord(c) < 256 for c in string)
        )
        raw = string.encode("latin-1") if is_valid else None
    kind = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else None
    if kind not in ("i4", "i8", "u4", "u8", "i2", "u2", "i1", "u1"):
        return None
    if not isinstance(raw, bytes) or len(raw) != int(kind[1]):
        return None
    return int.from_bytes(raw, "little", signed=kind[0] == "i")


def torch_module_class(value: object) -> str | None:
    """Return the path of the class of a pickled torch module; None for any other value."""
    if isinstance(value, Record) and has_fields(value, ("_modules", "_parameters")):
        return value.path
    return None
