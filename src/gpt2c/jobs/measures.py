"""The four tasks: which call of the model each makes, and which cells it adds to a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import gpt2c
from gpt2c.checks.untrusted import show
from gpt2c.errors import ContextError, OptionError, TableError, TokenizerError
from gpt2c.generate.options import Completion
from gpt2c.generate.prompts import check_ids
from gpt2c.jobs.task import Task
from gpt2c.measure.scores import Score, json_fields
from gpt2c.model import GPT2
from gpt2c.tables import Cell, ColumnType, TextOrIds
from gpt2c.tables.cells import plain_cell

_DEFAULT_BATCH: Final = 32
# Options of complete that would let a text depend on time, on the other texts or on code.
_NOT_IN_JOBS: Final = ("callback", "logits_processor", "max_time", "seed", "progress", "echo")


@dataclass
class Given:
    """A row's text, which was made and checked."""

    index: int  # of the row
    text: TextOrIds
    n_tokens: int
    context: str
    seed: int


@dataclass(frozen=True)
class Found:
    """The cells that a task adds: those of each row to write for a text."""

    rows: list[dict[str, Cell]] = field(default_factory=list)
    new_tokens: int = 0


class Measure(Protocol):
    """A task with a model.

    columns
        The columns that it adds, with their types.
    """

    columns: dict[str, ColumnType | None]

    def check(self, text: TextOrIds) -> int:
        """Return the number of tokens of a text. Raises an Error if no call can take the text."""

    def run(self, given: Sequence[Given]) -> list[Found]:
        """Return what is found for each text."""


def measure_of(task: Task, model: GPT2) -> Measure:
    """Return the measure of a task. Raises OptionError or OptionTypeError for a wrong option."""
    options = dict(task.options)
    if task.context_column is not None and task.kind != "surprisal":
        raise OptionError(f"context_column is for surprisal, and the task is {task.kind}")
    if task.kind == "generate":
        return _Generate(model, options)
    if task.kind == "score":
        return _Scores(model, options)
    if task.kind == "surprisal":
        return _Surprisals(model, options)
    return _Embeddings(model, options)


def _n_tokens(model: GPT2, text: TextOrIds, special: bool) -> int:
    if isinstance(text, str):
        return len(model.tokenizer.encode(text, special=special))
    return len(check_ids(text, model.config.vocab_size, "the row"))


def _check_fits(model: GPT2, n: int, what: str, hint: str) -> None:
    """Raise ContextError for a text of n tokens that is longer than the context."""
    if n > model.config.n_positions:
        raise ContextError(
            f"the {what} has {n} tokens, more than the context's {model.config.n_positions} "
            f"positions; shorten it, or {hint}"
        )


def _by_kind(
    given: Sequence[Given], call: Callable[[list[Given], Any], Iterable[Found]]
) -> list[Found]:
    """Return what `call` finds in some items and their texts, which are all texts or all ids.

    A call of a model takes only one kind.
    """
    found: dict[int, Found] = {}
    for is_text in (True, False):
        part = [item for item in given if isinstance(item.text, str) == is_text]
        if part:
            of_part = call(part, [item.text for item in part])
            found.update(zip((item.index for item in part), of_part, strict=True))
    return [found[item.index] for item in given]


class _Generate:
    def __init__(self, model: GPT2, options: dict[str, Any]) -> None:
        self._model = model
        self._with_ids = bool(options.pop("with_ids", False))
        for name in _NOT_IN_JOBS:
            if name in options:
                raise OptionError(f"{name} cannot be given to a job")
        self._options = options
        model.complete(iter(()), **options)  # raises an error for a wrong option
        self._must_fit = (
            options.get("truncate") is None and options.get("overflow", "stop") == "stop"
        )
        self.columns: dict[str, ColumnType | None] = {
            "generated_text": str,
            "finish_reason": str,
            "prompt_tokens": int,
            "new_tokens": int,
            "seed": int,
        }
        if options.get("num_return_sequences") is not None:
            self.columns["sample"] = int
        if "num_beams" in {**model.generation_defaults, **options}:
            self.columns["sequence_score"] = float
        if self._with_ids:
            self.columns["generated_ids"] = list

    def check(self, text: TextOrIds) -> int:
        n = _n_tokens(self._model, text, special=True)
        if self._must_fit:
            _check_fits(self._model, n, "prompt", "keep its end with the option truncate")
        return n

    def run(self, given: Sequence[Given]) -> list[Found]:
        def complete(items: list[Given], prompts: Any) -> Iterator[Found]:
            seeds = [item.seed for item in items]
            completions = self._model.complete(prompts, seed=seeds, **self._options)
            for item, completion in zip(items, completions, strict=True):
                several = completion if isinstance(completion, list) else [completion]
                rows = [self._cells(one, item) for one in several]
                yield Found(rows, sum(len(one.ids) for one in several))

        return _by_kind(given, complete)

    def _cells(self, completion: Completion, item: Given) -> dict[str, Cell]:
        cells: dict[str, Cell] = {
            "generated_text": self._text_of(completion),
            "finish_reason": completion.finish_reason,
            "prompt_tokens": item.n_tokens,
            "new_tokens": len(completion.ids),
            "seed": item.seed,
            "sample": completion.sample,
            "sequence_score": completion.sequence_score,
            "generated_ids": list(completion.ids),
        }
        return {name: cells[name] for name in self.columns}

    def _text_of(self, completion: Completion) -> str | None:
        if completion.text is not None:
            return completion.text
        try:
            return self._model.tokenizer.decode(completion.ids)
        except TokenizerError:  # the model has no tokenizer
            return None


