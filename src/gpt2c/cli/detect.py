"""``gpt2c detect``: print statistics that detectors of generated text use."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpt2c.cli.options import Commands, add_model_options, add_stride_option, load_model
from gpt2c.cli.scored_texts import cells_before, columns_before
from gpt2c.cli.table_options import (
    INPUT_HELP,
    TEXTS_HELP,
    add_input_options,
    add_lines_option,
    add_output_options,
    check_input_files,
    model_metadata,
    names_output,
    open_input_texts,
    open_output,
    with_progress,
    with_results,
)
from gpt2c.errors import OptionError
from gpt2c.tables import Cell, Columns, Extent, Item, Layout, TextOrIds, Texts, with_added

if TYPE_CHECKING:
    from gpt2c.measure.scores import Score
    from gpt2c.model import GPT2

_STATISTICS: Final[Columns] = MappingProxyType(
    {
        "tokens": int, "scored": int, "mean_logprob": float, "mean_log_rank": float,
        "mean_entropy": float, "lrr": float, "curvature": float,
    }
)  # fmt: skip
_WITH_PERFORMER: Final[Columns] = MappingProxyType({**_STATISTICS, "binoculars": float})
# The titles of the table for people, whose last column is the text's place.
_TITLES: Final = MappingProxyType(
    {
        "tokens": "tokens", "mean_logprob": "log p", "mean_log_rank": "log rank",
        "mean_entropy": "entropy", "lrr": "LRR", "curvature": "curvature",
        "binoculars": "Binoculars",
    }
)  # fmt: skip


@dataclass(frozen=True)
class _Input:
    """The texts of all files, and what is known of them before they are read."""

    items: Iterator[tuple[Item, dict[str, Cell]]]  # with the cells that come before a result
    columns: Columns  # of these cells
    name: str
    layout: Layout | None
    extent: Extent
    is_table: bool


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "detect", help="print statistics that detectors of generated text use", allow_abbrev=False,
        description="Prints statistics of texts that detectors of generated text use: the means of "
        "log-probability, log-rank and entropy, the log-likelihood log-rank ratio (LRR), the "
        "curvature of Fast-DetectGPT, and with a second model Binoculars. They say how predictable "
        "a text is for the model, and do not show who wrote it; docs/detection.md says "
        f"more.{INPUT_HELP}",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help=TEXTS_HELP)
    add("--performer", metavar="MODEL", help="a second model with the same tokenizer: print "
        "Binoculars too, with --model as the observer")  # fmt: skip
    add_lines_option(parser)
    add("--json", action="store_true", help="print a JSON object per text and line, with null for "
        "a number that is undefined or infinite")  # fmt: skip
    add_input_options(parser)
    add_output_options(parser, printed="a table for people to read")
    add("--bos", action="store_true", help="score the first token too, after the BOS token; the "
        "papers' programs do not")  # fmt: skip
    add_stride_option(parser)
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    if options.json:
        if options.format not in (None, "jsonl"):
            raise OptionError(f"--json contradicts --format {options.format}")
        options.format = "jsonl"
    with ExitStack() as stack:
        source = stack.enter_context(_open_input(options))
        model = stack.enter_context(load_model(options))
        performer = stack.enter_context(_load_performer(options))
        columns = _STATISTICS if performer is None else _WITH_PERFORMER
        scored = _scored(model, performer, source, options)
        if not names_output(options):
            _print_table(scored, columns)
            return
        metadata = model_metadata(model, options)
        if performer is not None:
            metadata = {**metadata, "performer": options.performer}
        output = stack.enter_context(
            open_output(
                options,
                with_added(source.name, source.columns, columns),
                like=source.layout,
                metadata=metadata,
                keeps_rows=source.is_table,
            )
        )
        for _, before, score in scored:
            output.write({**before, **_statistics(score, columns)})


@contextmanager
def _open_input(options: argparse.Namespace) -> Iterator[_Input]:
    """Open FILE, or the files one after another. Raises OptionError, TableError or OSError."""
    files: list[str] = options.files
    check_input_files(files)
    if len(files) > 1:
        n_read = 0

        def read() -> Iterator[tuple[Item, dict[str, Cell]]]:
            nonlocal n_read
            for file in files:
                with _open_texts(file, options) as texts:
                    for number, item in enumerate(texts, start=1):
                        yield item, {"file": file, "text_id": number}
                n_read += 1

        columns: Columns = {"file": str, "text_id": int}
        extent = Extent(lambda: n_read, len(files), "file")
        yield _Input(read(), columns, "the input", None, extent, is_table=False)
        return
    with _open_texts(files[0], options) as texts:
        columns = columns_before(texts, options)
        items = (
            (item, cells_before(columns, item, number))
            for number, item in enumerate(texts, start=1)
        )
        yield _Input(
            items, columns, texts.name, texts.layout, texts.extent, is_table=bool(texts.types)
        )


def _open_texts(file: str, options: argparse.Namespace) -> AbstractContextManager[Texts]:
    return open_input_texts(options, file, lines=options.lines)


def _load_performer(options: argparse.Namespace) -> AbstractContextManager[GPT2 | None]:
    if options.performer is None:
        return nullcontext()
    return load_model(options, options.performer)


def _scored(
    model: GPT2, performer: GPT2 | None, source: _Input, options: argparse.Namespace
) -> Iterator[tuple[Item, dict[str, Cell], Score]]:
    def text_of(read: tuple[Item, dict[str, Cell]]) -> TextOrIds:
        item, _ = read
        if performer is not None:
            _check_same_ids(model, performer, item)
        return item.text

    def score(texts: Iterator[TextOrIds]) -> Iterator[Score]:
        scores = model.score(
            texts, bos=options.bos, stride=options.stride, second_moments=True, other=performer
        )
        return with_progress(scores, source.extent, options)

    for (item, before), found in with_results(source.items, text_of, score):
        yield item, before, found


def _check_same_ids(model: GPT2, performer: GPT2, item: Item) -> None:
    """Raise OptionError if the models' tokenizers encode a text differently."""
    text = item.text
    if isinstance(text, str) and model.tokenizer.encode(text) != performer.tokenizer.encode(text):
        raise OptionError(
            f"{item.place}: the tokenizers of --model and --performer encode this text "
            "differently; Binoculars needs two models with the same tokenizer"
        )


def _statistics(score: Score, columns: Columns) -> dict[str, int | float]:
    found = {"tokens": len(score.ids), "scored": score.n_scored}
    return {**found, **{name: getattr(score, name) for name in columns if name not in found}}


def _print_table(scored: Iterator[tuple[Item, dict[str, Cell], Score]], columns: Columns) -> None:
    """Print a line for each text, as soon as it is scored."""
    titles = {name: title for name, title in _TITLES.items() if name in columns}
    widths = [max(len(title), 7) for title in titles.values()]

    def line(cells: Iterable[str], place: str) -> str:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return "  ".join([*padded, place])

    for index, (item, _, score) in enumerate(scored):
        if index == 0:  # not before an error of the first text
            print(line(titles.values(), "text"))
        numbers = _statistics(score, columns)
        print(line((_cell(numbers[name]) for name in titles), item.place), flush=True)


def _cell(number: int | float) -> str:
    if isinstance(number, int):
        return str(number)
    return "-" if math.isnan(number) else f"{number:.3f}"
