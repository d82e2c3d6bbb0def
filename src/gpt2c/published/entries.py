"""Typed access to the entries of a TOML file; errors name the file and the entry."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import read_whole, show, show_list
from gpt2c.errors import OptionError

_MAX_BYTES: Final = 2**20


class Entries:
    """The entries of a table of a TOML file.

    Each method returns an entry's checked value, or the default if there is none; without a default
    the entry must be there. They raise OptionError.
    """

    def __init__(self, entries: dict[str, Any], where: str) -> None:
        """`where` begins the messages."""
        self._entries, self.where = entries, where

    def __contains__(self, name: str) -> bool:
        """Return whether there is such an entry."""
        return name in self._entries

    def items(self) -> list[tuple[str, Any]]:
        """Return the names and values, unchecked."""
        return list(self._entries.items())

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        return str(self._get(name, default, lambda value: isinstance(value, str), "a text"))

    def texts(self, name: str, default: Iterable[str] | None = None) -> list[str]:
        """Return a list of texts."""
        return list(self._get(name, default, _is_texts, "a list of texts"))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return true or false."""
        return bool(self._get(name, default, lambda x: isinstance(x, bool), "true or false"))

    def integer(self, name: str, lowest: int, default: int | None = None) -> int:
        """Return an integer of at least `lowest`."""
        expected = f"an integer of at least {lowest}"
        return int(self._get(name, default, lambda x: type(x) is int and x >= lowest, expected))

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        return float(self._get(name, default, _is_number, "a number"))

    def numbers(self, name: str) -> list[float]:
        """Return a list of numbers."""

        def is_numbers(value: Any) -> bool:
            return isinstance(value, list) and all(map(_is_number, value))

        return [float(x) for x in self._get(name, None, is_numbers, "a list of numbers")]

    def ids(self, name: str) -> list[int]:
        """Return a list of token ids."""
        return list(self._get(name, None, _is_ids, "a list of token ids"))

    def rows(self, name: str) -> list[list[int]]:
        """Return a list of lists of token ids."""

        def is_rows(value: Any) -> bool:
            return isinstance(value, list) and all(map(_is_ids, value))

        return list(self._get(name, None, is_rows, "a list of lists of token ids"))

    def one_of(self, name: str, values: tuple[str, ...], default: str | None = None) -> Any:
        """Return one of the values."""
        expected = f"one of {', '.join(values)}"
        return self._get(name, default, lambda value: value in values, expected)

    def pairs(self, name: str) -> list[list[str]]:
        """Return a list of pairs of texts; by default an empty one."""

        def is_pairs(value: Any) -> bool:
            return isinstance(value, list) and all(_is_texts(x) and len(x) == 2 for x in value)

        return list(self._get(name, [], is_pairs, "a list of pairs of texts"))

    def words(self, name: str) -> dict[str, str]:
        """Return a table of words and their texts; of a list of words, each is its own text."""

        def is_words(value: Any) -> bool:
            if isinstance(value, dict):
                value = [*value, *value.values()]
            return _is_texts(value) and all(word and word.split() == [word] for word in value)

        expected = "a list of words, or a table of words and their texts"
        value = self._get(name, {}, is_words, expected)
        return dict(value) if isinstance(value, dict) else {word: word for word in value}

    def table(self, name: str) -> Entries:
        """Return a table; by default an empty one."""
        value = self._get(name, {}, lambda value: isinstance(value, dict), "a table")
        return Entries(value, f"{self.where} [{name}]")

    def tables(self, name: str) -> list[Entries]:
        """Return a list of tables; by default an empty one."""

        def is_tables(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(x, dict) for x in value)

        value = self._get(name, [], is_tables, "a list of tables")
        return [Entries(x, f"{self.where} {name} {n}") for n, x in enumerate(value, start=1)]

    def check_names(self, known: Iterable[str]) -> None:
        """Raise OptionError if there is an entry with another name."""
        if unknown := sorted(self._entries.keys() - set(known)):
            raise OptionError(
                f"{self.where}: found the unknown {show_list(unknown)}; expected "
                f"{', '.join(sorted(known))}"
            )

    def _get(self, name: str, default: Any, is_right: Callable[[Any], bool], expected: str) -> Any:
        value = self._entries.get(name, default)
        if value is None:
            raise OptionError(f"{self.where}: {name} is missing; it must be {expected}")
        if name in self._entries and not is_right(value):
            raise OptionError(f"{self.where}: {name} is {show(value)}; it must be {expected}")
        return value


def read_toml(path: Path) -> Entries:
    """Return the entries of a TOML file.

    Raises CheckpointNotFoundError if there is none; OptionError; and OptionTypeError.
    """
    raw = read_whole(path, limit=_MAX_BYTES, error=OptionError)
    try:
        return Entries(tomllib.loads(raw.decode("utf-8")), str(path))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as reason:
        raise OptionError(f"{path}: is not a TOML file: {reason}") from None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(id) is int and id >= 0 for id in value)
