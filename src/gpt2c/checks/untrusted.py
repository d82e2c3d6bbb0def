"""Open untrusted files and parse untrusted JSON.

``json.loads`` alone is too lenient for untrusted files: it keeps the last of two equal keys,
accepts NaN as a number, and limits nesting only by the interpreter's stack.

There are two parsers. The strict parser, :func:`parse_json`, raises an error for such a value. The
lenient parser, :func:`parse_json_leniently`, replaces it with an :class:`Unusable`: code that needs
the value rejects its type, and a value that no code needs does no harm.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from gpt2c.errors import CheckpointNotFoundError, Error, OptionTypeError
from gpt2c.files import long_path

# The max nesting of JSON; a configuration needs about four levels. The nesting is checked before
# parsing, because the JSON scanner may overflow the stack in a program that has raised Python's
# recursion limit.
MAX_DEPTH = 32

# Matches a string or one bracket. It also matches an unclosed string, so that a search takes linear
# time.
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


class Unusable:
    """Replaces a JSON value that the strict parser rejects, such as a number of 31 digits."""

    def __init__(self, text: str) -> None:
        """`text` shows the value in messages."""
        self._text = text

    def __repr__(self) -> str:
        """The value as messages show it."""
        return self._text

    @property
    def is_huge(self) -> bool:
        """Whether the value is a positive integer of 21 to 60 digits."""
        return self._text.isascii() and self._text.isdigit()


def show(value: object, limit: int = 120) -> str:
    """Return ``repr(value)`` for a message, cut to `limit` characters.

    `show` never raises, so making a message about a bad value cannot fail.
    """
    try:
        text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
    except Exception:  # integers of over 4,300 digits, deep nesting, a __repr__ that raises
        return f"a {type(value).__name__} that cannot be shown"
    if "\n" in text:  # of arrays and frames; a message is one line
        text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def show_list(names: Sequence[str], limit: int = 8) -> str:
    """Return the first `limit` names for a message, with "and N more" if the list is longer."""
    text = ", ".join(show(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


# Without O_NONBLOCK, opening a named pipe would wait for a writer. Without O_BINARY, Windows would
# change line ends. Python itself keeps child processes from inheriting the file.
_READ_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, error: type[Error]) -> io.FileIO:
    """Open a regular file for reading, unbuffered; links are followed.

    Raises CheckpointNotFoundError if the file does not exist, OptionTypeError if `path` is not a
    path, and `error` if the file cannot be opened or is a folder, a pipe or a device.
    """
    try:
        path = Path(os.fspath(path))  # FileIO would use an int as an open descriptor and close it
    except TypeError:
        raise OptionTypeError(f"a path is {show(path)}; it must be a str or a Path") from None
    try:
        file = io.FileIO(long_path(path), opener=lambda name, _: os.open(name, _READ_FLAGS))
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path}: there is no such file") from None
    except OSError as reason:
        raise error(f"{path}: cannot be opened: {reason.strerror}") from reason
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise error(f"{path}: found a pipe or a device, expected a regular file")
    return file


def read_whole(path: Path, *, limit: int, error: type[Error]) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises CheckpointNotFoundError, `error` or OptionTypeError; the message names the file.
    """
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path}: found {size} bytes, expected at most {limit}")
        try:
            return file.read(limit + 1) or b""
        except OSError as reason:
            raise error(f"{path}: cannot be read: {reason.strerror}") from reason