class _Scores:
    def __init__(self, model: GPT2, options: dict[str, Any]) -> None:
        self._model = model
        self._with_tokens = bool(options.pop("with_tokens", False))
        self._options = options
        for name in ("other", "id_sets", "second_moments", "renyi_orders"):
            if name in options:
                raise OptionError(f"{name} cannot be given to a job")
        model.score(iter(()), **options)
        self.columns: dict[str, ColumnType | None] = {
            "tokens": int,
            "scored": int,
            "total": float,
            "perplexity": float,
            "bits_per_byte": float,
        }
        if self._with_tokens:
            self.columns |= {
                "ids": list, "logprobs": list[float], "ranks": list, "entropies": list[float]
            }  # fmt: skip
        if options.get("top_logprobs"):
            self.columns |= {"top_ids": None, "top_logprobs": None}

    def check(self, text: TextOrIds) -> int:
        return _n_tokens(self._model, text, bool(self._options.get("special_tokens")))

    def run(self, given: Sequence[Given]) -> list[Found]:
        def score(items: list[Given], texts: Any) -> Iterator[Found]:
            scores = self._model.score(texts, **self._options)
            for item, found in zip(items, scores, strict=True):
                yield Found([self._cells(item.text, found)])

        return _by_kind(given, score)

    def _cells(self, text: TextOrIds, score: Score) -> dict[str, Cell]:
        n_bytes = 0
        if isinstance(text, str):
            # The bytes of the scored tokens, without the suffix that the tokenizer adds.
            counts = score.ranks > 0
            counts[len(counts) - len(self._model.tokenizer.suffix_ids) :] = False
            n_bytes = len(self._model.tokenizer.decode_bytes(score.ids[counts]))
        cells: dict[str, Any] = {
            "tokens": len(score.ids),
            "scored": score.n_scored,
            "total": score.total,
            "perplexity": score.perplexity,
            "bits_per_byte": -score.total / math.log(2) / n_bytes if n_bytes else None,
            **(json_fields(score) if "ids" in self.columns or "top_ids" in self.columns else {}),
        }
        return {name: plain_cell(cells[name]) for name in self.columns}


class _Surprisals:
    def __init__(self, model: GPT2, options: dict[str, Any]) -> None:
        self._model, self._whole = model, bool(options.pop("whole", False))
        for name in ("by", "context", "spans", "text_ids", "progress", "next_tokens"):
            if name in options:
                raise OptionError(f"{name} cannot be given to a job")
        if self._whole and options.get("apart") is not None:
            raise OptionError("whole and apart are both given; leave one out")
        self._options = options
        empty = gpt2c.surprisal(model, [], **options)
        self.columns: dict[str, ColumnType | None] = dict(
            empty.column_types(with_words=not self._whole)
        )

    def check(self, text: TextOrIds) -> int:
        if not isinstance(text, str):
            raise TableError(f"expected a text, found {show(text)}; words need a text")
        if self._whole and not text.strip():
            raise TableError("the text is blank; a surprisal of the whole needs a text")
        return _n_tokens(self._model, text, bool(self._options.get("special_tokens")))

    def run(self, given: Sequence[Given]) -> list[Found]:
        texts = [str(item.text) for item in given]
        spans = [[(0, len(text))] for text in texts] if self._whole else None
        contexts = [item.context for item in given]
        found = gpt2c.surprisal(self._model, texts, context=contexts, spans=spans, **self._options)
        rows: list[list[dict[str, Cell]]] = [[] for _ in given]
        for row in found.rows():
            cells: Mapping[str, Any] = {name: row[name] for name in self.columns}
            plain = {name: plain_cell(cell) for name, cell in cells.items()}
            rows[row["text_id"] - 1].append(plain)
        return [Found(of_text) for of_text in rows]


class _Embeddings:
    def __init__(self, model: GPT2, options: dict[str, Any]) -> None:
        self._model, self._options = model, options
        if options.get("pooling") not in (None, "mean", "last"):
            raise OptionError(f"pooling is {show(options['pooling'])}; it must be mean or last")
        model.embed(iter(()), **options)
        self.columns: dict[str, ColumnType | None] = {"embedding": list[float]}

    def check(self, text: TextOrIds) -> int:
        n = _n_tokens(self._model, text, bool(self._options.get("special_tokens")))
        if self._options.get("stride") is None:
            _check_fits(self._model, n, "text", "embed it in windows with the option stride")
        return n

    def run(self, given: Sequence[Given]) -> list[Found]:
        def embed(_: list[Given], texts: Any) -> Iterator[Found]:
            for vector in self._model.embed(texts, **self._options):
                yield Found([{"embedding": plain_cell(vector)}])

        return _by_kind(given, embed)
