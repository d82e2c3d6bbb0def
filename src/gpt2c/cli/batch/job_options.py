"""The options that all tasks of ``gpt2c batch`` have."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gpt2c.cli.options import model_arguments
from gpt2c.errors import OptionError
from gpt2c.tables.formats import TABLE_FORMATS, TEXT_FORMATS

if TYPE_CHECKING:
    from gpt2c.jobs import Job, ModelSpec

_MIB = 1 << 20


def add_job_options(parser: argparse.ArgumentParser, column: str) -> None:
    """Add the inputs and the options that say how to read and write; `column` is the default."""
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", help="JSON lines, CSV, TSV, Parquet, or text with a "
        "row on each line; .gz and .zst are expanded. A pattern such as 'part-*.jsonl', or a URL "
        "such as s3://bucket/name (needs fsspec), is an input too")  # fmt: skip
    add("--output", metavar="DIR", required=True, help="the folder, or its URL, for the results: "
        "shards, manifest.json, and the rows that failed")  # fmt: skip
    add("--column", metavar="NAME", default=column, help="the column of the texts, or lists of "
        f"ids; default: {column}")  # fmt: skip
    add("--template", metavar="TEXT", help="make each text of the row's columns instead, for "
        "example 'Question: {question}\\nAnswer:'; \\n is a line end")  # fmt: skip
    add("--id", metavar="NAME", help="the column that names a row; default: a column row is added, "
        "the row's number from 1")  # fmt: skip
    add("--keep", metavar="NAMES", help="the input's columns to carry along, separated by commas; "
        "default: all")  # fmt: skip
    add("--input-format", choices=TEXT_FORMATS, help="the format of the inputs; default: by their "
        "names, else txt")  # fmt: skip
    add("--delimiter", metavar="CHAR", help="the character between the cells of CSV and TSV "
        "inputs")  # fmt: skip
    add("--format", choices=TABLE_FORMATS, help="the format of the results; default: that of the "
        "first input, else jsonl")  # fmt: skip
    add("--compression", choices=("gzip", "zstd"), help="compress the results")
    add("--missing", metavar="TEXT", default="", help="what CSV and TSV have for a missing number")
    add("--shard-rows", type=int, metavar="N", help="rows of the inputs in a shard; a kill loses "
        "at most the work of one shard. Default: 1024 to generate, else 8192")  # fmt: skip
    add("--max-errors", type=int, metavar="N", help="end the job when more than N rows are bad; "
        "default: no limit")  # fmt: skip
    add("--max-line-bytes", type=int, metavar="N", default=16 * _MIB, help="the longest line or "
        "row of CSV; a longer one is a bad row. Default: 16 MiB")  # fmt: skip
    add("--max-expansion", type=int, metavar="N", default=200, help="how many times larger than "
        "its compressed form an input may be; default: 200")  # fmt: skip
    add("--max-rows", type=int, metavar="N", default=10**9, help="the max number of rows of all "
        "inputs; default: 1e9")  # fmt: skip
    add("--ray", metavar="ADDRESS", nargs="?", const="", help="do the rows on a Ray cluster: that "
        "at the address, such as 10.0.0.1:6379, or else the one that this machine belongs to. Put "
        "the option after the files. Needs pip install 'gpt2c[ray]'")  # fmt: skip
    add("--ray-cpus", type=int, metavar="N", help="the CPUs and threads of each actor of the "
        "cluster; default: one actor on each machine, with all its CPUs")  # fmt: skip
    add("--ray-actors", type=int, metavar="N", help="the max number of actors; default: as many "
        "as the cluster has room for")  # fmt: skip
    add("--dry-run", action="store_true", help="write nothing; count the rows and tokens, measure "
        "a sample, and print an estimate of the time as JSON")  # fmt: skip
    add("--sample-rows", type=int, metavar="N", default=128, help="the number of rows that "
        "--dry-run measures; default: 128")  # fmt: skip


def make_job(options: argparse.Namespace, arguments: dict[str, Any]) -> Job:
    """Return the job that the options describe; `arguments` are those of the model's call.

    Raises OptionError, OptionTypeError and OSError.
    """
    from gpt2c.checks.options import INT64_MAX, integer
    from gpt2c.jobs import Job, Task
    from gpt2c.jobs.inputs import ReadingOptions
    from gpt2c.jobs.job import OutputOptions
    from gpt2c.tables.source import Limits

    keep = options.keep
    task = Task(
        options.task, options.column, arguments,
        template=None if options.template is None else options.template.replace("\\n", "\n"),
        context_column=getattr(options, "context_column", None),
        keep=None if keep is None else tuple(name for name in keep.split(",") if name),
        id_column=options.id, seed=getattr(options, "seed", 0),
    )  # fmt: skip
    limits = Limits(
        integer("--max-line-bytes", options.max_line_bytes, 1, INT64_MAX),
        integer("--max-expansion", options.max_expansion, 1, INT64_MAX),
    )
    reading = ReadingOptions(
        options.column, options.input_format, options.delimiter, limits,
        integer("--max-rows", options.max_rows, 1, INT64_MAX),
    )  # fmt: skip
    writing = OutputOptions(
        options.format, options.compression, options.shard_rows, options.missing,
        options.max_errors,
    )  # fmt: skip
    if not options.output:
        raise OptionError("--output is empty; name a folder")
    return Job(task, options.files, options.output, reading, writing)


def model_spec(options: argparse.Namespace) -> ModelSpec:
    """Return the model that the options name."""
    from gpt2c.jobs import ModelSpec

    return ModelSpec(options.model, model_arguments(options))
