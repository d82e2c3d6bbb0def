"""The table of words that gpt2c.surprisal returns."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.measure.passages import Stimuli
from gpt2c.measure.surprisal import PassageScores, SurprisalOptions
from gpt2c.tables import Columns, ColumnType, create_table, to_frame

if TYPE_CHECKING:
    import pandas
    import polars

Column: TypeAlias = "list[Any] | NDArray[Any]"

_MAX_FLOAT: Final = sys.float_info.max
_WORD_TYPES: Final[Mapping[str, ColumnType]] = MappingProxyType(
    {
        "word_index": int,
        "word": str,
        "start": int,
        "end": int,
        "token_ids": list,
        "is_cut": bool,
    }
)
_NEXT_TOKEN_TYPES: Final[Mapping[str, ColumnType]] = MappingProxyType(
    {"word_index": int, "token_rank": int, "token_id": int, "token": str, "surprisal": float}
)


class Surprisals:
    """The surprisals of the words of texts, as a table with a row for each word.

    passages
        The numbers of each text as arrays, with its tokens and their scores: a PassageScores for
        each text.
    columns
        The table: a dict of lists and arrays, all of one length.

    The columns are:

    text_id, word_index
        The text's id, and the word's number in it, from 1.
    word, start, end
        The word, and its first character and the one after its last, counted from 0 in the text
        without its context. Given words count as joined with `sep`.
    token_ids, is_cut
        The word's tokens, and whether the text was cut beside the word to encode it.
    surprisal
        Minus the log of the product of the tokens' probabilities; NaN if it has none.
    corrected
        The corrected surprisal, with a correction.
    rank, entropy
        The rank of the word's first token, 1 for the most likely, or 0 if it has none; the entropy
        of the distribution that predicts it.
    entropy_reduction, renyi_<order>
        With these options.
    """

    def __init__(
        self,
        stimuli: Stimuli,
        passages: list[PassageScores],
        options: SurprisalOptions,
        decode: Callable[[list[int]], str],
        describe: Callable[[], dict[str, str]],
    ) -> None:
        """Private: gpt2c.surprisal makes it."""
        self._stimuli, self._options = stimuli, options
        self._decode, self._describe = decode, describe
        self.passages = passages

    def __len__(self) -> int:
        """The number of words."""
        return sum(len(p.surprisals) for p in self.passages)

    def __repr__(self) -> str:
        """The number of words and texts, and the unit."""
        return (
            f"<gpt2c.Surprisals: {len(self)} words of {len(self.passages)} texts, in {self.unit}>"
        )

    @property
    def unit(self) -> str:
        """The unit of surprisals and entropies: "bits" or "nats"."""
        return self._options.unit

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The table; see the class."""
        columns = _columns(self._stimuli.text_ids, self.passages, self._options)
        if self._stimuli.rows is None:
            return columns
        order = np.argsort(
            np.array([row for rows in self._stimuli.rows for row in rows], dtype=int)
        )
        return {
            name: column[order] if isinstance(column, np.ndarray) else [column[i] for i in order]
            for name, column in columns.items()
        }

    @cached_property
    def next_tokens(self) -> dict[str, Column]:
        """The most likely tokens before each word and after the text, with the option next_tokens.

        The columns are text_id and word_index, as in the table, where the text's end counts as one
        word more; token_rank, from 1; token_id and token; and surprisal. The tokens of a word are
        in the order of their ranks.
        """
        return _next_token_columns(
            self._stimuli.text_ids, self.passages, self._options, self._decode
        )

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What made the numbers: the model's SHA-256, dtype, the arithmetic, and the options.

        The first use reads all weights of the model; see GPT2.fingerprint.
        """
        return self._describe()

    def column_types(self, *, with_words: bool = True) -> dict[str, ColumnType]:
        """Return the names and types of the columns after text_id.

        Without words, they are those that a table which has the words already lacks.
        """
        numbers = _number_types(self._options)
        return {**_WORD_TYPES, **numbers} if with_words else {"is_cut": bool, **numbers}

    def next_token_types(self) -> dict[str, ColumnType]:
        """Return the names and types of the columns of next_tokens after text_id."""
        return dict(_NEXT_TOKEN_TYPES)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table as a list of rows."""
        return _rows_of(self.columns)

    def next_token_rows(self) -> list[dict[str, Any]]:
        """Return the table of next tokens as a list of rows."""
        return _rows_of(self.next_tokens)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the table as a dict of plain lists, which R's reticulate converts to vectors."""
        return {name: _as_list(column) for name, column in self.columns.items()}

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a frame, with the metadata in its `attrs`.

        Raises MissingDependencyError.
        """
        return to_frame(self.columns, "pandas", metadata=self.metadata)

    def to_polars(self) -> polars.DataFrame:
        """Return the table as a frame of polars. Raises MissingDependencyError."""
        return to_frame(self.columns, "polars")

    def write(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        missing: str = "",
        metadata_lines: bool = False,
    ) -> None:
        """Write the table to a file: CSV, TSV, JSON lines or Parquet, by its suffix or `format`.

        CSV and TSV have `missing` for a number that is undefined, such as "NA" for R. Parquet holds
        the metadata too; the other formats do with metadata_lines=True (docs/tables.md).

        Raises TableError, OptionError, OSError or MissingDependencyError.
        """
        types: Columns = {"text_id": None, **self.column_types()}
        with create_table(
            path, types, format=format, missing=missing, metadata=self.metadata,
            metadata_lines=metadata_lines,
        ) as table:  # fmt: skip
            for row in self.rows():
                table.write(row)


def _number_types(options: SurprisalOptions) -> dict[str, ColumnType]:
    """Return the names and types of the columns of measured numbers."""
    names = ["surprisal", *(["corrected"] if options.correction != "none" else [])]
    after = ["entropy", *(["entropy_reduction"] if options.entropy_reduction else [])]
    after += map(renyi_column, options.renyi_orders)
    return {**dict.fromkeys(names, float), "rank": int, **dict.fromkeys(after, float)}


def renyi_column(order: float) -> str:
    """Return the name of the column of a Renyi entropy; an int may be beyond float's range."""
    number = float(order) if order <= _MAX_FLOAT else math.inf
    return "renyi_" + repr(number).removesuffix(".0")


