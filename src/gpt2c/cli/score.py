"""``gpt2c score`` and ``gpt2c perplexity``: files of texts in, lines of JSON out."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from gpt2c.coloring import html_page, save_html, terminal_text, wants_color
from gpt2c.measure.scores import Score, as_json
from gpt2c.model import GPT2


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
            "stands for what is no number. Short texts run together, so lines come some at a time."
            f"{READING}",
        )  # fmt: skip
        parser.set_defaults(run=lambda options, line=run: _run(options, load, line))
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
        parser.set_defaults(color=False, html=None, top_logprobs=0)
        parsers.append(parser)
    _add_shows(parsers[0].add_argument)
    return parsers


def _add_shows(add: Callable[..., Any]) -> None:
    """What ``gpt2c score`` can tell besides numbers, and in their place."""
    add("--top-logprobs", type=int, metavar="N", default=0, help="tell the N likeliest tokens in "
        "each one's place, too")  # fmt: skip
    add("--color", action="store_true", help="print the text instead, each token in the colour of "
        "its rank: green for the top 10, yellow for the top 100, red for the top 1000, purple for "
        "the rest. In brackets where standard output is no terminal or NO_COLOR is set; "
        "FORCE_COLOR=1 keeps the colours, as for a pipe to less -R")  # fmt: skip
    add("--html", metavar="PAGE", help="write the same as an HTML file, which needs no other; "
        "its tooltips have each token's numbers, and the likeliest if --top-logprobs is "
        "given")  # fmt: skip


def _run(
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace], GPT2],
    line: Callable[[GPT2, Item, Score], dict[str, Any]],
) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(open_input(options.file))
        model = stack.enter_context(load(options))
        scored = _scored(model, file, options)
        if options.color or options.html is not None:
            _show(model, (score for _, score in scored), options)
            return
        for text, score in scored:
            found = line(model, text, score)
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


def _show(model: GPT2, scores: Iterator[Score], options: argparse.Namespace) -> None:
    """Prints the texts coloured, writes the page, or both."""
    if options.color:
        scores = _printed(model, scores)
    if options.html is None:
        deque(scores, maxlen=0)
        return
    name = options.model or "tales"
    title = "Standard input" if options.file == "-" else os.path.basename(options.file)
    save_html(options.html, html_page(scores, model.tokenizer, title=title, model=name))


def _printed(model: GPT2, scores: Iterator[Score]) -> Iterator[Score]:
    color = wants_color(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for index, score in enumerate(scores):
        text = terminal_text(score, model.tokenizer, color=color, width=width)
        print(f"\n{text}" if index else text, flush=True)
        yield score


def _texts(file: BinaryIO, options: argparse.Namespace) -> Iterator[Item]:
    name, is_json = input_name(options.file), is_json_lines(options)
    if not is_json and not options.lines:
        yield read_text(file, name)
        return
    for _, item in read_items(file, name, is_json=is_json, key="text"):
        yield item


def _score_line(model: GPT2, text: Item, score: Score) -> dict[str, Any]:
    result = as_json(score)
    if isinstance(text, str):
        result = {"tokens": [model.tokenizer.decode([id]) for id in score.ids], **result}
        if score.top_ids.shape[1]:
            result["top_tokens"] = [
                [model.tokenizer.decode([id]) for id in ids if id >= 0] for ids in score.top_ids
            ]
    return result


def _perplexity_line(model: GPT2, text: Item, score: Score) -> dict[str, Any]:
    n_bytes = 0
    if isinstance(text, str):
        # Tokens that the tokenizer puts after a text are not among its bytes.
        is_text = score.ranks > 0
        is_text[len(is_text) - len(model.tokenizer.suffix_ids) :] = False
        n_bytes = len(model.tokenizer.decode_bytes(score.ids[is_text]))
    bits = -score.total / math.log(2)
    numbers = as_json(score)
    return {
        "tokens": len(score.ids),
        "scored": score.n_scored,
        "total": numbers["total"],
        "perplexity": numbers["perplexity"],
        "bits_per_byte": bits / n_bytes if n_bytes and math.isfinite(bits) else None,
    }
