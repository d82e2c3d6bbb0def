"""Measures decoding, batches and prefill with 1 to N threads, and predicts the speeds.

    python benchmarks/scaling.py CHECKPOINT [--threads 1,2,4,8] [--dtype int8] [--repeats 5]
    python benchmarks/scaling.py --shares

The predicted time with n threads is the longer of two times:
- computing: the measured time of one thread, divided by n, times the largest share of the work as a
  multiple of the mean share (the engine says which worker computes what);
- reading: the bytes of the weights, divided by the bandwidth that n threads reach on this machine.
Barriers and the caches are left out, so a speed below the prediction shows what they cost.

--shares prints the speed-up that the shares allow, for up to 128 threads and all sizes of GPT-2,
and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2c import GPT2, GPT2Config
from gpt2c.cli.bench.speed import job_without_eos
from gpt2c.engine import _engine

SIZES = {"124M": (768, 12), "355M": (1024, 16), "774M": (1280, 20), "1.5B": (1600, 25)}
N_LAYER = {"124M": 12, "355M": 24, "774M": 36, "1.5B": 48}
THREADS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
PANEL: int = _engine.NUMBERS["panel"]
PROMPT_ROWS = 256  # the rows of a pass of a long prompt
DEPTH = 16  # tokens in the KV cache before decoding
NEW_TOKENS = 24


@dataclass(frozen=True)
class Task:
    """What is measured: a pass has the rows of `feeds`, tuples (first position, n_rows)."""

    name: str
    feeds: list[tuple[int, int]]

    @property
    def n_rows(self) -> int:
        """The rows of a pass."""
        return sum(n for _, n in self.feeds)

    @property
    def n_logits(self) -> int:
        """The rows whose logits a pass computes."""
        return len(self.feeds)


TASKS = (
    Task("decode", [(DEPTH, 1)]),
    Task("batch of 32", [(DEPTH, 1)] * 32),
    Task("prefill", [(0, PROMPT_ROWS)]),
)


# ---- shares ----


def product_shares(n_rows: int, n: int, k: int, n_threads: int, tile_rows: int) -> tuple[int, int]:
    """Return the multiply-adds of (one thread, the largest share) of [n_rows, k] @ [k, n].

    A tile of r rows counts as r + 1 rows, because loading its weights takes time too.
    """

    def cost(worker: int, n_workers: int) -> int:
        share = _engine.product_rectangles(n_rows, -(-n // PANEL), tile_rows, worker, n_workers)
        return sum(
            (rows + -(-rows // tile_rows)) * (end - begin) * PANEL * k
            for begin_row, end_row, begin, end in share
            for rows in [end_row - begin_row]
        )

    return cost(0, 1), max(cost(worker, n_threads) for worker in range(n_threads))


def attention_shares(
    feeds: list[tuple[int, int]], n_head: int, head_dim: int, n_threads: int
) -> tuple[int, int]:
    """Return the multiply-adds of (one thread, the largest share) of attention in a layer."""
    positions = [first + i for first, n_rows in feeds for i in range(n_rows)]
    costs = []
    for worker in range(n_threads):
        share = _engine.attention_rectangles(feeds, n_head, worker, n_threads)
        costs.append(sum(
            2 * head_dim * (end - begin) * sum(p + 1 for p in positions[begin_row:end_row])
            for begin_row, end_row, begin, end in share
        ))  # fmt: skip
    return sum(costs), max(costs)


def steps_of(
    task: Task, n_embd: int, n_head: int, n_layer: int, n_vocab: int, n_threads: int, tile_rows: int
) -> dict[str, tuple[int, int]]:
    """Return, for each step of a pass, the multiply-adds of (one thread, the largest share)."""
    head_dim, steps = n_embd // n_head, {}
    products = {
        "c_attn": (3 * n_embd, n_embd),
        "attn.c_proj": (n_embd, n_embd),
        "c_fc": (4 * n_embd, n_embd),
        "mlp.c_proj": (n_embd, 4 * n_embd),
    }
    for name, (n, k) in products.items():
        if name == "c_attn" and n_head % n_threads == 0 and head_dim % PANEL == 0:
            continue  # each worker computes q, k and v of its heads: equal shares
        total, largest = product_shares(task.n_rows, n, k, n_threads, tile_rows)
        steps[name] = total * n_layer, largest * n_layer
    if "c_attn" not in steps:
        total, _ = product_shares(task.n_rows, 3 * n_embd, n_embd, 1, tile_rows)
        steps["c_attn"] = total * n_layer, total * n_layer // n_threads
    total, largest = attention_shares(task.feeds, n_head, head_dim, n_threads)
    steps["attention"] = total * n_layer, largest * n_layer
    steps["lm_head"] = product_shares(task.n_logits, n_vocab, n_embd, n_threads, tile_rows)
    return steps


def efficiency(steps: dict[str, tuple[int, int]], n_threads: int) -> float:
    """Return the mean share / the largest share, for all steps together."""
    return sum(total for total, _ in steps.values()) / (
        n_threads * sum(largest for _, largest in steps.values())
    )


def print_shares() -> None:
    """Print how close to linear the shares allow the speed-up to be, for each task and size."""
    tile_rows = 8
    for task in TASKS:
        print(f"\n{task.name}: the speed-up that the shares allow, in % of linear speed-up\n")
        print("| threads | " + " | ".join(SIZES) + " |")
        print("| --- |" + " --- |" * len(SIZES))
        for n in THREADS:
            cells = []
            for size, (n_embd, n_head) in SIZES.items():
                steps = steps_of(task, n_embd, n_head, N_LAYER[size], 50257, n, tile_rows)
                cells.append(f"{efficiency(steps, n):.0%}".replace("%", " %"))
            print(f"| {n} | " + " | ".join(cells) + " |")


# ---- measurements ----


def random_ids(config: GPT2Config, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, config.vocab_size, n, dtype=np.int32)


def seconds_per_pass(model: GPT2, task: Task, seed: int) -> float:
    """Return the seconds of a pass of `task`: in decoding, the mean over NEW_TOKENS passes."""
    engine, config = model._engine, model.config
    if task.name == "prefill":
        job = job_without_eos(model, random_ids(config, PROMPT_ROWS, seed), 1)
        begin = time.perf_counter()
        engine.run([job], 1)
        return time.perf_counter() - begin
    jobs = [
        job_without_eos(model, random_ids(config, DEPTH, seed + i), NEW_TOKENS + 1)
        for i in range(len(task.feeds))
    ]
    engine.run(jobs, 1)
    begin = time.perf_counter()
    engine.run(jobs, NEW_TOKENS)
    return (time.perf_counter() - begin) / NEW_TOKENS


def measure(options: argparse.Namespace) -> None:
    """Print a line for each number of threads and task, with speeds in tokens/s."""
    one: dict[str, float] = {}
    print(f"{'':14}{'threads':>8}{'measured':>12}{'predicted':>12}{'ratio':>8}{'speed-up':>10}")
    for n in options.threads:
        model = GPT2.from_pretrained(options.checkpoint, dtype=options.dtype, threads=n)
        c, tile_rows = model.config, _engine.tile_rows(model._engine.isa)
        for task in TASKS:
            seconds_per_pass(model, task, 0)  # warms up
            turns, rates = [], []
            for repeat in range(options.repeats):
                turns.append(seconds_per_pass(model, task, 100 * repeat + 1))
                rates.append(model._engine.stream_rate())
            seconds = statistics.median(turns)
            one.setdefault(task.name, seconds * n)
            steps = steps_of(task, c.n_embd, c.n_head, c.n_layer, c.vocab_size, n, tile_rows)
            computing = one[task.name] / n / efficiency(steps, n)
            reading = model.n_bytes / statistics.median(rates)
            # A single thread's measured time may include waiting for memory.
            predicted = max(computing, reading)
            speeds = f"{task.n_rows / seconds:12.1f}{task.n_rows / predicted:12.1f}"
            ratios = f"{predicted / seconds:8.2f}{one[task.name] / seconds:9.2f}x"
            print(f"{task.name:14}{n:8}{speeds}{ratios}", flush=True)
        model.close()


def main() -> None:
    options = arguments()
    if options.shares:
        print_shares()
    else:
        measure(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?")
    add("--shares", action="store_true", help="print what the shares allow, and measure nothing")
    add("--threads", type=lambda text: [int(n) for n in text.split(",")],
        default=[n for n in THREADS if n <= cpus],
        help="separated by commas, beginning with 1; default: up to the CPUs")  # fmt: skip
    add("--dtype", default="float32", choices=["float32", "int8", "int4"])
    add("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not options.shares and options.checkpoint is None:
        parser.error("name a checkpoint, or pass --shares")
    return options


if __name__ == "__main__":
    main()
