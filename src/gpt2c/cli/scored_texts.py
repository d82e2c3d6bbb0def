"""Read and score texts, for ``gpt2c score`` and ``gpt2c perplexity``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpt2c.cli.options import (
    Commands,
    add_special_tokens_option,
    add_stride_option,
    load_model,
)
from gpt2c.cli.table_options import (
    INPUT_HELP,
    TEXTS_HELP,
    add_input_options,
    add_lines_option,
    add_output_options,
    names_output,
    open_input_texts,
    with_progress,
    with_results,
)
from gpt2c.tables import Cell, Columns, Item, TextOrIds, Texts

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
        "null for a number that is undefined or infinite, or a table (--format). Short texts are "
        f"scored in batches, so several lines can appear at the same time.{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=run, top_logprobs=0)
    add = parser.add_argument
    add("file", metavar="FILE", help=TEXTS_HELP)
    add_lines_option(parser)
    add_input_options(parser)
    add_output_options(parser)
    add("--bos", action="store_true", help="score the first token too, after the BOS token")
    add_special_tokens_option(parser)
    add_stride_option(parser)
    return parser


@contextmanager
def scored_texts(
    options: argparse.Namespace,
) -> Iterator[tuple[GPT2, Texts, Iterator[tuple[Item, Score]]]]:
    """Provide the model, the input and its texts with their scores; close the model at exit.

    The iterator reads and scores texts lazily. Raises OptionError, TableError, OSError, and the
    errors of from_pretrained and GPT2.score.
    """
    with (
        open_input_texts(options, options.file, lines=options.lines) as texts,
        load_model(options) as model,
    ):
        yield model, texts, _scored(model, texts, options)


def columns_before(texts: Texts, options: argparse.Namespace) -> Columns:
    """Return the input's columns, which come before a result's own; else "text_id".

    There are none if JSON objects are printed for texts that are not from a table, as by default.
    """
    if texts.layout.format in ("txt", "jsonl") and not names_output(options):
        return {}
    return texts.types or {"text_id": int}


def cells_before(columns: Columns, item: Item, number: int) -> dict[str, Cell]:
    """Return the cells of an input's row that come before its result; `number` counts the texts."""
    if not columns:
        return {}
    return {"text_id": number} if item.row is None else dict(item.row)


def _scored(model: GPT2, texts: Texts, options: argparse.Namespace) -> Iterator[tuple[Item, Score]]:
    def score(read: Iterator[TextOrIds]) -> Iterator[Score]:
        scores = model.score(
            read, bos=options.bos, special_tokens=options.special_tokens, stride=options.stride,
            top_logprobs=options.top_logprobs,
        )  # fmt: skip
        return with_progress(scores, texts.extent, options)

    return with_results(texts, lambda item: item.text, score)
