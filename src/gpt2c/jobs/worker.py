"""Does a task with rows: rows in, results out, whichever rows come together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import (
    BackendError,
    CacheMemoryError,
    ClosedError,
    Error,
    ForkError,
    MissingDependencyError,
    TableError,
)
from gpt2c.jobs.measures import Found, Given, Measure, measure_of
from gpt2c.jobs.rows import JobRow, RowResult
from gpt2c.jobs.task import Task, row_seed
from gpt2c.jobs.template import Template
from gpt2c.model import GPT2
from gpt2c.tables import Cell, ColumnType, TextOrIds
from gpt2c.tables.table import missing_column

# Errors that are not a row's own: the job ends.
_FATAL: Final = (BackendError, CacheMemoryError, ClosedError, ForkError, MissingDependencyError)
ROW_COLUMN: Final = "row"


class Worker:
    """A model and a task.

    columns
        The columns that the task adds to the rows, with their types.
    """

    def __init__(self, task: Task, model: GPT2) -> None:
        """Raises OptionError or OptionTypeError for an option that the model's call refuses."""
        self._task, self._model = task, model
        self._template = None if task.template is None else Template(task.template)
        self._measure: Measure = measure_of(task, model)
        self.columns: dict[str, ColumnType | None] = {
            **({ROW_COLUMN: int} if task.id_column is None else {}),
            **self._measure.columns,
        }

    def run(self, rows: Sequence[JobRow]) -> list[RowResult]:
        """Return the result of each row, in the rows' order.

        A bad row has a result with an error. Raises CacheMemoryError, ClosedError and other errors
        that are not a row's own.
        """
        results: dict[int, RowResult] = {}
        prepared: list[Given] = []
        for index, row in enumerate(rows):
            try:
                if row.error is not None:
                    raise TableError(row.error)
                prepared.append(self._prepare(index, row))
            except _FATAL:
                raise
            except Error as error:
                results[index] = self._failed(row, error)
        # Texts of similar lengths fill passes together; long ones first, so that none is left over.
        prepared.sort(key=lambda p: -p.n_tokens)
        for item, found in self._found(prepared):
            row = rows[item.index]
            if isinstance(found, Error):
                results[item.index] = self._failed(row, found)
            else:
                results[item.index] = self._result(row, item, found)
        return [results[index] for index in range(len(rows))]

    def count_tokens(self, rows: Sequence[JobRow]) -> list[int | None]:
        """Return the number of tokens of each row's text; None for a bad row."""
        counts: list[int | None] = []
        for index, row in enumerate(rows):
            try:
                bad = row.error is not None
                counts.append(None if bad else self._prepare(index, row).n_tokens)
            except _FATAL:
                raise
            except Error:
                counts.append(None)
        return counts

    def _prepare(self, index: int, row: JobRow) -> Given:
        """Make the text of a row. Raises an Error that is the row's own."""
        task, cells = self._task, row.cells
        if task.id_column is not None and cells.get(task.id_column) is None:
            raise TableError(missing_column(task.id_column, tuple(cells)))
        for column in self._kept(cells):
            if column in self.columns:
                raise TableError(
                    f"has a column {show(column)} already, and the result has one too; rename it, "
                    "or leave it out with the option keep"
                )
        text = self._text_of(cells)
        context = ""
        if task.context_column is not None:
            cell = cells.get(task.context_column)
            if not isinstance(cell, str):
                raise TableError(
                    f"column {show(task.context_column)} must be text, found {show(cell)}"
                )
            context = cell
        n_tokens = self._measure.check(text)
        return Given(index, text, n_tokens, context, row_seed(task.seed, row.number))

    def _text_of(self, cells: dict[str, Cell]) -> TextOrIds:
        if self._template is not None:
            return self._template.fill(cells)
        column = self._task.column
        if column not in cells:
            raise TableError(missing_column(column, tuple(cells)))
        cell = cells[column]
        if isinstance(cell, str):
            return cell
        if isinstance(cell, list):
            ids = [id for id in cell if type(id) is int]
            if len(ids) == len(cell):
                return ids
        raise TableError(
            f"column {show(column)}: expected a text or a list of ids, found {show(cell)}"
        )

    def _found(self, items: list[Given]) -> list[tuple[Given, Found | Error]]:
        """Measure the texts in one call; if it fails, find the text that is to blame by halves."""
        if not items:
            return []
        try:
            found = self._measure.run(items)
        except _FATAL:
            raise
        except Error as error:
            if len(items) == 1:
                return [(items[0], error)]
            middle = len(items) // 2
            return self._found(items[:middle]) + self._found(items[middle:])
        return list(zip(items, found, strict=True))

    def _kept(self, cells: dict[str, Cell]) -> dict[str, Cell]:
        keep = self._task.keep
        return cells if keep is None else {name: cells.get(name) for name in keep}

    def _result(self, row: JobRow, item: Given, found: Found) -> RowResult:
        before = dict(self._kept(row.cells))
        if self._task.id_column is None:
            before = {ROW_COLUMN: row.number + 1, **before}
        rows = [{**before, **cells} for cells in found.rows]
        id = None if self._task.id_column is None else row.cells.get(self._task.id_column)
        return RowResult(row.number, row.place, rows, None, item.n_tokens, found.new_tokens, id)

    def _failed(self, row: JobRow, error: Error) -> RowResult:
        id = None if self._task.id_column is None else row.cells.get(self._task.id_column)
        return RowResult(row.number, row.place, [], " ".join(str(error).split()), id=id)
