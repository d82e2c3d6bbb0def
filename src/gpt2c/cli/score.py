"""``gpt2c score``: print each token's log-probability, rank and entropy."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from gpt2c.cli.options import Commands, add_model_options
from gpt2c.cli.scored_texts import (
    add_scoring_command,
    cells_before,
    columns_before,
    scored_texts,
)
from gpt2c.cli.table_options import model_metadata, names_output, open_output, output_format
from gpt2c.errors import OptionError
from gpt2c.tables import Cell, Columns, Item, TextOrIds, Texts, with_added

if TYPE_CHECKING:
    from gpt2c.measure.scores import Score
    from gpt2c.model import GPT2


# The keys of an object, and the columns of a table with a row for each token.
_FIELDS: Final = (
    "tokens", "ids", "logprobs", "ranks", "entropies", "top_ids", "top_logprobs", "total",
    "perplexity", "top_tokens",
)  # fmt: skip
_TOKEN_COLUMNS: Final[Columns] = MappingProxyType(
    {
        "token_index": int,
        "token": str,
        "id": int,
        "logprob": float,
        "rank": int,
        "entropy": float,
    }
)


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    results = "each token's log-probability, rank and entropy"
    parser = add_scoring_command(commands, "score", results, _run)
    add = parser.add_argument
    add("--top-logprobs", type=int, metavar="N", default=0, help="also print the N most likely "
        "tokens at each position")  # fmt: skip
    add("--color", action="store_true", help="print the text instead, each token in the colour of "
        "its rank: green for the top 10, yellow for the top 100, red for the top 1000, purple for "
        "the rest. If standard output is not a terminal or NO_COLOR is set, brackets replace the "
        "colours; FORCE_COLOR=1 keeps them, for example for a pipe to less -R")  # fmt: skip
    add("--html", metavar="PAGE", help="write the coloured text to a self-contained HTML file "
        "instead; tooltips show each token's numbers, and with --top-logprobs the most likely "
        "tokens")  # fmt: skip
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    is_colored = options.color or options.html is not None
    if is_colored and names_output(options):
        raise OptionError(
            "--color and --html do not write a table; leave out --output and --format"
        )
    with scored_texts(options) as (model, texts, scored):
        if is_colored:
            _show_colored(model, (score for _, score in scored), options)
        elif output_format(options) == "jsonl":
            _write_objects(model, texts, scored, options)
        else:
            _write_tokens(model, texts, scored, options)


def _write_objects(
    model: GPT2, texts: Texts, scored: Iterator[tuple[Item, Score]], options: argparse.Namespace
) -> None:
    """Write an object for each text."""
    before = {k: v for k, v in columns_before(texts, options).items() if k != "ids"}
    columns = with_added(texts.name, before, dict.fromkeys(_FIELDS))
    metadata = model_metadata(model, options)
    with open_output(options, columns, metadata=metadata, keeps_rows=bool(texts.types)) as output:
        for number, (item, score) in enumerate(scored, start=1):
            fields = _score_fields(model, item.text, score)
            output.write({**cells_before(before, item, number), **fields})


def _write_tokens(
    model: GPT2, texts: Texts, scored: Iterator[tuple[Item, Score]], options: argparse.Namespace
) -> None:
    """Write a row for each token: the columns of its text's row without the text, and its own."""
    left_out = {options.column, "ids"}
    before = {k: v for k, v in columns_before(texts, options).items() if k not in left_out}
    own = dict(_TOKEN_COLUMNS)
    if options.top_logprobs:
        own |= {"top_ids": list, "top_logprobs": None}
    columns = with_added(texts.name, {"text_id": int, **before}, own)
    metadata = model_metadata(model, options)
    with open_output(options, columns, like=texts.layout, metadata=metadata) as output:
        for number, (item, score) in enumerate(scored, start=1):
            cells = cells_before(before, item, number)
            cells = {"text_id": number, **{k: v for k, v in cells.items() if k not in left_out}}
            for row in _token_rows(model, item.text, score):
                output.write({**cells, **row})


def _token_rows(model: GPT2, text_or_ids: TextOrIds, score: Score) -> Iterator[dict[str, Cell]]:
    """Yield a row for each token; cells that are undefined are left out."""
    fields = _score_fields(model, text_or_ids, score)
    names = {"tokens": "token", "ids": "id", "logprobs": "logprob", "entropies": "entropy",
             "ranks": "rank", "top_ids": "top_ids", "top_logprobs": "top_logprobs"}  # fmt: skip
    for index in range(len(score.ids)):
        row = {names[key]: values[index] for key, values in fields.items() if key in names}
        if not row["rank"]:
            del row["rank"]
        yield {"token_index": index + 1, **row}


def _show_colored(model: GPT2, scores: Iterator[Score], options: argparse.Namespace) -> None:
    """Print the coloured texts, write the page, or both."""
    from gpt2c.coloring import html_page, save_html

    if options.color:
        scores = _print_each(model, scores)
    if options.html is None:
        deque(scores, maxlen=0)  # run the iterator to its end
        return
    name = options.model or "tales"
    title = "Standard input" if options.file == "-" else os.path.basename(options.file)
    save_html(options.html, html_page(scores, model.tokenizer, title=title, model=name))


def _print_each(model: GPT2, scores: Iterator[Score]) -> Iterator[Score]:
    """Yield the scores, and print the coloured text of each."""
    from gpt2c.coloring import terminal_text, wants_color

    color = wants_color(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for index, score in enumerate(scores):
        text = terminal_text(score, model.tokenizer, color=color, width=width)
        print(f"\n{text}" if index else text, flush=True)
        yield score


def _score_fields(model: GPT2, text_or_ids: TextOrIds, score: Score) -> dict[str, Any]:
    """Return the JSON fields of a score; for a text, also its tokens as strings."""
    from gpt2c.measure.scores import json_fields

    result = json_fields(score)
    if isinstance(text_or_ids, str):
        result = {"tokens": [model.tokenizer.decode([id]) for id in score.ids], **result}
        if score.top_ids.shape[1]:
            result["top_tokens"] = [
                [model.tokenizer.decode([id]) for id in ids if id >= 0] for ids in score.top_ids
            ]
    return result
