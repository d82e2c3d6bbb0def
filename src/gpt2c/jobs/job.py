"""A job: reads rows, has them done, writes shards, and goes on where an earlier start ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Final, TypeAlias

import gpt2c
from gpt2c.checks.names import choice
from gpt2c.checks.options import INT32_MAX, integer
from gpt2c.checks.untrusted import parse_json
from gpt2c.errors import OptionError, TableError
from gpt2c.jobs.columns import carried_columns, fitted, result_columns
from gpt2c.jobs.folder import Folder, open_folder
from gpt2c.jobs.inputs import (
    InputRows,
    ReadingOptions,
    check_unchanged,
    expand_names,
    identify,
    sha256_of,
)
from gpt2c.jobs.manifest import (
    VERSION,
    Facts,
    check_same,
    read_manifest,
    task_facts,
    write_manifest,
)
from gpt2c.jobs.rows import JobRow, RowResult
from gpt2c.jobs.task import Task
from gpt2c.jobs.windows import windows
from gpt2c.tables import Columns, ColumnType, create_table
from gpt2c.tables.formats import TABLE_FORMATS, format_of_suffix

# Does windows of rows, lazily, and yields the results of each in the order of the windows.
Runner: TypeAlias = Callable[[Iterator[list[JobRow]]], Iterator[list[RowResult]]]

# The default number of rows in a shard. A kill loses at most the work of one shard.
_SHARD_ROWS: Final = {"generate": 1024}
_OTHER_SHARD_ROWS: Final = 8192
_PROGRESS: Final = ".progress"
_SUFFIXES: Final = {None: "", "gzip": ".gz", "zstd": ".zst"}


@dataclass(frozen=True)
class OutputOptions:
    """How to write the results.

    format
        "jsonl", "csv", "tsv" or "parquet"; default: that of the first input, or JSON lines.
    compression
        None, "gzip" or "zstd"; Parquet compresses by itself.
    shard_rows
        The number of the inputs' rows in a shard; default: 1,024 to generate, else 8,192.
    missing
        What CSV and TSV have for a missing value.
    max_errors
        The number of bad rows that end the job when there are more; None for no limit.
    """

    format: str | None = None
    compression: str | None = None
    shard_rows: int | None = None
    missing: str = ""
    max_errors: int | None = None


@dataclass
class Progress:
    """How far a job is. Counts are of this start alone, except `rows_before`.

    rows, bad_rows
        The rows that were done, and how many of them are bad.
    rows_before
        The rows that earlier starts did.
    tokens, new_tokens
        The tokens that were read and generated.
    bytes_read, n_bytes
        How much of the inputs was read, and their size.
    """

    rows: int = 0
    bad_rows: int = 0
    rows_before: int = 0
    tokens: int = 0
    new_tokens: int = 0
    bytes_read: int = 0
    n_bytes: int = 0


@dataclass
class Job:
    """A task with all rows of the inputs, whose results go to a folder.

    inputs
        Names and patterns of files and URLs.
    output
        The folder, or its URL.
    """

    task: Task
    inputs: Sequence[str]
    output: str
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    writing: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        """Raises OptionError, OptionTypeError and OSError."""
        writing = self.writing
        self.names = expand_names(self.inputs)
        self.format = writing.format
        if self.format is None:
            found = self.reading.format or format_of_suffix(self.names[0])
            self.format = "jsonl" if found in (None, "txt") else found
        choice("format", self.format, TABLE_FORMATS)
        if writing.compression is not None:
            choice("compression", writing.compression, ("gzip", "zstd"))
            if self.format == "parquet":
                raise OptionError("compression is for text; Parquet compresses by itself")
        default = _SHARD_ROWS.get(self.task.kind, _OTHER_SHARD_ROWS)
        rows = default if writing.shard_rows is None else writing.shard_rows
        self.shard_rows = integer("shard_rows", rows, 1, INT32_MAX)
        if writing.max_errors is not None:
            integer("max_errors", writing.max_errors, 0, INT32_MAX)

    def run(
        self,
        facts: Facts,
        added: Columns,
        runner: Runner,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Do all rows that are not done yet, and return what this start did.

        `facts` are those of the model (`manifest.model_facts`), `added` the columns of the Worker,
        and `report` is called after each window.

        Raises OptionError if the folder is in use or has another job, TableError for an input that
        cannot be read or too many bad rows, OSError, and what the runner raises. Whatever happens,
        the same job goes on where this start ended.
        """
        with open_folder(self.output) as folder:
            old = read_manifest(folder)
            folder.remove_leftovers()
            known = {item["name"]: item for item in old["inputs"]} if old else {}
            inputs = [identify(name, known.get(name)) for name in self.names]
            begun = old is not None
            carried = carried_columns(self.names, self.task, self.reading, str(self.format))
            columns = result_columns(carried, added, self.names[0])
            new = self._facts(facts, inputs, columns)
            if old is not None:
                check_same(folder, old, new)
                new = {**new, "model": old["model"], "inputs": old["inputs"]}
            if old is not None and old["complete"]:
                folder.delete(_PROGRESS)
                return Progress(rows_before=old["rows"])
            if not begun:
                write_manifest(folder, new)
            sizes = [int(item["bytes"] or 0) for item in inputs]
            run = _Run(self, folder, columns, sizes, new, report)
            run.write_shards(runner)
            for found in inputs:
                check_unchanged(found)
            return run.finish()

    def _facts(self, model: Facts, inputs: Sequence[Any], columns: Columns) -> Facts:
        reading, writing = self.reading, self.writing
        output: Facts = {
            "format": self.format,
            "compression": writing.compression,
            "shard_rows": self.shard_rows,
            "missing": writing.missing,
        }
        if self.format != "jsonl":
            output["columns"] = {name: _type_name(kind) for name, kind in columns.items()}
        if self.format == "parquet":
            import pyarrow

            output["pyarrow"] = pyarrow.__version__
        output["reading"] = {
            "column": reading.column,
            "format": reading.format,
            "delimiter": reading.delimiter,
            "max_line_bytes": reading.limits.line_bytes,
        }
        return {
            "version": VERSION,
            "gpt2c": gpt2c.__version__,
            "complete": False,
            "task": task_facts(self.task),
            "output": output,
            "model": model,
            "inputs": list(inputs),
        }


