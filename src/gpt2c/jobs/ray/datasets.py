"""Tasks for datasets of Ray Data: each batch of rows goes to an actor that holds the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gpt2c.checks.options import INT32_MAX, integer
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, TableError
from gpt2c.generate.sampling import asks_to_sample
from gpt2c.jobs.columns import needed_columns
from gpt2c.jobs.model_spec import ModelSpec
from gpt2c.jobs.ray.actors import with_threads
from gpt2c.jobs.ray.package import import_ray
from gpt2c.jobs.rows import JobRow
from gpt2c.jobs.task import OptionValue, Task
from gpt2c.jobs.worker import ROW_COLUMN, Worker
from gpt2c.model import GPT2
from gpt2c.tables import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

# A number of actors, or the least and the most of a pool that grows and shrinks.
Concurrency: TypeAlias = "int | tuple[int, int] | None"

BATCH_ROWS: Final = 256
ERROR_COLUMN: Final = "error"


@dataclass(frozen=True)
class Pool:
    """The actors of a dataset's task.

    batch_size
        The rows of a batch: enough to fill the model's passes.
    num_cpus
        The CPUs and threads of each actor; None for one actor on each machine, with all its CPUs.
        Reading and writing need CPUs too: Ray Data waits for ever if the actors have them all.
    concurrency
        The number of actors, or the least and the most; None for as many as there is room for.
    """

    batch_size: int = BATCH_ROWS
    num_cpus: int | None = None
    concurrency: Concurrency = None

    def __post_init__(self) -> None:
        """Raises OptionError or OptionTypeError."""
        integer("batch_size", self.batch_size, 1, INT32_MAX)
        if self.num_cpus is not None:
            integer("num_cpus", self.num_cpus, 1, INT32_MAX)
        if isinstance(self.concurrency, tuple):
            low, high = self.concurrency
            integer("concurrency", high, integer("concurrency", low, 1, INT32_MAX), INT32_MAX)
        elif self.concurrency is not None:
            integer("concurrency", self.concurrency, 1, INT32_MAX)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of map_batches. Starts Ray if it does not run yet."""
        ray = import_ray()
        concurrency = self._room() if self.concurrency is None else self.concurrency
        if isinstance(concurrency, tuple):
            compute = ray.data.ActorPoolStrategy(min_size=concurrency[0], max_size=concurrency[1])
        else:
            compute = ray.data.ActorPoolStrategy(size=concurrency)
        # An actor with all CPUs of its machine says that it needs one: the others stay free for
        # Ray Data's tasks, which read and write beside it and need little time.
        return {
            "batch_size": self.batch_size, "batch_format": "pyarrow", "compute": compute,
            "num_cpus": self.num_cpus or 1, "scheduling_strategy": "SPREAD",
        }  # fmt: skip

    def _room(self) -> int:
        """Return the number of actors that the cluster has room for, with a CPU to spare."""
        ray = import_ray()
        if not ray.is_initialized():
            ray.init()
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        if self.num_cpus is None:
            return max(1, sum(n >= 1 for n in cpus))
        n_actors = sum(n // self.num_cpus for n in cpus)
        return max(1, n_actors - (n_actors * self.num_cpus == sum(cpus)))


def generate(
    ds: Dataset,
    model: str | ModelSpec | None = None,
    *,
    column: str = "prompt",
    template: str | None = None,
    number_column: str | None = None,
    seed: int = 0,
    pool: Pool | None = None,
    **options: Any,
) -> Dataset:
    """Continue the prompt of each row; return the dataset with columns added.

    The columns are generated_text, finish_reason, prompt_tokens, new_tokens, seed, more for some
    options, and error: null, or why the row is bad; then the others are null.

    model
        The `path` of GPT2.from_pretrained, or a ModelSpec. Each machine needs the files.
    column, template
        The column of the prompts, texts or lists of ids; or a template over columns, as in
        `gpt2c batch`.
    number_column, seed
        A column of integers from 0 that are all different. A row's seed is derived from its number
        and `seed`; so sampling needs it. `gpt2c batch` numbers its rows from 0, and with the same
        numbers gives the same texts.
    pool
        The actors.
    options
        Those of GPT2.complete, except callback, logits_processor, max_time and seed; `with_ids`
        adds the column generated_ids.

    Raises MissingDependencyError without Ray, OptionError and OptionTypeError; the options of
    GPT2.complete are checked where the model is, when the dataset is read.
    """
    task = Task("generate", column, options, template=template, seed=seed)
    return run_task(ds, task, model, number_column=number_column, pool=pool)


def score(
    ds: Dataset,
    model: str | ModelSpec | None = None,
    *,
    column: str = "text",
    template: str | None = None,
    pool: Pool | None = None,
    **options: OptionValue,
) -> Dataset:
    """Score the text of each row; return the dataset with columns added.

    The columns are tokens, scored, total (nats), perplexity, bits_per_byte, more for some options,
    and error: null, or why the row is bad; then the others are null.

    The arguments are those of `generate`; options are those of GPT2.score that JSON can hold, and
    `with_tokens`, which adds the columns ids, logprobs, ranks and entropies.
    """
    task = Task("score", column, options, template=template)
    return run_task(ds, task, model, pool=pool)


def run_task(
    ds: Dataset,
    task: Task,
    model: str | ModelSpec | None = None,
    *,
    number_column: str | None = None,
    pool: Pool | None = None,
) -> Dataset:
    """Do any Task with each row; return the dataset with the task's columns and `error` added.

    A row becomes several if the task writes several for it. `id_column` and `keep` of the task are
    not used: all columns are kept. Raises what `generate` raises.
    """
    pool = pool or Pool()
    spec = model if isinstance(model, ModelSpec) else ModelSpec(model)
    import_ray()
    return ds.map_batches(
        TaskBatches,
        fn_constructor_kwargs={
            "task": replace(task, keep=(), id_column=None),
            "spec": with_threads(spec, pool.num_cpus),
            "number_column": number_column,
        },
        **pool.arguments(),
    )


class TaskBatches:
    """Does a task with batches of rows; Ray Data makes one in each actor."""

    def __init__(self, task: Task, spec: ModelSpec, number_column: str | None = None) -> None:
        """Load the model. Raises its errors, and those of a wrong option."""
        self._task, self._number_column = task, number_column
        model = spec.load()
        if task.kind == "generate" and number_column is None:
            check_not_sampled(task.options, model, "name number_column, a column of integers")
        self._worker = Worker(task, model)
        self._columns = {k: v for k, v in self._worker.columns.items() if k != ROW_COLUMN}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the batch with the task's columns.

        Raises TableError if it lacks a column that the task reads, or has one that it adds.
        """
        import pyarrow as pa

        names = list(needed_columns(self._task))
        if self._number_column is not None:
            names.append(self._number_column)
        for name in names:
            if name not in batch.column_names:
                raise TableError(
                    f"the dataset has no column {show(name)}; it has "
                    f"{', '.join(map(show, batch.column_names))}"
                )
        added = {**self._columns, ERROR_COLUMN: str}
        for name in added:
            if name in batch.column_names:
                raise TableError(
                    f"the dataset has a column {show(name)} already, which the task adds; rename it"
                )
        rows = [
            JobRow(self._number(cells), "a row", cells) for cells in batch.select(names).to_pylist()
        ]
        places: list[int] = []
        found: list[Mapping[str, Any]] = []
        for place, result in enumerate(self._worker.run(rows)):
            found += result.rows if result.error is None else [{ERROR_COLUMN: result.error}]
            places += [place] * (len(found) - len(places))
        table = batch.take(pa.array(places, pa.int64()))
        for name, kind in added.items():
            cells = [row.get(name) for row in found]
            table = table.append_column(name, pa.array(cells, _arrow_type(kind)))
        return table

    def _number(self, cells: Mapping[str, Any]) -> int:
        if self._number_column is None:
            return 0
        number = cells[self._number_column]
        if type(number) is not int or number < 0:
            raise TableError(
                f"column {show(self._number_column)} has {show(number)}, expected an integer from 0"
            )
        return number


def check_not_sampled(options: Mapping[str, Any], model: GPT2, advice: str) -> None:
    """Raise OptionError if these options of GPT2.complete sample: a row then needs a seed."""
    asking = asks_to_sample({**model.generation_defaults, **options})
    if asking:
        raise OptionError(
            f"{asking[0]} asks to sample, and nothing gives each row a seed of its own; {advice}"
        )


def _arrow_type(kind: ColumnType | None) -> pa.DataType | None:
    import pyarrow as pa

    types = {
        str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(),
        list: pa.list_(pa.int64()), list[int]: pa.list_(pa.int64()),
        list[float]: pa.list_(pa.float64()),
    }  # fmt: skip
    return None if kind is None else types[kind]
