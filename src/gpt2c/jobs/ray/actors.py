"""The actor that holds a model, for windows of rows."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace

import gpt2c
from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.jobs.manifest import Facts, model_facts
from gpt2c.jobs.model_spec import ModelSpec
from gpt2c.jobs.rows import JobRow, RowResult
from gpt2c.jobs.task import Task
from gpt2c.jobs.worker import Worker


def with_threads(spec: ModelSpec, threads: int | None) -> ModelSpec:
    """Return a ModelSpec with this number of threads, unless it names one or `threads` is None."""
    if threads is None or spec.arguments.get("threads") is not None:
        return spec
    return replace(spec, arguments={**spec.arguments, "threads": threads})


class ModelActor:
    """A model in a process of its own. Nothing is loaded before `load`, so its errors arrive."""

    def __init__(self, task: Task, spec: ModelSpec) -> None:
        """Take the task and the model; call `load` next."""
        self._task, self._spec = task, spec
        self._worker: Worker | None = None

    def load(self, facts: Facts, version: str) -> None:
        """Load the model. Raises CheckpointError if it is not the driver's, or gpt2c is not."""
        machine = platform.node()
        if version != gpt2c.__version__:
            raise CheckpointError(
                f"machine {machine} has gpt2c {gpt2c.__version__}, and the driver {version}; "
                "install the same one everywhere"
            )
        model = self._spec.load()
        found = model_facts(model, self._task, self._spec.model)
        for name, value in facts.items():
            if found.get(name) != value:
                raise CheckpointError(
                    f"{show(found['name'])} on machine {machine} is not the driver's model: its "
                    f"{name} is {show(found.get(name))}, expected {show(value)}; copy the same "
                    "files to every machine"
                )
        self._worker = Worker(self._task, model)

    def run(self, rows: Sequence[JobRow]) -> list[RowResult]:
        """Return the results of the rows, as Worker.run does."""
        assert self._worker is not None
        return self._worker.run(rows)