def _type_name(kind: ColumnType | None) -> str:
    return "any" if kind is None else kind.__name__ if isinstance(kind, type) else str(kind)


class _Run:
    """One start of a job, in its locked folder."""

    def __init__(
        self,
        job: Job,
        folder: Folder,
        columns: Columns,
        sizes: Sequence[int],
        facts: Facts,
        report: Callable[[Progress], None],
    ) -> None:
        self._job, self._folder, self._columns = job, folder, columns
        self._facts, self._report = facts, report
        self._records = self._read_records()
        rows = InputRows(
            job.names, sizes, job.reading, lambda number: number // job.shard_rows in self._records
        )
        self._rows = rows
        before = sum(record["read"] for record in self._records.values())
        self._progress = Progress(rows_before=before, n_bytes=rows.n_bytes)
        self._n_errors = sum(record["errors"] for record in self._records.values())

    def write_shards(self, runner: Runner) -> None:
        """Have the rows of missing shards done, and write the shards."""
        waiting = windows(self._rows, self._job.shard_rows)
        results = chain.from_iterable(self._counted(runner(waiting)))
        # A missing shard has shard_rows results, the last one fewer. So a shard is finished without
        # waiting for the results of the next.
        while (first := next(results, None)) is not None:
            shard = first.number // self._job.shard_rows
            of_shard = chain([first], islice(results, self._job.shard_rows - 1))
            self._records[shard] = self._write_shard(shard, of_shard)

    def finish(self) -> Progress:
        """Write the final manifest."""
        n_shards = -(-self._rows.n_rows // self._job.shard_rows)
        records = [self._records[shard] for shard in range(n_shards)]
        totals = {key: sum(record[key] for record in records)
                  for key in ("written", "errors", "tokens", "new_tokens")}  # fmt: skip
        final = {
            **self._facts,
            "complete": True,
            "rows": self._rows.n_rows,
            **totals,
            "shards": records,
        }
        write_manifest(self._folder, final)
        self._folder.delete(_PROGRESS)
        return self._progress

    def _read_records(self) -> dict[int, Facts]:
        """Return the records of finished shards whose files are there."""
        found: dict[int, Facts] = {}
        for name in self._folder.names(_PROGRESS):
            raw = self._folder.read(f"{_PROGRESS}/{name}")
            record: Any = parse_json(raw or b"null")
            if record and self._folder.size(record["file"]) == record["bytes"]:
                found[record["shard"]] = record
        return found

    def _counted(self, windows: Iterable[list[RowResult]]) -> Iterator[list[RowResult]]:
        progress = self._progress
        for results in windows:
            progress.rows += len(results)
            progress.tokens += sum(result.tokens for result in results)
            progress.new_tokens += sum(result.new_tokens for result in results)
            progress.bytes_read = self._rows.n_read()
            self._report(progress)
            yield results

    def _write_shard(self, shard: int, results: Iterator[RowResult]) -> Facts:
        """Write a shard and the file of its errors, then the record that it is finished."""
        job, folder = self._job, self._folder
        assert job.format is not None
        suffix = f"{job.format}{_SUFFIXES[job.writing.compression]}"
        name, errors_name = f"shard-{shard:06d}.{suffix}", f"errors-{shard:06d}.jsonl"
        errors: list[Facts] = []
        record: Facts = {
            "shard": shard, "file": name, "bytes": 0, "sha256": "", "read": 0, "written": 0,
            "errors": 0, "tokens": 0, "new_tokens": 0,
        }  # fmt: skip
        with folder.place(name) as path:
            with self._open_table(path) as table:
                for result in results:
                    fit = fitted(result, self._columns, job.format)
                    record["read"] += 1
                    record["tokens"] += fit.tokens
                    record["new_tokens"] += fit.new_tokens
                    if fit.error is not None:
                        errors.append(_error_entry(fit, job.task.id_column))
                        self._count_error(errors_name, errors)
                    for row in fit.rows:
                        table.write(row)
                        record["written"] += 1
            record["sha256"], record["bytes"] = sha256_of(path), os.stat(path).st_size
        record["errors"] = len(errors)
        if errors:
            self._write_errors(errors_name, errors)
        elif folder.size(errors_name) is not None:
            folder.delete(errors_name)  # of a start that --max-errors ended
        folder.write(f"{_PROGRESS}/{shard:06d}.json", json.dumps(record).encode())
        return record

    def _open_table(self, path: str) -> AbstractContextManager[Any]:
        job = self._job
        model, task = self._facts["model"], self._facts["task"]
        return create_table(
            path, self._columns, format=job.format, missing=job.writing.missing,
            metadata={
                "gpt2c": gpt2c.__version__, "arithmetic": gpt2c.ARITHMETIC,
                "model": model["name"], "model_sha256": model["sha256"],
                "dtype": model["dtype"], "backend": model["backend"],
                "task": json.dumps(task, ensure_ascii=False),
            },
        )  # fmt: skip

    def _count_error(self, name: str, errors: list[Facts]) -> None:
        """Raise TableError if there are too many errors, after writing those of the shard."""
        self._n_errors += 1
        self._progress.bad_rows += 1
        limit = self._job.writing.max_errors
        if limit is not None and self._n_errors > limit:
            self._write_errors(name, errors)
            last = errors[-1]
            raise TableError(
                f"more than {limit} bad rows (max_errors), the last one {last['place']}: "
                f"{last['error']}; {self._folder.name}/{name} lists those of its shard"
            )

    def _write_errors(self, name: str, errors: list[Facts]) -> None:
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in errors)
        self._folder.write(name, "".join(lines).encode("utf-8", "backslashreplace"))


def _error_entry(result: RowResult, id_column: str | None) -> Facts:
    id = {} if id_column is None else {"id": result.id}
    return {"row": result.number + 1, **id, "place": result.place, "error": result.error}
