"""``gpt2c choose``: print the probabilities of given continuations of prompts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from gpt2c.cli.options import (
    Commands,
    add_model_options,
    add_special_tokens_option,
    load_model,
)
from gpt2c.cli.table_options import (
    INPUT_HELP,
    add_input_options,
    add_output_options,
    model_metadata,
    open_input_texts,
    open_output,
    with_progress,
)
from gpt2c.errors import Error, OptionError, TableError
from gpt2c.tables import Cell, Columns, Item, TextOrIds, with_added
from gpt2c.tables.formats import TABLE_FORMATS, format_of_suffix

if TYPE_CHECKING:
    from gpt2c.generate.prompts import Prompt
    from gpt2c.measure.choices import Choices
    from gpt2c.model import GPT2

_COLUMNS: Final[Columns] = {
    "choice_index": int,
    "choice": None,
    "n_tokens": int,
    "logprob": float,
    "probability": float,
    "is_best": bool,
}
_MAX_PROMPTS: Final = 64  # that are scored together


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "choose", help="print the probabilities of given continuations", allow_abbrev=False,
        description="Prints how likely each choice is after each prompt: a row for each choice "
        "with its log-probability, in nats, its probability among the choices, and whether it is "
        "the most likely one. The space between a prompt and a choice must be at the beginning of "
        "the choice or at the end of the prompt; --sep ' ' adds it where there is none."
        f"{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("prompt", nargs="*", help="texts to continue; or give --file")
    add("--file", metavar="FILE", help="read prompts from the lines of FILE, or from a table "
        "(.csv, .tsv, .parquet) or JSON lines; - is standard input")  # fmt: skip
    add_input_options(parser, column="prompt")
    add("--choice", action="append", metavar="TEXT", help="a choice for all prompts; give it once "
        "for each choice")  # fmt: skip
    add("--choice-columns", nargs="+", metavar="NAME", help="the columns of the table, or keys in "
        "JSON lines, that have each prompt's choices; empty cells are left out")  # fmt: skip
    add("--sep", metavar="TEXT", default="", help="what to put between a prompt and a choice, "
        "unless there is white space already, for example a space; default: nothing")  # fmt: skip
    add("--neutral", metavar="PROMPT", help="divide each probability by the one after this prompt "
        "without content, for example \"Answer:\"")  # fmt: skip
    add("--ends", action="store_true", help="include the end of every choice, not only of those "
        "that begin another choice")  # fmt: skip
    add("--bos", action="store_true", help="put the BOS token before each prompt")
    add_special_tokens_option(parser)
    add_output_options(parser)
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    _check(options)
    with ExitStack() as stack:
        types: Columns = {"text_id": int, "prompt": str}
        before: Mapping[str, Cell]
        extent = like = None
        if options.file is None:
            items = iter([Item(f"prompt {n}", p) for n, p in enumerate(options.prompt, start=1)])
        else:
            named = options.input_format or format_of_suffix(options.file)
            texts = stack.enter_context(
                open_input_texts(options, options.file, lines=named not in TABLE_FORMATS)
            )
            types = texts.types or {"text_id": int, "prompt": None}
            items, extent, like = iter(texts), texts.extent, texts.layout
        own = dict(_COLUMNS)
        if options.neutral is not None:
            own["neutral_logprob"] = float
        columns = with_added(options.file or "the result", types, own)
        model = stack.enter_context(load_model(options))
        results = _chosen(model, items, options)
        if extent is not None:
            results = with_progress(results, extent, options)
        metadata = model_metadata(model, options)
        output = stack.enter_context(open_output(options, columns, like=like, metadata=metadata))
        for number, (item, found) in enumerate(results, start=1):
            before = (
                {"text_id": number, "prompt": _cell(item.text)} if item.row is None else item.row
            )
            for row in _rows(found):
                output.write({**before, **row})


def _check(options: argparse.Namespace) -> None:
    """Raise OptionError for options that contradict each other or are missing."""
    if bool(options.prompt) == (options.file is not None):
        raise OptionError("give prompts as arguments, or a file with --file")
    if (options.choice is None) == (options.choice_columns is None):
        raise OptionError("give the choices with --choice, or their columns with --choice-columns")
    if options.choice_columns is not None and options.file is None:
        raise OptionError("--choice-columns needs a table; name it with --file")


def _chosen(
    model: GPT2, items: Iterator[Item], options: argparse.Namespace
) -> Iterator[tuple[Item, Choices]]:
    while batch := list(islice(items, _MAX_PROMPTS)):
        # An input may have texts and ids, which only the call itself can tell apart.
        prompts: Any = [item.text for item in batch]
        choices: Any = [_choices_of(item, options) for item in batch]
        try:
            found: list[Choices] = model.choose(
                prompts, choices, neutral=options.neutral, ends=options.ends,
                bos=options.bos, special_tokens=options.special_tokens,
            )  # fmt: skip
        except Error as error:
            raise _naming(error, batch) from None
        yield from zip(batch, found, strict=True)


def _choices_of(item: Item, options: argparse.Namespace) -> list[TextOrIds]:
    if options.choice is not None:
        return [_joined(item.text, choice, options.sep) for choice in options.choice]
    if item.row is None:
        raise OptionError(f"--choice-columns: {item.place} is not a row of a table")
    found: list[TextOrIds] = []
    for column in options.choice_columns:
        if column not in item.row:
            raise TableError(f"{item.place}: found no column {column}, which has choices")
        if item.row[column] not in ("", None):
            found.append(_joined(item.text, item.row.text(column), options.sep))
    if not found:
        raise TableError(f"{item.place}: all columns of choices are empty")
    return found


def _joined(prompt: TextOrIds, choice: str, separator: str) -> str:
    """Return the choice with the separator before it, unless it touches white space already."""
    from gpt2c.measure.words import join_text

    if not separator or not isinstance(prompt, str):
        return separator + choice
    return join_text(choice, separator, prompt)[0].removeprefix(prompt)


def _naming(error: Error, batch: list[Item]) -> Error:
    """Return the error with the place of the prompt in the input instead of its index."""
    message = str(error)
    index = re.match(r"prompt (\d+)\b", message)
    if index is None:
        return error
    return type(error)(batch[int(index[1])].place + message[index.end() :])


def _cell(prompt: Prompt) -> Cell:
    return prompt if isinstance(prompt, str) else [int(id) for id in prompt]


def _rows(found: Choices) -> Iterator[dict[str, Cell]]:
    for index, choice in enumerate(found.choices):
        row: dict[str, Cell] = {
            "choice_index": index + 1,
            "choice": _cell(choice),
            "n_tokens": int(found.n_tokens[index]),
            "logprob": float(found.logprobs[index]),
            "probability": float(found.probabilities[index]),
            "is_best": index == found.best_index,
        }
        if found.neutral_logprobs is not None:
            row["neutral_logprob"] = float(found.neutral_logprobs[index])
        yield row
