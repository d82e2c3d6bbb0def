"""``gpt2c score`` and ``gpt2c perplexity``: files of texts in, lines of JSON out."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeAlias

from gpt2c.errors import OptionError
from gpt2c.model import GPT2
from gpt2c.scoring import Score, as_json
from gpt2c.untrusted import parse_json, show

_JSON_LINES: Final = (".jsonl", ".ndjson")

_Text: TypeAlias = "str | list[int]"


def add_commands(commands: Any, load: Callable[[argparse.Namespace], GPT2]) -> list[Any]:
    """Adds both to argparse's subparsers; returns their parsers."""
    parsers = []
    for name, run, does in (
        ("score", _score_line, "each token's log-probability, rank and entropy"),
        ("perplexity", _perplexity_line, "perplexity, and bits per byte"),
    ):
        parser = commands.add_parser(
            name, help=f"tell a text's {does}", allow_abbrev=False,
            description=f"Reads texts and prints {does}, one JSON object a line for each; null "
            "stands for what is no number. Short texts run together, so lines come some at a time.",
        )  # fmt: skip
        parser.set_defaults(run=lambda options, line=run: _run(options, load, line))
        add = parser.add_argument
        add("file", metavar="FILE", help="a UTF-8 text, one text in all; or JSON lines "
            "(.jsonl, .ndjson): texts, lists of ids, or objects with \"text\" or \"ids\"; "
            "- is standard input")  # fmt: skip
        add("--lines", action="store_true", help="each line that is not blank is a text")
        add("--jsonl", action="store_true", help="FILE is JSON lines, whatever its name")
        add("--bos", action="store_true", help="score the first token too, after end-of-text")
        add("--stride", type=int, metavar="N", help="how far apart windows begin in which a text "
            "longer than the context is scored; default: half of the context")  # fmt: skip
        parsers.append(parser)
    return parsers


def _run(
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace], GPT2],
    line: Callable[[GPT2, _Text, Score], dict[str, Any]],
) -> None:
    if options.file == "-":
        _print_lines(options, load, line, sys.stdin.buffer)
        return
    with open(options.file, "rb") as file:
        _print_lines(options, load, line, file)


def _print_lines(
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace], GPT2],
    line: Callable[[GPT2, _Text, Score], dict[str, Any]],
    file: BinaryIO,
) -> None:
    with load(options) as model:
        asked: deque[_Text] = deque()

        def texts() -> Iterator[_Text]:
            for text in _texts(file, options):
                asked.append(text)
                yield text

        for score in model.score(texts(), bos=options.bos, stride=options.stride):
            found = line(model, asked.popleft(), score)
            print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)


def _texts(file: BinaryIO, options: argparse.Namespace) -> Iterator[_Text]:
    is_json = options.jsonl or options.file.endswith(_JSON_LINES)
    if not is_json and not options.lines:
        yield _decoded(file.read(), options.file)
        return
    for number, raw in enumerate(file, start=1):
        place = f"{options.file}, line {number}"
        if not raw.strip():
            continue
        if is_json:
            yield _of_json(raw, place)
        else:
            yield _decoded(raw.rstrip(b"\r\n"), place, is_first=number == 1)


def _decoded(raw: bytes, place: str, is_first: bool = True) -> str:
    try:
        # A byte-order mark at a file's beginning is no part of the text.
        return raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{place}: is not UTF-8 at byte {error.start}") from None


def _of_json(raw: bytes, place: str) -> _Text:
    try:
        value = parse_json(raw.strip().removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise OptionError(f"{place} {error}") from None
    if isinstance(value, dict):
        found = [value[name] for name in ("text", "ids") if name in value]
        if len(found) != 1:
            raise OptionError(
                f'{place}: expected an object with "text" or "ids", found {show(value)}'
            )
        value = found[0]
    if isinstance(value, str) or (
        isinstance(value, list) and all(type(item) is int for item in value)
    ):
        return value
    raise OptionError(f"{place}: expected a text or a list of ids, found {show(value)}")


def _score_line(model: GPT2, text: _Text, score: Score) -> dict[str, Any]:
    result = as_json(score)
    if isinstance(text, str):
        result = {"tokens": [model.tokenizer.decode([id]) for id in score.ids], **result}
    return result


def _perplexity_line(model: GPT2, text: _Text, score: Score) -> dict[str, Any]:
    scored = score.ids[score.ranks > 0]
    n_bytes = len(model.tokenizer.decode_bytes(scored)) if isinstance(text, str) else 0
    bits = -score.total / math.log(2)
    numbers = as_json(score)
    return {
        "tokens": len(score.ids),
        "scored": score.n_scored,
        "total": numbers["total"],
        "perplexity": numbers["perplexity"],
        "bits_per_byte": bits / n_bytes if n_bytes and math.isfinite(bits) else None,
    }
