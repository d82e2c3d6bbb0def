"""``gpt2c surprisal``: print the surprisal of each word."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import gpt2c
from gpt2c.checks.untrusted import show
from gpt2c.cli.options import (
    Commands,
    add_model_options,
    add_special_tokens_option,
    load_model,
)
from gpt2c.cli.surprisal.picture import Picture, open_picture
from gpt2c.cli.table_options import (
    INPUT_HELP,
    add_input_options,
    add_lines_option,
    add_output_options,
    input_format,
    open_input_texts,
    open_output,
    with_progress,
    writes_metadata,
)
from gpt2c.errors import OptionError, TableError
from gpt2c.tables import Cell, Columns, Item, Row, Texts, open_table, with_added
from gpt2c.tables.formats import table_format

if TYPE_CHECKING:
    from gpt2c.measure.word_table import Surprisals
    from gpt2c.model import GPT2

_EXAMPLES: Final = """examples:
  gpt2c surprisal stimuli.csv --column sentence --output words.csv
  gpt2c surprisal words.csv --by item --by condition --output with_surprisal.csv
  gpt2c surprisal stimuli.csv --column target --context-column prefix --whole
  gpt2c surprisal story.txt --correction pimentel --format tsv
  gpt2c surprisal contexts.txt --lines --next-tokens 10
"""
# Texts that are scored in one call: enough to fill passes and to share beginnings.
_PER_CALL: Final = 1000


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "surprisal", help="print the surprisal of each word", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EXAMPLES,
        description="Reads texts and prints a row for each word: its surprisal in bits, its\n"
        "tokens, and more. Words are separated by white space. If FILE is a table, the\n"
        f"rows begin with its columns. docs/surprisal.md defines all numbers.{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("file", metavar="FILE", help="a file with one text; or JSON lines (.jsonl, .ndjson), "
        "each a text or an object with \"text\"; or a table (.csv, .tsv, .parquet) with a column "
        "\"text\". - is standard input")  # fmt: skip
    add_lines_option(parser)
    add_input_options(parser)
    # With --by, the default is another one.
    parser.set_defaults(column=None)
    add("--by", metavar="NAME", action="append", default=[], help="FILE is a table with a word in "
        "each row, in the column \"word\" or the one that --column names. The words with the same "
        "values in the column NAME are one text. Repeat it for several columns. The result is the "
        "table with columns added")  # fmt: skip
    add("--whole", action="store_true", help="print a row for each text instead, with the "
        "surprisal of the text as a whole: the table's rows with columns added")  # fmt: skip
    add("--next-tokens", type=int, metavar="N", help="print the N most likely tokens before each "
        "word and after the text instead")  # fmt: skip
    add("--context", metavar="TEXT", help="a text to read before each text, and not to score")
    add_measuring_options(parser)
    add_output_options(parser, printed="that of a CSV or TSV FILE, else jsonl")
    add("--plot", metavar="PICTURE", help="also draw the surprisal of each word, for up to 3000 "
        "words: a .png, .svg or .pdf file (needs matplotlib)")  # fmt: skip
    add("--other", metavar="MODEL", help="compare with the surprisals of this model in the picture "
        "of --plot")  # fmt: skip
    add("--only", metavar="NAMES", help="the columns to add, separated by commas; default: all, "
        "or with --by and --whole those with numbers")  # fmt: skip
    add_model_options(parser)


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to measure; measuring_arguments returns their values."""
    add = parser.add_argument
    add("--context-column", metavar="NAME", help="the column with such a text for each row")
    add("--sep", metavar="TEXT", default=" ", help="what stands between words of --by, and between "
        "a context and its text; default: a space")  # fmt: skip
    add("--apart", metavar="REGEX", help="make each match in a word a word of its own: "
        r"'^\W+|\W+$' sets punctuation at its ends apart")  # fmt: skip
    add("--ignore", metavar="REGEX", help="do not count a token that matches as a whole, for "
        r"example '\W+' for punctuation")  # fmt: skip
    add("--correction", choices=("none", "pimentel", "oh_schuler"), default="none",
        help="also print surprisals with the correction of Pimentel and Meister 2024 or of Oh and "
        "Schuler 2024")  # fmt: skip
    add("--nats", action="store_true", help="print nats instead of bits")
    add("--no-bos", action="store_true", help="read no BOS token before a text; its first word "
        "then has no surprisal")  # fmt: skip
    add("--entropy-reduction", action="store_true", help="also print the entropy before a word "
        "minus that after it")  # fmt: skip
    add("--renyi", metavar="ORDER", type=float, action="append", default=[], help="also print the "
        "Renyi entropy of this order before each word; may be repeated")  # fmt: skip
    add_special_tokens_option(parser)
    add("--stride", type=int, metavar="N", help="read a text longer than the context in windows "
        "that begin N tokens apart; default: half of the context")  # fmt: skip


