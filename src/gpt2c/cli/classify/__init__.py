"""``gpt2c classify``: print the labels that a fine-tuned classifier gives to texts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from gpt2c.cli.options import (
    Commands,
    add_model_options,
    add_special_tokens_option,
    load_model,
)
from gpt2c.cli.scored_texts import cells_before, columns_before
from gpt2c.cli.table_options import (
    INPUT_HELP,
    TEXTS_HELP,
    add_input_options,
    add_lines_option,
    add_output_options,
    model_metadata,
    open_input_texts,
    open_output,
    with_progress,
    with_results,
)
from gpt2c.tables import Cell, Columns, Item, TextOrIds, Texts, with_added

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpt2c.measure.classifying import Classification, TokenClassification
    from gpt2c.model import GPT2
    from gpt2c.model.classifying import Classified

_TOKEN_COLUMNS: Final[Columns] = {"token_index": int, "token": str, "id": int}


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "classify", help="print the labels that a classifier gives to texts", allow_abbrev=False,
        description="Reads texts, and prints for each what a fine-tuned classifier says "
        "(GPT2ForSequenceClassification): its label, and each label's probability and logit. A "
        "classifier of tokens (GPT2ForTokenClassification) has a row for each token. The columns "
        f"follow those of the input's table.{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("file", metavar="FILE", help=TEXTS_HELP)
    add_lines_option(parser)
    add_input_options(parser)
    add_output_options(parser)
    add("--bos", action="store_true", help="put the BOS token before each text")
    add_special_tokens_option(parser)
    add("--truncation", action="store_true", help="classify the beginning of a text longer than "
        "the context; by default it is an error")  # fmt: skip
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    with (
        open_input_texts(options, options.file, lines=options.lines) as texts,
        load_model(options) as model,
    ):
        if not model.labels:
            model.classify("")  # raises an error that says what is missing

        def classify(read: Iterator[TextOrIds]) -> Iterator[Classified]:
            found = model.classify(
                read, bos=options.bos, special_tokens=options.special_tokens,
                truncation=options.truncation,
            )  # fmt: skip
            return with_progress(found, texts.extent, options)

        _write(model, texts, with_results(texts, lambda item: item.text, classify), options)


def _write(
    model: GPT2,
    texts: Texts,
    results: Iterator[tuple[Item, Classified]],
    options: argparse.Namespace,
) -> None:
    """Write a row for each text, or for each token of a text."""
    of_tokens = model.classifies_tokens
    left_out = {options.column, "ids"} if of_tokens else {"ids"}
    before = {k: v for k, v in columns_before(texts, options).items() if k not in left_out}
    if of_tokens:
        before = {"text_id": int, **before}
    names = _unique(model.labels)
    own: dict[str, type | None] = {**(_TOKEN_COLUMNS if of_tokens else {}), "label": str}
    own |= {f"{what}_{name}": float for what in ("probability", "logit") for name in names}
    columns = with_added(texts.name, before, own)
    metadata = model_metadata(model, options)
    keeps_rows = bool(texts.types) and not of_tokens
    with open_output(
        options, columns, like=texts.layout, metadata=metadata, keeps_rows=keeps_rows
    ) as output:
        for number, (item, found) in enumerate(results, start=1):
            cells = cells_before(before, item, number)
            cells = {k: v for k, v in cells.items() if k not in left_out}
            for row in _rows(model, found, names):
                output.write({**({"text_id": number} if of_tokens else {}), **cells, **row})


def _unique(labels: tuple[str, ...]) -> list[str]:
    """Return the labels as parts of columns' names; equal labels get their index."""
    if len(set(labels)) == len(labels):
        return list(labels)
    return [f"{label}_{index}" for index, label in enumerate(labels)]


def _rows(model: GPT2, found: Classified, names: list[str]) -> Iterator[dict[str, Cell]]:
    from gpt2c.measure.classifying import Classification

    if isinstance(found, Classification):
        yield _text_row(found, names)
    else:
        yield from _token_rows(model, found, names)


def _text_row(found: Classification, names: list[str]) -> dict[str, Cell]:
    row: dict[str, Cell] = {}
    if found.probabilities is not None:
        row |= {
            "label": ",".join(found.chosen),
            **_named("probability", names, found.probabilities),
        }
    return row | _named("logit", names, found.logits)


def _named(what: str, names: list[str], values: NDArray[Any]) -> dict[str, Cell]:
    return {f"{what}_{name}": value for name, value in zip(names, values.tolist(), strict=True)}


def _token_rows(
    model: GPT2, found: TokenClassification, names: list[str]
) -> Iterator[dict[str, Cell]]:
    from gpt2c.text.tokenizer import Tokenizer

    for index, id in enumerate(found.ids.tolist()):
        row: dict[str, Cell] = {"token_index": index + 1, "id": id, "label": found.chosen[index]}
        if isinstance(model.tokenizer, Tokenizer):
            row["token"] = model.tokenizer.decode([id])
        row |= _named("probability", names, found.probabilities[index])
        yield row | _named("logit", names, found.logits[index])
