"""``gpt2c score``: print each token's log-probability, rank and entropy."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpt2c.cli.input import TextOrIds
from gpt2c.cli.options import Commands, add_model_options
from gpt2c.cli.scored_texts import add_scoring_command, print_line, scored_texts

if TYPE_CHECKING:
    from gpt2c.measure.scores import Score
    from gpt2c.model import GPT2


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
    with scored_texts(options) as (model, scored):
        if options.color or options.html is not None:
            _show_colored(model, (score for _, score in scored), options)
            return
        for text_or_ids, score in scored:
            print_line(_score_fields(model, text_or_ids, score))


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