def _run(options: argparse.Namespace) -> None:
    if options.by:
        for name in ("lines", "whole", "apart"):
            if getattr(options, name):
                raise OptionError(f"--{name} is given with --by, whose words and texts are fixed")
    if options.whole and (options.apart is not None or options.next_tokens):
        raise OptionError("--whole is given with --apart or --next-tokens; leave one out")
    if options.context is not None and options.context_column is not None:
        raise OptionError("--context and --context-column are both given; leave one out")
    if options.next_tokens is not None and options.next_tokens < 1:
        raise OptionError(f"--next-tokens is {options.next_tokens}; it must be from 1 to 128")
    with open_picture(options) as picture:
        if options.by:
            _run_on_words(options, picture)
        else:
            options.column = options.column or "text"
            _run_on_texts(options, picture)


def measuring_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of gpt2c.surprisal that the options of add_measuring_options give."""
    return {
        "sep": options.sep,
        "apart": options.apart,
        "ignore": options.ignore,
        "correction": options.correction,
        "bos": not options.no_bos,
        "unit": "nats" if options.nats else "bits",
        "entropy_reduction": options.entropy_reduction,
        "renyi_orders": options.renyi,
        "stride": options.stride,
        "special_tokens": options.special_tokens,
    }


def _measured(
    model: GPT2, texts: list[str], options: argparse.Namespace, **more: Any
) -> Surprisals:
    next_tokens = options.next_tokens or 0
    return gpt2c.surprisal(
        model, texts, next_tokens=next_tokens, **measuring_arguments(options), **more
    )


def _of_both(
    found: Surprisals,
    picture: Picture,
    texts: list[str],
    options: argparse.Namespace,
    **more: Any,
) -> list[Surprisals]:
    """Return what was found, and what the picture's other model finds, if there is one."""
    if picture.other is None:
        return [found]
    return [found, _measured(picture.other, texts, options, **more)]


def _metadata(found: Surprisals, options: argparse.Namespace) -> dict[str, str]:
    """Return the metadata of the table, with the hash of the weights, if it will be written."""
    if not writes_metadata(options):
        return {}
    named = {"model": options.model or "tales", **found.metadata}
    return named if options.context is None else {**named, "context": options.context}


# ---- a column of words ----


def _run_on_words(options: argparse.Namespace, picture: Picture | None) -> None:
    """Add columns to a table with a word in each row."""
    column = options.column or "word"
    format = table_format(options.file, input_format(options), "--input-format")
    with open_table(options.file, format=format, delimiter=options.delimiter) as table:
        used = [column, *options.by, *([options.context_column] if options.context_column else [])]
        table.require(*used)
        rows = list(table)
    words = [_text_of(row, column, can_be_blank=False) for row in rows]
    groups = [tuple(_group_of(row[name]) for name in options.by) for row in rows]
    context = options.context
    if options.context_column:
        context = [_text_of(row, options.context_column) for row in rows]
    with load_model(options) as model:
        found = _measured(model, words, options, by=groups, context=context)
        if picture is not None:
            founds = _of_both(found, picture, words, options, by=groups, context=context)
            picture.add(founds, len(set(groups)))
        metadata = _metadata(found, options)
        if options.next_tokens:
            before = {"text_id": str}
            _write_next_tokens(found, before, table.name, metadata, options)
            return
        added = _chosen(found.column_types(with_words=False), found.column_types(), options)
        columns = with_added(table.name, table.types, added)
        _default_format(table.layout.format, options)
        with open_output(
            options, columns, like=table.layout, metadata=metadata, keeps_rows=True
        ) as output:
            for row, cells in zip(rows, found.rows(), strict=True):
                output.write({**row, **{name: cells[name] for name in added}})


def _text_of(row: Row, column: str, *, can_be_blank: bool = True) -> str:
    text = row.text(column)
    if not can_be_blank and not text.strip():
        raise TableError(f"{row.place}: column {show(column)} is blank; expected a word")
    return text


