"""What ``gpt2c score`` and ``gpt2c perplexity`` share: files of texts in, lines of JSON out."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from gpt2c.cli.input import (
    READING,
    Item,
    input_name,
    is_json_lines,
    open_input,
    read_items,
    read_text,
)
from gpt2c.cli.options import Commands, load
from gpt2c.measure.scores import Score
from gpt2c.model import GPT2


def add_scoring_command(
    commands: Commands, name: str, does: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Adds a command that scores texts to argparse's subparsers."""
    parser = commands.add_parser(
        name, help=f"tell a text's {does}", allow_abbrev=False,
        description=f"Reads texts and prints {does}, one JSON object a line for each; null "
        "stands for what is no number. Short texts run together, so lines come some at a time."
        f"{READING}",
    )  # fmt: skip
    parser.set_defaults(run=run, top_logprobs=0)
    add = parser.add_argument
    add("file", metavar="FILE", help="a file that is one text as a whole; or JSON lines "
        "(.jsonl, .ndjson): texts, lists of ids, or objects with \"text\" or \"ids\"; "
        "- is standard input")  # fmt: skip
    add("--lines", action="store_true", help="each line that is not blank is a text")
    add("--jsonl", action="store_true", help="FILE is JSON lines, whatever its name")
    add("--bos", action="store_true", help="score the first token too, after the BOS token")
    add("--special-tokens", action="store_true", help="encode special tokens in a text, such "
        "as <|endoftext|>, each as one token, not as plain characters")  # fmt: skip
    add("--stride", type=int, metavar="N", help="how far apart windows begin in which a text "
        "longer than the context is scored; default: half of the context")  # fmt: skip
    return parser


@contextmanager
def scored_texts(
    options: argparse.Namespace,
) -> Iterator[tuple[GPT2, Iterator[tuple[Item, Score]]]]:
    """Gives the model, and the texts with their scores."""
    with open_input(options.file) as file, load(options) as model:
        yield model, _scored(model, file, options)


def print_line(found: dict[str, Any]) -> None:
    """Prints what a command found of one text."""
    print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)


def _scored(
    model: GPT2, file: BinaryIO, options: argparse.Namespace
) -> Iterator[tuple[Item, Score]]:
    asked: deque[Item] = deque()

    def texts() -> Iterator[Item]:
        for text in _texts(file, options):
            asked.append(text)
            yield text

    for score in model.score(
        texts(), bos=options.bos, special_tokens=options.special_tokens, stride=options.stride,
        top_logprobs=options.top_logprobs,
    ):  # fmt: skip
        yield asked.popleft(), score


def _texts(file: BinaryIO, options: argparse.Namespace) -> Iterator[Item]:
    name, is_json = input_name(options.file), is_json_lines(options)
    if not is_json and not options.lines:
        yield read_text(file, name)
        return
    for _, item in read_items(file, name, is_json=is_json, key="text"):
        yield item
