"""Jobs larger than a call: files of any size, restarts after any end, the same bytes each time.

`gpt2c batch` is the command. docs/jobs.md describes the files that a job writes.
"""

from gpt2c.jobs.job import Job, Progress, Runner
from gpt2c.jobs.model_spec import ModelSpec
from gpt2c.jobs.rows import JobRow, RowResult
from gpt2c.jobs.task import KINDS, Task, row_seed
from gpt2c.jobs.worker import Worker

__all__ = [
    "KINDS",
    "Job",
    "JobRow",
    "ModelSpec",
    "Progress",
    "RowResult",
    "Runner",
    "Task",
    "Worker",
    "row_seed",
]
