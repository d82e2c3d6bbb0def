"""Read and score texts, for ``gpt2c score`` and ``gpt2c perplexity``."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from gpt2c.cli.input import (
    INPUT_HELP,
    TextOrIds,
    input_name,
    is_json_lines,
    open_input,
    read_items,
    read_text,
)
from gpt2c.cli.options import Commands, load_model

if TYPE_CHECKING:
    from gpt2c.measure.scores import Score
    from gpt2c.model import GPT2


def add_scoring_command(
    commands: Commands, name: str, results: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add the parser of a command that scores texts; `results` says what the command prints."""
    parser = commands.add_parser(
        name, help=f"print {results}", allow_abbrev=False,
        description=f"Reads texts and prints {results}: one JSON object per text and line, with "
        "null for a number that is undefined or infinite. Short texts are scored in batches, so "
        f"several lines can appear at the same time.{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=run, top_logprobs=0)
    add = parser.add_argument
    add("file", metavar="FILE", help="a file with one text; or JSON lines (.jsonl, .ndjson), "
        "each a text, a list of ids, or an object with \"text\" or \"ids\". "
        "- is standard input")  # fmt: skip
    add("--lines", action="store_true", help="each line is a text; blank lines are skipped")
    add("--jsonl", action="store_true", help="FILE is JSON lines, whatever its name")
    add("--bos", action="store_true", help="score the first token too, after the BOS token")
    add("--special-tokens", action="store_true", help="encode special tokens in a text, for "
        "example <|endoftext|>, as one token each instead of plain characters")  # fmt: skip
    add("--stride", type=int, metavar="N", help="score a text longer than the context in windows "
        "that begin N tokens apart; default: half of the context")  # fmt: skip
    return parser


@contextmanager
def scored_texts(
    options: argparse.Namespace,
) -> Iterator[tuple[GPT2, Iterator[tuple[TextOrIds, Score]]]]:
    """Provide the model and an iterator over the texts with their scores; close the model at exit.

    The iterator reads and scores texts lazily. Raises OptionError, OSError, and the errors of
    from_pretrained and GPT2.score.
    """
    with open_input(options.file) as file, load_model(options) as model:
        yield model, _scored(model, file, options)


def print_line(result: dict[str, Any]) -> None:
    """Print one text's result as a line of JSON."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False), flush=True)


def _scored(
    model: GPT2, file: BinaryIO, options: argparse.Namespace
) -> Iterator[tuple[TextOrIds, Score]]:
    waiting: deque[TextOrIds] = deque()  # texts that were read, but whose scores are not yet known

    def texts() -> Iterator[TextOrIds]:
        for text_or_ids in _read_texts(file, options):
            waiting.append(text_or_ids)
            yield text_or_ids

    for score in model.score(
        texts(), bos=options.bos, special_tokens=options.special_tokens, stride=options.stride,
        top_logprobs=options.top_logprobs,
    ):  # fmt: skip
        yield waiting.popleft(), score


def _read_texts(file: BinaryIO, options: argparse.Namespace) -> Iterator[TextOrIds]:
    name, is_json = input_name(options.file), is_json_lines(options)
    if not is_json and not options.lines:
        yield read_text(file, name)
        return
    for _, text_or_ids in read_items(file, name, is_json=is_json, key="text"):
        yield text_or_ids