def _group_of(cell: Cell) -> str | int | float | bool | None:
    """Return a cell as a value that can name a group."""
    return cell if not isinstance(cell, list | dict) else repr(cell)


# ---- texts ----


@dataclass
class _Input:
    """A text of the input, its context, and the cells that begin its rows."""

    text: str
    context: str
    cells: dict[str, Cell]


def _run_on_texts(options: argparse.Namespace, picture: Picture | None) -> None:
    with (
        open_input_texts(options, options.file, lines=options.lines) as texts,
        load_model(options) as model,
    ):
        before: Columns = texts.types or {"text_id": int}
        if options.context_column is not None and options.context_column not in before:
            raise TableError(
                f"{texts.name}: found no column {show(options.context_column)} for --context-column"
            )
        # The types and the metadata do not depend on the texts.
        empty = _measured(model, [], options)
        metadata = _metadata(empty, options)
        if texts.types:
            _default_format(texts.layout.format, options)
        results = _results(model, texts, picture, options)
        if options.next_tokens:
            added: Columns = empty.next_token_types()
        elif options.whole:
            added = _chosen(empty.column_types(with_words=False), empty.column_types(), options)
        else:
            added = _chosen(empty.column_types(), empty.column_types(), options)
        columns = with_added(texts.name, before, added)
        keeps_rows = options.whole and bool(texts.types)
        with open_output(
            options, columns, like=texts.layout, metadata=metadata, keeps_rows=keeps_rows
        ) as output:
            for cells, rows in with_progress(results, texts.extent, options):
                for row in rows:
                    output.write({**cells, **{name: row[name] for name in added}})


def _results(
    model: GPT2, texts: Texts, picture: Picture | None, options: argparse.Namespace
) -> Iterator[tuple[dict[str, Cell], list[Mapping[str, Any]]]]:
    """Yield the first cells of each text's rows, and the rows."""
    inputs = (_input_of(item, number, options) for number, item in enumerate(texts, start=1))
    while part := list(islice(inputs, _PER_CALL)):
        given = [item.text for item in part]
        spans = [[(0, len(text))] for text in given] if options.whole else None
        found = _measured(
            model, given, options, context=[item.context for item in part], spans=spans
        )
        if picture is not None:
            contexts = [item.context for item in part]
            picture.add(_of_both(found, picture, given, options, context=contexts), len(part))
        rows = found.next_token_rows() if options.next_tokens else found.rows()
        by_text: list[list[Mapping[str, Any]]] = [[] for _ in part]
        for row in rows:
            by_text[row["text_id"] - 1].append(row)
        for item, of_text in zip(part, by_text, strict=True):
            yield item.cells, of_text


def _input_of(item: Item, number: int, options: argparse.Namespace) -> _Input:
    if not isinstance(item.text, str):
        raise TableError(f"{item.place}: expected a text, found token ids; words need a text")
    if options.whole and not item.text.strip():
        raise TableError(f"{item.place}: the text is blank; --whole needs a text to score")
    context = options.context or ""
    if options.context_column is not None:
        if item.row is None:
            raise TableError(f"{item.place}: --context-column needs a table or JSON objects")
        context = item.row.text(options.context_column)
    cells: dict[str, Cell] = {"text_id": number} if item.row is None else dict(item.row)
    return _Input(item.text, context, cells)


# ---- output ----


def _default_format(format: str, options: argparse.Namespace) -> None:
    """Let a table that goes to standard output have the input's format."""
    if options.output == "-" and options.format is None and format in ("csv", "tsv"):
        options.format = format


def _chosen(default: Columns, known: Columns, options: argparse.Namespace) -> Columns:
    """Return the columns of --only, or the default ones."""
    if options.only is None:
        return default
    names = [name.strip() for name in options.only.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise OptionError(f"--only has {show(name)}; the columns here are {', '.join(known)}")
    return {name: known[name] for name in names}


def _write_next_tokens(
    found: Surprisals,
    before: Columns,
    name: str,
    metadata: dict[str, str],
    options: argparse.Namespace,
) -> None:
    columns = with_added(name, before, found.next_token_types())
    with open_output(options, columns, metadata=metadata) as output:
        for row in found.next_token_rows():
            output.write({**row, "text_id": ", ".join(map(str, row["text_id"]))})
