"""How long a job will take: all rows are read and their tokens counted, and a sample is done."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpt2c.checks.options import INT32_MAX, integer
from gpt2c.jobs.columns import needed_columns
from gpt2c.jobs.inputs import InputRows, check_columns, open_input
from gpt2c.jobs.job import Job, Progress
from gpt2c.jobs.rows import JobRow
from gpt2c.jobs.windows import windows
from gpt2c.jobs.worker import Worker
from gpt2c.tables.places import file_system, is_url


@dataclass(frozen=True)
class Estimate:
    """What a job would take.

    rows, bad_rows, tokens
        Counted exactly; rows are bad that cannot be read, or whose text no call can take.
    new_tokens, seconds
        Of the whole job, estimated from the sample; None without a good row.
    rows_per_second, tokens_per_second
        Of the sample; tokens are those that are read and generated.
    sample_rows, sample_seconds
        The number of rows that were measured, and their time.
    """

    rows: int
    bad_rows: int
    tokens: int
    new_tokens: int | None
    seconds: float | None
    rows_per_second: float | None
    tokens_per_second: float | None
    sample_rows: int
    sample_seconds: float


def estimate(
    job: Job,
    worker: Worker,
    sample_rows: int = 128,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Estimate:
    """Read the inputs of a job, measure a random sample of their rows, and write nothing.

    The sample is chosen by a fixed seed. The time of a text is taken to be proportional to its
    tokens; in generation, to those that are read and generated.

    Raises OptionError, TableError and OSError.
    """
    size = integer("sample_rows", sample_rows, 1, INT32_MAX)
    sizes = []
    for name in job.names:
        with open_input(name, job.reading) as opened:
            check_columns(opened.types, needed_columns(job.task), name)
        sizes.append(_size_of(name))
    rows = InputRows(job.names, sizes, job.reading)
    progress = Progress(n_bytes=rows.n_bytes)
    sample: list[tuple[JobRow, int]] = []
    chosen, n_good = random.Random(0), 0
    for window in windows(rows, INT32_MAX):
        for row, n_tokens in zip(window, worker.count_tokens(window), strict=True):
            progress.rows += 1
            if n_tokens is None:
                progress.bad_rows += 1
                continue
            progress.tokens += n_tokens
            n_good += 1
            place = len(sample) if len(sample) < size else chosen.randrange(n_good)
            if place == len(sample):
                sample.append((row, n_tokens))
            elif place < size:
                sample[place] = row, n_tokens
        progress.bytes_read = rows.n_read()
        report(progress)
    return _measured(worker, sample, progress)


def _measured(worker: Worker, sample: list[tuple[JobRow, int]], counted: Progress) -> Estimate:
    if not sample:
        return Estimate(counted.rows, counted.bad_rows, 0, None, None, None, None, 0, 0.0)
    worker.run([sample[0][0]])  # what the first call makes is not measured
    begin = time.perf_counter()
    results = worker.run([row for row, _ in sample])
    seconds = time.perf_counter() - begin
    n_tokens = sum(tokens for _, tokens in sample)
    n_new = sum(result.new_tokens for result in results)
    n_good = counted.rows - counted.bad_rows
    new_tokens = round(n_new * n_good / len(sample))
    share = (n_tokens + n_new) / max(counted.tokens + new_tokens, 1)
    return Estimate(
        counted.rows, counted.bad_rows, counted.tokens, new_tokens, seconds / max(share, 1e-12),
        len(sample) / seconds, (n_tokens + n_new) / seconds, len(sample), seconds,
    )  # fmt: skip


def _size_of(name: str) -> int:
    if is_url(name):
        system, path = file_system(name)
        return int(system.info(path).get("size") or 0)
    return os.stat(name).st_size
