"""``gpt2c embed``: turn texts into vectors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from gpt2c.cli.options import (
    Commands,
    add_model_options,
    add_special_tokens_option,
    load_model,
)
from gpt2c.cli.table_options import (
    INPUT_HELP,
    TEXTS_HELP,
    add_input_options,
    add_lines_option,
    add_output_options,
    check_input_files,
    model_metadata,
    open_input_texts,
    open_output,
    output_format,
    with_progress,
    with_results,
)
from gpt2c.errors import OptionError, TableError
from gpt2c.files import whole_file
from gpt2c.tables import Cell, ColumnType, Item, TextOrIds

if TYPE_CHECKING:
    from gpt2c.measure.embeddings import Vector
    from gpt2c.model import GPT2
    from gpt2c.model.gpt2 import EmbedOptions

_NPY: Final = ".npy"

Write: TypeAlias = "Callable[[Cell, str, Vector], None]"


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "embed", help="turn texts into vectors", allow_abbrev=False,
        description="Reads texts and writes a vector for each: the hidden states of its tokens, "
        "pooled. Rows have the text's number, text_id, and the vector: one column in JSON lines "
        "and Parquet, a column for each number in CSV and TSV. A file .npy has the vectors alone, "
        f"as float32 [n_texts, n_embd].{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", help=TEXTS_HELP)
    add_lines_option(parser)
    add_input_options(parser)
    add("--id", metavar="NAME", help="the column, or key in JSON lines, to use as text_id; "
        "default: texts are numbered from 1")  # fmt: skip
    add_output_options(parser)
    add_embedding_options(parser)
    add_model_options(parser)


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of GPT2.embed; embedding_arguments returns their values."""
    add = parser.add_argument
    add("--layer", type=int, default=-1, metavar="N", help="the hidden states of layer N: 0 is the "
        "embeddings; -1, the default, the output of the last layer norm")  # fmt: skip
    add("--pooling", choices=("mean", "last"), default="mean", help="the mean over the tokens "
        "(default), or the last token's")  # fmt: skip
    add("--bos", action="store_true", help="put the BOS token before each text")
    add_special_tokens_option(parser)
    add("--stride", type=int, metavar="N", help="compute a text longer than the context in windows "
        "that begin N tokens apart; by default it is an error")  # fmt: skip


def embedding_arguments(options: argparse.Namespace) -> EmbedOptions:
    """Return the arguments of GPT2.embed that the options of add_embedding_options give."""
    return {
        "layer": options.layer,
        "pooling": options.pooling,
        "bos": options.bos,
        "special_tokens": options.special_tokens,
        "stride": options.stride,
    }


def _run(options: argparse.Namespace) -> None:
    is_npy = options.format is None and options.output.lower().endswith(_NPY)
    if not is_npy:
        output_format(options)  # fails before the model is loaded
    elif options.id is not None:
        raise OptionError("--id: a file .npy has no ids; name a .parquet, .jsonl or .csv file")
    check_input_files(options.files)
    number = 0
    with load_model(options) as model:
        output = _npy(options.output, model) if is_npy else _table(options, model)
        with output as write:
            for path in options.files:
                for item, vector in _embedded(model, path, options):
                    number += 1
                    write(_id_of(item, number, options.id), path, vector)


def _embedded(model: GPT2, path: str, options: argparse.Namespace) -> Iterator[tuple[Item, Vector]]:
    """Yield the texts of a file with their vectors."""
    with open_input_texts(options, path, lines=options.lines) as texts:

        def embed(read: Iterator[TextOrIds]) -> Iterator[Vector]:
            vectors = model.embed(read, **embedding_arguments(options))
            return with_progress(vectors, texts.extent, options)

        yield from with_results(texts, lambda item: item.text, embed)


def _id_of(item: Item, number: int, column: str | None) -> Cell:
    if column is None:
        return number
    if item.row is None:
        raise OptionError(f"--id {column}: {item.place} is not a row of a table")
    if column not in item.row:
        raise TableError(f"{item.place}: found no column {column}, which --id names")
    return item.row[column]


@contextmanager
def _table(options: argparse.Namespace, model: GPT2) -> Iterator[Write]:
    """Open the table to write."""
    has_columns = output_format(options) in ("csv", "tsv")
    n_embd = model.config.n_embd
    names = [f"e{i}" for i in range(1, n_embd + 1)]
    columns: dict[str, ColumnType | None] = {"text_id": int if options.id is None else None}
    if len(options.files) > 1:
        columns["file"] = str
    columns |= dict.fromkeys(names, float) if has_columns else {"embedding": None}
    about_model = model_metadata(model, options)
    metadata = {**about_model, "layer": options.layer, "pooling": options.pooling}
    with open_output(options, columns, metadata=metadata) as output:

        def write(text_id: Cell, path: str, vector: Vector) -> None:
            numbers = vector.tolist()
            row: dict[str, Cell] = {"text_id": text_id}
            if "file" in columns:
                row["file"] = path
            row |= zip(names, numbers, strict=True) if has_columns else {"embedding": numbers}
            output.write(row)

        yield write


@contextmanager
def _npy(path: str, model: GPT2) -> Iterator[Write]:
    """Open a file of NumPy's format; its header is written again when the number is known."""
    from numpy.lib.format import write_array_header_1_0

    n_rows, n_embd = 0, model.config.n_embd
    with whole_file(path) as file:

        def write_header() -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, n_embd)}
            write_array_header_1_0(file, header)

        def write(_: Cell, __: str, vector: Vector) -> None:
            nonlocal n_rows
            n_rows += 1
            file.write(vector.astype("<f4").tobytes())

        if not file.seekable():
            raise OptionError(f"{path}: a file .npy cannot be written to a pipe")
        write_header()
        begin = file.tell()
        yield write
        file.seek(0)
        write_header()
        # NumPy leaves room in the header for the digits of the number of rows.
        assert file.tell() == begin
