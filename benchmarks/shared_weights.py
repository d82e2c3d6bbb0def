"""Measures processes that share weights: their memory, how they start, and how fast they decode.

    python benchmarks/shared_weights.py CHECKPOINT [--processes 4] [--dtype float32] [--repeats 5]

Prints the proportional set size (PSS) of 1 to N processes that each hold the model: a page that n
processes map counts as 1/n of its size for each. Then prints the time of from_pretrained in the
first and in later processes, and the speed of decoding in processes that take turns, as a share of
the speed with weights of its own: with shared weights on huge pages, with shared weights on
ordinary pages, and with the weights of a parent that has forked. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_THP_DISABLE = 41
N_NEW = 48

# A process: loads the model, and then decodes each time that it reads a line.
WORKER = """
import json, os, sys, time
import numpy as np
import gpt2c
from gpt2c.cli.bench.speed import job_without_eos
path, dtype, shared, forks, n_new = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
begin = time.perf_counter()
model = gpt2c.GPT2.from_pretrained(path, dtype=dtype, shared=bool(shared))
seconds = time.perf_counter() - begin
if forks:
    model.generate(list(range(16)), max_new_tokens=2)
    if os.fork():
        os.wait()
        sys.exit()
model.generate(list(range(16)), max_new_tokens=24)  # touches all weights, and packs them for drafts
def decode(n):
    job = job_without_eos(model, np.arange(16, dtype=np.int32), n + 1)
    model._engine.run([job], 1)
    begin = time.perf_counter()
    model._engine.run([job], n)
    return n / (time.perf_counter() - begin)
print(json.dumps({"seconds": seconds, "pid": os.getpid()}), flush=True)
for line in sys.stdin:
    print(json.dumps({"rate": decode(n_new)}), flush=True)
"""


class Worker:
    """A process that holds the model."""

    def __init__(
        self, options: argparse.Namespace, *, shared: bool, forks: bool = False, thp: bool = True
    ) -> None:
        numbers = [str(int(shared)), str(int(forks)), str(N_NEW)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, options.checkpoint, options.dtype, *numbers],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
            preexec_fn=None if thp else disable_huge_pages,
        )  # fmt: skip
        self.start = self.reply()

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def rate(self) -> float:
        """Return the tokens per second of decoding one text."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.reply()["rate"])

    def memory(self) -> dict[str, int]:
        """Return the sizes of smaps_rollup, in bytes."""
        text = Path(f"/proc/{self.start['pid']}/smaps_rollup").read_text()
        lines = [line.split() for line in text.splitlines()[1:]]
        return {name.rstrip(":"): 1024 * int(size) for name, size, *_ in lines}

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def disable_huge_pages() -> None:
    """Give this process and its files of memory ordinary pages only."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def print_memory(options: argparse.Namespace) -> None:
    """Print the PSS of 1 to N processes, and the times of from_pretrained."""
    print(
        "| processes | PSS each, own weights | PSS each, shared | PSS of all, shared | of one's |"
    )
    print("| --- | --- | --- | --- | --- |")
    own = Worker(options, shared=False)
    own_pss = own.memory()["Pss"] / 1e6
    workers: list[Worker] = []
    for n in range(1, options.processes + 1):
        workers.append(Worker(options, shared=True))
        total = sum(worker.memory()["Pss"] for worker in workers) / 1e6
        print(f"| {n} | {own_pss:.0f} MB | {total / n:.0f} MB | {total:.0f} MB | "
              f"{total / own_pss:.2f} |")  # fmt: skip
    huge = workers[-1].memory().get("ShmemPmdMapped", 0) / 1e6
    print(f"on huge pages in each process: {huge:.0f} MB")
    seconds = [worker.start["seconds"] for worker in workers]
    own_seconds, later = own.start["seconds"], max(seconds[1:], default=0)
    print(f"from_pretrained: own weights {own_seconds:.3f} s, the first {seconds[0]:.3f} s, "
          f"later ones at most {later:.3f} s")  # fmt: skip
    for worker in (own, *workers):
        worker.close()
    time.sleep(0.2)  # so that the memory is free
    last = Worker(options, shared=True)
    print(f"from_pretrained once the last one was killed: {last.start['seconds']:.3f} s, "
          "so nothing was left")  # fmt: skip
    last.close()


def print_rates(options: argparse.Namespace) -> None:
    """Print the speeds of decoding, as shares of the speed with own weights."""
    kinds: list[tuple[str, dict[str, bool]]] = [
        ("own weights", {"shared": False}),
        ("own weights, in a forked child", {"shared": False, "forks": True}),
        ("shared weights", {"shared": True}),
        ("shared weights, in a forked child", {"shared": True, "forks": True}),
    ]
    compare("", kinds, options)
    # The maker has ordinary pages; the measured process itself is an ordinary process.
    maker = Worker(options, shared=True, thp=False)
    compare(" (4 KB pages)", [kinds[0], kinds[2]], options)
    maker.close()


def compare(
    note: str, kinds: list[tuple[str, dict[str, bool]]], options: argparse.Namespace
) -> None:
    workers = [(name, Worker(options, **how)) for name, how in kinds]
    rates: dict[str, list[float]] = {name: [] for name, _ in workers}
    for _ in range(options.repeats):
        for name, worker in workers:
            rates[name].append(worker.rate())
    own = statistics.median(rates["own weights"])
    for name, values in rates.items():
        each = statistics.median(values)
        huge = dict(workers)[name].memory()
        suffix = note if name != "own weights" else ""
        n_huge = (huge["ShmemPmdMapped"] + huge["AnonHugePages"]) / 1e6
        print(f"{name + suffix:40s} {each:7.1f} tok/s ({min(values):.1f} - {max(values):.1f}), "
              f"{each / own:.2f} of own weights; {n_huge:.0f} MB on huge pages")  # fmt: skip
    for _, worker in workers:
        worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["memory", "rates"])
    options = parser.parse_args()
    if options.only != "rates":
        print_memory(options)
    if options.only != "memory":
        print_rates(options)


if __name__ == "__main__":
    main()
