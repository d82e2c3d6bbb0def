"""Checks of names, which need no NumPy: the command's parser uses them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return a string that is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(map(repr, choices))
        error = OptionError if isinstance(value, str) else OptionTypeError
        raise error(f"{name} is {show(value)}; it must be one of {allowed}")
    return value


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a "did you mean ...?" suffix for an unknown name; empty if no name is similar."""
    import difflib

    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def file_name(name: str, path: object) -> str:
    """Return a path as a str. Raises OptionTypeError, or OptionError if no file can have it."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise OptionTypeError(f"{name} is {show(path)}; it must be a str or a Path")
    text: str = os.fspath(path)
    if not text or "\0" in text:
        raise OptionError(f"{name} is {show(path)}; it must name a file")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise OptionError(f"{name} is {show(path)}; it must name a file: {error}") from None
    return text
