"""Templates that make a prompt of a row's cells: "Question: {question}\\nAnswer:"."""

from __future__ import annotations

import json
import string
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, TableError
from gpt2c.tables import Cell

_HELP: Final = "write a column as {name}, and braces as {{ and }}"


class Template:
    """A text with columns in braces.

    It has the form of str.format, but a name in braces is a column's name and nothing else: no
    attribute or item of a cell can be named, and no conversion or format.

    columns
        The names of the columns, in the order of their first use.
    """

    def __init__(self, text: str) -> None:
        """Raises OptionError if the text is no template."""
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise OptionError(f"template is {show(text)}: {error}; {_HELP}") from None
        for _, name, format, conversion in parts:
            if name is not None and (not name or format or conversion):
                raise OptionError(
                    f"template is {show(text)}; it has braces without a plain name: {_HELP}"
                )
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.columns = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        if not self.columns:
            raise OptionError(f"template is {show(text)}; it names no column: {_HELP}")

    def fill(self, cells: dict[str, Cell]) -> str:
        """Return the text with the cells in place of their names.

        Numbers are written as in JSON, and lists and objects as JSON. Raises TableError for a cell
        that is missing or null.
        """
        pieces = []
        for literal, name in self._parts:
            pieces.append(literal)
            if name is not None:
                pieces.append(_text_of(name, cells))
        return "".join(pieces)


def _text_of(name: str, cells: dict[str, Cell]) -> str:
    cell = cells.get(name)
    if cell is None:
        raise TableError(f"found no column {show(name)}, or a null in it; the template needs it")
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