def _rows_of(columns: dict[str, Column]) -> list[dict[str, Any]]:
    """Return the rows of a table of columns."""
    names = list(columns)
    lists = map(_as_list, columns.values())
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def _as_list(column: Column) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _columns(
    text_ids: Sequence[Any], passages: list[PassageScores], options: SurprisalOptions
) -> dict[str, Column]:
    """Return the table with the words in the order of the passages."""
    counts = [len(p.surprisals) for p in passages]
    spans = [(p.passage, begin, end) for p in passages for begin, end in p.passage.spans]
    columns: dict[str, Column] = {
        "text_id": [id for id, n in zip(text_ids, counts, strict=True) for _ in range(n)],
        "word_index": np.array([i for n in counts for i in range(1, n + 1)], dtype=np.int64),
        "word": [passage.text[begin:end] for passage, begin, end in spans],
        "start": np.array([begin - p.n_context for p, begin, _ in spans], dtype=np.int64),
        "end": np.array([end - p.n_context for p, _, end in spans], dtype=np.int64),
        "token_ids": [p.token_ids(word) for p, n in zip(passages, counts, strict=True)
                      for word in range(n)],
        "is_cut": _joined([p.words.is_cut for p in passages], np.bool_),
        "surprisal": _joined([p.surprisals for p in passages]),
    }  # fmt: skip
    if options.correction != "none":
        columns["corrected"] = _joined([p.corrected for p in passages if p.corrected is not None])
    columns["rank"] = _joined([p.ranks for p in passages], np.int64)
    columns["entropy"] = _joined([p.entropies for p in passages])
    if options.entropy_reduction:
        reductions = [p.entropy_reductions for p in passages if p.entropy_reductions is not None]
        columns["entropy_reduction"] = _joined(reductions)
    for index, order in enumerate(options.renyi_orders):
        columns[renyi_column(order)] = _joined([p.renyi_entropies[:, index] for p in passages])
    return columns


def _next_token_columns(
    text_ids: Sequence[Any],
    passages: list[PassageScores],
    options: SurprisalOptions,
    decode: Callable[[list[int]], str],
) -> dict[str, Column]:
    columns: dict[str, list[Any]] = {name: [] for name in ("text_id", *_NEXT_TOKEN_TYPES)}
    for text_id, p in zip(text_ids, passages, strict=True):
        if options.n_next_tokens == 0:
            break
        at = np.append(p.words.first, len(p.words.ids)) - p.n_given
        top = zip(p.score.top_ids[at].tolist(), p.score.top_logprobs[at], strict=True)
        for word, (ids, logprobs) in enumerate(top, start=1):
            surprisals = (-options.scale * logprobs.astype(np.float64)).tolist()
            for rank, (id, value) in enumerate(zip(ids, surprisals, strict=True), start=1):
                if id >= 0:
                    row = (text_id, word, rank, id, decode([id]), value)
                    for column, cell in zip(columns.values(), row, strict=True):
                        column.append(cell)
    return {**columns}


def _joined(arrays: Sequence[NDArray[Any]], dtype: Any = np.float64) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *arrays])
