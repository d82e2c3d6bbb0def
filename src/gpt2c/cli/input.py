"""Read texts and prompts from files and standard input.

Every text is read as ``open(path, encoding="utf-8-sig")`` reads it: as UTF-8, without a byte order
mark at the beginning, and with LF in place of CRLF and CR. The same bytes therefore give the same
texts on every system, from a file or a pipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO, Final, NoReturn, TypeAlias

from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import OptionError

INPUT_HELP: Final = (
    "\nText is read as UTF-8; a byte order mark at the beginning is dropped, and\n"
    "CRLF, CR and LF all end a line."
)
JSON_LINES_SUFFIXES: Final = (".jsonl", ".ndjson")

_BOM: Final = "\ufeff"
_UTF_16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")

TextOrIds: TypeAlias = "str | list[int]"


def open_input(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a file for reading bytes; "-" is standard input, which stays open afterwards.

    Raises OSError, and OptionError if standard input is closed.
    """
    if path != "-":
        return open(path, "rb")
    if sys.stdin is None:
        raise OptionError("standard input is closed; give the name of a file")
    return nullcontext(sys.stdin.buffer)


def input_name(path: str) -> str:
    """Return the input's name for messages."""
    return "standard input" if path == "-" else path


def read_text(file: BinaryIO, name: str) -> str:
    """Read all of a file as one text. Raises OptionError, naming `name`, if it is not UTF-8."""
    raw = file.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _raise_not_utf8(raw, error.start, name)
    return _with_plain_line_ends(text.removeprefix(_BOM))


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield each line's name for messages, and the line without its end, lazily.

    Raises OptionError at a line that is not UTF-8, after yielding the lines before it.
    """
    offset, number = 0, 0
    for raw in file:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            _raise_not_utf8(raw, error.start, name, n_lines=number, offset=offset)
        text = text if offset else text.removeprefix(_BOM)
        offset += len(raw)
        if not text:  # the file is only a byte order mark
            return
        # `text` has several lines if a lone CR ends a line, as in files of the classic Mac OS.
        for line in _with_plain_line_ends(text).removesuffix("\n").split("\n"):
            number += 1
            yield f"{name}, line {number}", line


def read_items(
    file: BinaryIO, name: str, *, is_json: bool, key: str
) -> Iterator[tuple[str, TextOrIds]]:
    """Yield each line's name for messages, and its text or ids; skip blank lines.

    If `is_json`, each line is a JSON string, a list of ids, or an object with `key` or "ids".
    Raises OptionError if a line is anything else or is not UTF-8.
    """
    for line_name, line in read_lines(file, name):
        if line.strip():
            yield line_name, _parse_json_line(line, line_name, key) if is_json else line


def is_json_lines(options: argparse.Namespace) -> bool:
    """Return whether the file is JSON lines, according to --jsonl or the suffix of its name."""
    return bool(options.jsonl) or options.file.lower().endswith(JSON_LINES_SUFFIXES)


def read_prompts(options: argparse.Namespace) -> list[tuple[str, TextOrIds]]:
    """Read the prompts of ``gpt2c generate``, each with its name for messages.

    They come from --file, from the arguments, or from standard input, which is one prompt without
    its final line end. Raises OptionError or OSError.
    """
    if options.file is not None:
        if options.prompt:
            raise OptionError("prompts are given both as arguments and with --file")
        with open_input(options.file) as file:
            name = input_name(options.file)
            return list(read_items(file, name, is_json=is_json_lines(options), key="prompt"))
    if options.jsonl:
        raise OptionError("--jsonl needs --file; to read standard input, give --file -")
    if options.prompt:
        return [(f"prompt {n}", prompt) for n, prompt in enumerate(options.prompt, start=1)]
    if sys.stdin is None or sys.stdin.isatty():
        return [("the empty prompt", "")]
    name = input_name("-")
    return [(name, read_text(sys.stdin.buffer, name).removesuffix("\n"))]


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _raise_not_utf8(
    raw: bytes, start: int, name: str, n_lines: int = 0, offset: int = 0
) -> NoReturn:
    """Raise OptionError for raw[start:], which is not UTF-8.

    `n_lines` lines and `offset` bytes of the file precede `raw`.
    """
    number = n_lines + _with_plain_line_ends(raw[:start].decode()).count("\n") + 1
    hint = "; it seems to be UTF-16" if offset == 0 and raw.startswith(_UTF_16_BOMS) else ""
    raise OptionError(
        f"{name}, line {number} is not UTF-8 at byte {offset + start} of the input: found "
        f"0x{raw[start]:02x}{hint}; save it as UTF-8"
    ) from None


def _parse_json_line(line: str, name: str, key: str) -> TextOrIds:
    try:
        value = parse_json(line.strip().removeprefix(_BOM).encode())
    except ValueError as error:
        raise OptionError(f"{name} {error}") from None
    if isinstance(value, dict):
        items = [value[k] for k in (key, "ids") if k in value]
        if len(items) != 1:
            raise OptionError(
                f'{name}: expected an object with "{key}" or "ids", found {show(value)}'
            )
        (value,) = items
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(id) is int for id in value):
        return value
    raise OptionError(f"{name}: expected a text or a list of ids, found {show(value)}")
