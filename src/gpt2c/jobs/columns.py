"""The columns of a job's results: all shards have the same ones, of the same types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import TableError
from gpt2c.jobs.inputs import ReadingOptions, check_columns, open_input
from gpt2c.jobs.rows import RowResult
from gpt2c.jobs.task import Task
from gpt2c.jobs.template import Template
from gpt2c.tables import Cell, Columns, ColumnType
from gpt2c.tables.table import RowError, with_added

# The rows of JSON lines from which the columns of a table are taken.
SAMPLED_ROWS: Final = 1000
_NAMES: Final[dict[ColumnType | None, str]] = {
    str: "text", int: "an integer", float: "a number", bool: "a bool",
    list[int]: "a list of integers", list[float]: "a list of numbers", list: "a list of integers",
}  # fmt: skip
_INT64: Final = 1 << 63


def needed_columns(task: Task) -> tuple[str, ...]:
    """Return the columns that a task reads."""
    used = [task.column] if task.template is None else [*Template(task.template).columns]
    used += [name for name in (task.context_column, task.id_column) if name is not None]
    return tuple(dict.fromkeys([*used, *(task.keep or ())]))


def carried_columns(
    names: Sequence[str], task: Task, options: ReadingOptions, format: str
) -> dict[str, ColumnType | None]:
    """Return the columns that the results have from the inputs, with their types.

    Those of the first input come first. A column of JSON lines has the type of its cells in the
    first rows, for a table; in JSON lines, columns need no types, and the result is not used.

    Raises TableError if an input lacks a column that the task reads, and what open_rows raises.
    """
    found: dict[str, ColumnType | None] = {}
    for name in names:
        with open_input(name, options) as rows:
            check_columns(rows.types, needed_columns(task), name)
            if rows.types is not None:
                types: Columns = rows.types
            elif format == "jsonl":
                continue
            else:
                types = _types_of(_first_rows(rows.rows), format)
        for column, kind in types.items():
            known = found.get(column, kind)
            found[column] = kind if known == kind else _common(known, kind)
    if task.keep is not None:
        found = {name: found.get(name) for name in task.keep}
    if format == "parquet":
        found = {name: kind or str for name, kind in found.items()}
    return found


def result_columns(carried: Columns, added: Columns, name: str) -> dict[str, ColumnType | None]:
    """Return all columns of the results. Raises TableError if the inputs have an added one."""
    first = {key: kind for key, kind in added.items() if key == "row"}
    rest = {key: kind for key, kind in added.items() if key not in first}
    with_added(name, carried, first)
    return with_added(name, {**first, **carried}, rest)


def fitted(result: RowResult, columns: Columns, format: str) -> RowResult:
    """Return a result whose cells fit the columns of a table, or a failed one.

    In Parquet, a cell of a text column that is no text becomes JSON. JSON lines take any cell.
    """
    try:
        rows = [dict(_fitted_cells(row, columns, format)) for row in result.rows]
    except (TableError, UnicodeEncodeError) as error:
        reason = str(error)
        if isinstance(error, UnicodeEncodeError):
            reason = "a cell has an unpaired surrogate, which is not Unicode; remove it"
        return RowResult(result.number, result.place, [], reason, id=result.id)
    return RowResult(
        result.number, result.place, rows, result.error, result.tokens, result.new_tokens,
        result.id,
    )  # fmt: skip


def _fitted_cells(
    row: Mapping[str, Cell], columns: Columns, format: str
) -> Iterator[tuple[str, Cell]]:
    for name, cell in row.items():
        text = cell if isinstance(cell, str) else None
        if isinstance(cell, list | dict):
            text = json.dumps(cell, ensure_ascii=False)
        if text is not None and not text.isascii():
            text.encode()  # raises UnicodeEncodeError
        if format == "jsonl":
            yield name, cell
            continue
        if name not in columns:
            raise TableError(
                f"has the column {show(name)}, which the first {SAMPLED_ROWS} rows lack; name the "
                "columns with the option keep, or write JSON lines"
            )
        if format != "parquet" and text is not None and "\0" in text:
            raise TableError(
                f"column {show(name)} has a NUL character, which readers of CSV refuse; write JSON "
                "lines or Parquet"
            )
        yield name, _fitted_cell(name, cell, columns[name]) if format == "parquet" else cell


def _fitted_cell(name: str, cell: Cell, kind: ColumnType | None) -> Cell:
    if cell is None or kind is None:
        return cell
    if kind is str:
        return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    if kind is float and type(cell) is int:
        return float(cell)
    wanted: type = {int: int, float: float, bool: bool}.get(kind, list)
    is_right = type(cell) is wanted
    if is_right and type(cell) is int:
        is_right = -_INT64 <= cell < _INT64
    elif is_right and isinstance(cell, list):
        allowed = (int, float, type(None)) if kind == list[float] else (int, type(None))
        is_right = all(type(item) in allowed for item in cell)
    if not is_right:
        raise TableError(
            f"column {show(name)} has {show(cell)}, expected {_NAMES[kind]}, as in the first "
            f"{SAMPLED_ROWS} rows; write JSON lines"
        )
    return cell


def _first_rows(rows: Iterator[Mapping[str, Cell]]) -> Iterator[Mapping[str, Cell]]:
    for _ in range(SAMPLED_ROWS):
        try:
            row = next(rows, None)
        except RowError:
            continue
        if row is None:
            return
        yield row


def _types_of(rows: Iterator[Mapping[str, Cell]], format: str) -> dict[str, ColumnType | None]:
    found: dict[str, ColumnType | None] = {}
    known: set[str] = set()
    for row in islice(rows, SAMPLED_ROWS):
        for name, cell in row.items():
            found.setdefault(name, None)
            if cell is not None:
                kind = _type_of(cell)
                found[name] = _common(found[name], kind) if name in known else kind
                known.add(name)
    return found


def _type_of(cell: Cell) -> ColumnType | None:
    if isinstance(cell, bool):
        return bool
    for kind in (str, int, float):
        if isinstance(cell, kind):
            return kind
    if isinstance(cell, list) and all(type(item) is int for item in cell):
        return list[int]
    if isinstance(cell, list) and all(type(item) in (int, float) for item in cell):
        return list[float]
    return None


def _common(first: ColumnType | None, second: ColumnType | None) -> ColumnType | None:
    """Return a type that holds cells of both types; None, of any cells, if there is none."""
    if first == second:
        return first
    kinds = {first, second}
    if kinds == {int, float}:
        return float
    return list[float] if kinds == {list[int], list[float]} else None
