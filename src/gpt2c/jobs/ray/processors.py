"""A processor of datasets that has the form of those of ray.data.llm, for CPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gpt2c.checks.names import choice
from gpt2c.checks.untrusted import show
from gpt2c.errors import Error, OptionTypeError, TableError
from gpt2c.jobs.model_spec import ModelSpec
from gpt2c.jobs.ray.actors import with_threads
from gpt2c.jobs.ray.datasets import BATCH_ROWS, Concurrency, Pool, check_not_sampled
from gpt2c.jobs.ray.package import import_ray
from gpt2c.jobs.rows import JobRow, RowResult
from gpt2c.jobs.task import Task
from gpt2c.jobs.worker import ROW_COLUMN, Worker
from gpt2c.tables import Cell

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

# A row of a dataset, as Dataset.map gives it to a function.
Row: TypeAlias = "dict[str, Any]"
RowFunction: TypeAlias = Callable[[Row], Row]

TASKS: Final = ("generate", "score", "embed")
_ERROR: Final = "__inference_error__"
_DATA: Final = "__data"  # the row, as JSON
# Names of vLLM's sampling parameters, and gpt2c's.
_SAMPLING_NAMES: Final = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens",
                          "stop": "stop_strings"}  # fmt: skip
_RESULT_NAMES: Final = {"prompt_tokens": "num_input_tokens", "new_tokens": "num_generated_tokens",
                        "tokens": "num_input_tokens", "embedding": "embeddings"}  # fmt: skip


@dataclass(frozen=True)
class GPT2ProcessorConfig:
    """What a processor does; the names are those of ray.data.llm's configurations.

    model_source
        The `path` of GPT2.from_pretrained; each machine needs the files. None is the embedded
        model.
    engine_kwargs
        Its other arguments, such as dtype and threads.
    task_type
        "generate", "score" or "embed".
    batch_size, concurrency, num_cpus
        Those of Pool.
    should_continue_on_error
        Whether a bad row gets a text in its column __inference_error__ and skips postprocess; if
        not, it ends the job.
    """

    model_source: str | None = None
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    task_type: str = "generate"
    batch_size: int = BATCH_ROWS
    concurrency: Concurrency = None
    num_cpus: int | None = None
    should_continue_on_error: bool = False

    def __post_init__(self) -> None:
        """Raises OptionError or OptionTypeError."""
        choice("task_type", self.task_type, TASKS)
        self.pool()

    def pool(self) -> Pool:
        """Return the actors."""
        return Pool(self.batch_size, self.num_cpus, self.concurrency)


@dataclass(frozen=True)
class Processor:
    """A function of a dataset; `build_processor` makes it."""

    config: GPT2ProcessorConfig
    preprocess: RowFunction | None = None
    postprocess: RowFunction | None = None

    def __call__(self, dataset: Dataset) -> Dataset:
        """Return the processed dataset; nothing runs before it is read.

        Raises MissingDependencyError without Ray.
        """
        import_ray()
        config = self.config
        pool = config.pool()
        spec = with_threads(ModelSpec(config.model_source, config.engine_kwargs), pool.num_cpus)
        return (
            dataset.map(_Before(self.preprocess))
            .map_batches(
                _Batches,
                fn_constructor_kwargs={
                    "spec": spec, "kind": config.task_type,
                    "goes_on": config.should_continue_on_error,
                },
                **pool.arguments(),
            )
            .map(_After(self.postprocess, config.should_continue_on_error))
        )  # fmt: skip


def build_processor(
    config: GPT2ProcessorConfig,
    preprocess: RowFunction | None = None,
    postprocess: RowFunction | None = None,
) -> Processor:
    """Return a function of datasets that does what `config` says with each row.

    preprocess
        Takes a row and returns what the model needs, which is added to the row: `prompt`, a text or
        a list of ids, and perhaps `sampling_params`, a dict of the options of GPT2.complete,
        GPT2.score or GPT2.embed for this row. max_tokens, min_tokens and stop are other names of
        max_new_tokens, min_new_tokens and stop_strings. To sample, a row needs a `seed` there.
    postprocess
        Takes the row with all columns so far and the model's, and returns the row of the result.
        The model's are generated_text, finish_reason, num_input_tokens, num_generated_tokens and
        seed; or tokens as num_input_tokens, scored, total, perplexity and bits_per_byte; or
        embeddings.

    Raises OptionTypeError for another kind of config.
    """
    if not isinstance(config, GPT2ProcessorConfig):
        raise OptionTypeError(f"config is {show(config)}; it must be a GPT2ProcessorConfig")
    return Processor(config, preprocess, postprocess)


class _Before:
    """Runs preprocess. The row travels as JSON, so that a batch may have rows of any columns."""

    def __init__(self, function: RowFunction | None) -> None:
        self._function = function

    def __call__(self, row: Row) -> Row:
        if self._function is not None:
            row = {**row, **self._function(row)}
        try:
            return {_DATA: json.dumps(row, default=_plain)}
        except (TypeError, ValueError) as error:
            raise TableError(f"a row of preprocess is no JSON: {error}") from None


class _After:
    """Runs postprocess."""

    def __init__(self, function: RowFunction | None, goes_on: bool) -> None:
        self._function, self._goes_on = function, goes_on

    def __call__(self, row: Row) -> Row:
        data: Row = json.loads(row[_DATA])
        if data.get(_ERROR):
            return data
        result = data if self._function is None else self._function(data)
        return {**result, _ERROR: ""} if self._goes_on else result


def _plain(value: Any) -> Any:
    """Return what JSON holds of a NumPy value."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"found {show(value)}")


class _Batches:
    """The model's stage: a batch of rows as JSON in, the same with the model's columns out."""

    def __init__(self, spec: ModelSpec, kind: str, goes_on: bool) -> None:
        self._model, self._kind, self._goes_on = spec.load(), kind, goes_on

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        rows: list[Row] = [json.loads(text) for text in batch.column(_DATA).to_pylist()]
        groups: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            parameters = json.dumps(row.get("sampling_params") or {}, sort_keys=True)
            groups.setdefault(parameters, []).append(place)
        for parameters, places in groups.items():
            found = self._run(json.loads(parameters), [rows[place] for place in places])
            for place, result in zip(places, found, strict=True):
                rows[place].update(self._cells(result))
        return pa.table({_DATA: [json.dumps(row) for row in rows]})

    def _run(self, parameters: dict[str, Any], rows: list[Row]) -> list[RowResult]:
        """Do the rows that have these sampling_params."""
        options = {_SAMPLING_NAMES.get(name, name): value for name, value in parameters.items()}
        seed = options.pop("seed", None)
        try:
            if self._kind == "generate" and seed is None:
                check_not_sampled(options, self._model, "add a seed to sampling_params")
            task = Task(self._kind, "prompt", options, keep=(), seed=0 if seed is None else seed)
            worker = Worker(task, self._model)
        except Error as error:
            failed = RowResult(0, "a row", [], f"sampling_params: {error}")
            return [replace(failed, number=number) for number in range(len(rows))]
        given: list[dict[str, Cell]] = [
            {"prompt": row["prompt"]} if "prompt" in row else {} for row in rows
        ]
        return worker.run([JobRow(0, "a row", cells) for cells in given])

    def _cells(self, result: RowResult) -> Row:
        if result.error is None:
            return {
                _RESULT_NAMES.get(name, name): cell
                for name, cell in result.rows[0].items()
                if name != ROW_COLUMN
            }
        if not self._goes_on:
            raise TableError(f"a row is bad: {result.error}")
        return {_ERROR: result.error}
