"""``gpt2c perplexity``: print each text's perplexity and bits per byte."""

from __future__ import annotations

import argparse
import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpt2c.cli.options import Commands, add_model_options
from gpt2c.cli.scored_texts import (
    add_scoring_command,
    cells_before,
    columns_before,
    scored_texts,
)
from gpt2c.cli.table_options import model_metadata, open_output
from gpt2c.tables import Cell, Columns, TextOrIds, with_added

if TYPE_CHECKING:
    from gpt2c.measure.scores import Score
    from gpt2c.model import GPT2


_COLUMNS: Final[Columns] = MappingProxyType(
    {"tokens": int, "scored": int, "total": float, "perplexity": float, "bits_per_byte": float}
)


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    results = "each text's perplexity and bits per byte"
    add_model_options(add_scoring_command(commands, "perplexity", results, _run))


def _run(options: argparse.Namespace) -> None:
    with scored_texts(options) as (model, texts, scored):
        before = columns_before(texts, options)
        columns = with_added(texts.name, before, _COLUMNS)
        metadata = model_metadata(model, options)
        with open_output(
            options, columns, like=texts.layout, metadata=metadata, keeps_rows=bool(texts.types)
        ) as output:
            for number, (item, score) in enumerate(scored, start=1):
                fields = _perplexity_fields(model, item.text, score)
                output.write({**cells_before(before, item, number), **fields})


def _perplexity_fields(model: GPT2, text_or_ids: TextOrIds, score: Score) -> dict[str, Cell]:
    """Return the cells of a score; bits_per_byte is None for ids, which have no bytes to count."""
    n_bytes = 0
    if isinstance(text_or_ids, str):
        # Count the bytes of the scored tokens, without the suffix that the tokenizer adds.
        counts = score.ranks > 0
        counts[len(counts) - len(model.tokenizer.suffix_ids) :] = False
        n_bytes = len(model.tokenizer.decode_bytes(score.ids[counts]))
    return {
        "tokens": len(score.ids),
        "scored": score.n_scored,
        "total": score.total,
        "perplexity": score.perplexity,
        "bits_per_byte": -score.total / math.log(2) / n_bytes if n_bytes else None,
    }
