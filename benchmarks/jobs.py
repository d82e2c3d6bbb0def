"""Compares a job with one call of the model on the same texts in memory.

Usage: python benchmarks/jobs.py [MODEL] [--task generate|score|embed] [--rows N] [--new N]

The job reads JSON lines and writes shards; the call has a list. They alternate, and the times do
not include loading the model. The job's time includes hashing the input, and the seeds of rows.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from gpt2c.jobs import Job, ModelSpec, Task, Worker, row_seed
from gpt2c.jobs.manifest import model_facts


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--task", default="generate")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    chance = random.Random(0)
    words = ["the", "king", "said", "that", "a", "fox", "ran", "over", "seven", "hills"]
    texts = [" ".join(chance.choices(words, k=chance.randint(4, 40))) for _ in range(options.rows)]
    given = {"max_new_tokens": options.new} if options.task == "generate" else {}
    task = Task(options.task, options=given)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "in.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        with ModelSpec(options.model, {"threads": options.threads}).load() as model:
            worker, facts = Worker(task, model), model_facts(model, task, options.model)

            def call() -> None:
                if options.task == "generate":
                    seeds = [row_seed(0, number) for number in range(len(texts))]
                    model.complete(texts, seed=seeds, **given)
                else:
                    getattr(model, options.task)(texts)

            def job(number: int) -> None:
                job = Job(task, [str(path)], f"{name}/out{number}")
                job.run(facts, worker.columns, partial(map, worker.run))

            call()
            times: dict[str, list[float]] = {"call": [], "job": []}
            for number in range(options.repeats):
                for kind in ("call", "job") if number % 2 else ("job", "call"):
                    begin = time.perf_counter()
                    call() if kind == "call" else job(number)
                    times[kind].append(time.perf_counter() - begin)
    medians = {kind: median(found) for kind, found in times.items()}
    print(json.dumps({
        "task": options.task, "model": options.model or "tales", "rows": options.rows,
        "seconds": {kind: [round(t, 3) for t in found] for kind, found in times.items()},
        "job's speed / call's": round(medians["call"] / medians["job"], 3),
        "rows/s of the job": round(options.rows / medians["job"], 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