def read_json_object(
    path: Path, *, limit: int, error: type[Error], strict: bool = False
) -> dict[str, Any]:
    """Read a whole JSON file of at most `limit` bytes, whose top level must be an object.

    `strict` selects the parser: :func:`parse_json` or :func:`parse_json_leniently`.

    Raises CheckpointNotFoundError, `error` or OptionTypeError; the message names the file.
    """
    raw = read_whole(path, limit=limit, error=error)
    try:
        value = parse_json(raw) if strict else parse_json_leniently(raw)
    except ValueError as reason:
        raise error(f"{path}: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value


def parse_json(raw: bytes) -> Any:
    """Parse UTF-8 JSON strictly.

    Raises ValueError for invalid UTF-8 or JSON, duplicate keys, NaN and infinities, numbers beyond
    float64, integers of more than 20 characters, "-0", an unpaired surrogate in a key or its value,
    and more than MAX_DEPTH levels. The message has no subject; the caller puts the file's name
    before it.
    """
    text = _decoded(raw)
    if _without_deep_values(text) is not text:  # it has replaced a value
        raise ValueError(f"is JSON nested more than {MAX_DEPTH} levels deep")
    return _loads(text, _strict_object, _strict_integer, _strict_number, _reject_constant)


def parse_json_leniently(raw: bytes) -> Any:
    """Parse UTF-8 JSON; values that :func:`parse_json` rejects become Unusable.

    Raises ValueError for invalid UTF-8 or JSON; the caller puts the file's name before the message.
    """
    text = _without_deep_values(_decoded(raw))
    return _loads(
        text, _lenient_object, _leniently(_strict_integer), _leniently(_strict_number), Unusable
    )


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise ValueError(f"is not UTF-8 at byte {reason.start}") from None


def _loads(
    text: str,
    make_object: Callable[[list[tuple[str, Any]]], Any],
    parse_integer: Callable[[str], Any],
    parse_number: Callable[[str], Any],
    parse_constant: Callable[[str], Any],
) -> Any:
    try:
        return json.loads(
            text,
            object_pairs_hook=make_object,
            parse_int=parse_integer,
            parse_float=parse_number,
            parse_constant=parse_constant,
        )
    except json.JSONDecodeError as reason:
        raise ValueError(f"is not JSON: {reason}") from None
    except RecursionError:  # the caller had nearly exhausted the stack
        raise ValueError("is JSON nested too deeply") from None


def _strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"has the key {show(key)} twice")
        # A lone "\ud800" is valid JSON but not valid Unicode: printing it would fail.
        for text in (key, value):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError:
                    raise ValueError(f"has an unpaired surrogate in {show(text)}") from None
        result[key] = value
    return result


def _strict_integer(digits: str) -> int:
    # A million digits would take minutes to convert; other parsers read "-0" as a float.
    if len(digits) > 20 or digits == "-0":
        raise ValueError(f"has the number {show(digits)}, which is not a 64-bit integer")
    return int(digits)


def _strict_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"has the number {show(digits)}, which is beyond float64")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"has {name}, which is not JSON")


def _without_deep_values(text: str) -> str:
    """Replace each value nested deeper than MAX_DEPTH with NaN.

    Without such a value, return `text` itself, not a copy.
    """
    kept: list[str] = []
    depth = begin = 0
    for match in _BRACKETS.finditer(text):
        bracket = text[match.start()]
        if bracket in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += text[begin : match.start()], "NaN"
                begin = len(text)  # drop the rest, unless a bracket below closes the value
        elif bracket in "]}":
            depth -= 1
            if depth == MAX_DEPTH:
                begin = match.end()
    return "".join([*kept, text[begin:]]) if kept else text


# ---- lenient parsing ----


def _lenient_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        checked = _without_surrogates(value)
        if key in result and not _is_same(result[key], checked):
            checked = Unusable(f"two values, {show(result[key], 40)} and {show(checked, 40)}")
        result[key] = checked
    return result


def _without_surrogates(value: Any) -> Any:
    """Replace a string with an unpaired surrogate by an Unusable; also such items of a list."""
    if isinstance(value, list):
        return [_without_surrogates(item) if isinstance(item, str) else item for item in value]
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return Unusable(show(value))
    return value


def _is_same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and bool(first == second)


def _leniently(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that calls `parse`, and returns an Unusable where `parse` raises."""

    def parse_or_replace(digits: str) -> Any:
        try:
            return parse(digits)
        except ValueError:
            return Unusable(digits if len(digits) <= 60 else f"a number of {len(digits)} digits")

    return parse_or_replace
