"""The formats of texts and tables, and how a file name or an option chooses one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gpt2c.checks.names import choice
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError
from gpt2c.tables.compressed import without_suffix

TABLE_FORMATS: Final = ("csv", "tsv", "jsonl", "parquet")
TEXT_FORMATS: Final = ("txt", *TABLE_FORMATS)

_SUFFIXES: Final = MappingProxyType(
    {
        ".csv": "csv",
        ".tsv": "tsv",
        ".tab": "tsv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".parquet": "parquet",
        ".txt": "txt",
    }
)
_SPREADSHEETS: Final = (".xlsx", ".xlsm", ".xls", ".ods")


@dataclass(frozen=True)
class Layout:
    """How a file holds its table, so that a result can be written in the same form.

    format
        "txt", "csv", "tsv", "jsonl" or "parquet".
    delimiter, has_byte_order_mark, line_end
        Of CSV and TSV: the character between cells; whether the file begins with the byte order
        mark that Excel writes; what ends a row.
    """

    format: str
    delimiter: str = ","
    has_byte_order_mark: bool = False
    line_end: str = "\n"


def format_of_suffix(path: str) -> str | None:
    """Return the format that a file name's suffix names, or None; .gz and .zst do not count.

    Raises OptionError for a spreadsheet, which would otherwise be read as plain text.
    """
    suffix = os.path.splitext(without_suffix(path))[1].lower()
    if suffix in _SPREADSHEETS:
        raise OptionError(
            f"{path} is a spreadsheet, which gpt2c neither reads nor writes; use CSV (in Excel: "
            '"CSV UTF-8")'
        )
    return _SUFFIXES.get(suffix)


def table_format(path: str, format: str | None, option: str = "format") -> str:
    """Return a table's format: `format`, or what the suffix of the path names.

    Raises OptionError if neither names one; `option` is the option's name for the message.
    """
    if format is not None:
        return choice(option, format, TABLE_FORMATS)
    found = format_of_suffix(path)
    if found is None or found == "txt":
        raise OptionError(
            f"the name {path} does not say the table's format; expected a name that ends in .csv, "
            f".tsv, .jsonl, .ndjson or .parquet, or the option {option}"
        )
    return found


def check_delimiter(delimiter: str | None) -> str | None:
    r"""Return the delimiter; the word "tab" and the two characters ``\t`` name a tab.

    Raises OptionError unless it is one character that can separate cells.
    """
    if delimiter in ("tab", "\\t"):
        return "\t"
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0\ufeff '):
        raise OptionError(
            f"delimiter is {show(delimiter)}; it must be one character, for example , or ; or tab"
        )
    return delimiter
