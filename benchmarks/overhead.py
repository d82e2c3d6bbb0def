"""Measures Python's overhead in `stream`, and decoding while another process is busy.

    python benchmarks/overhead.py CHECKPOINT [--threads 2] [--repeats 5]

Prints how much longer a token takes in `stream` than in the engine alone, and the speed of decoding
while another process keeps a core busy, as a share of the speed without it. The runs with and
without the other process alternate.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np
from peers import Ids

import gpt2c
from gpt2c.cli.bench.speed import job_without_eos

N_NEW = 64
PROMPT = list(range(16))


def token_seconds(model: gpt2c.GPT2, ids: Ids, n_new: int) -> float:
    """Return the time per token when one call of the engine decodes all of them."""
    job = job_without_eos(model, np.array(ids, dtype=np.int32), n_new + 1)
    model._engine.run([job], 1)
    begin = time.perf_counter()
    model._engine.run([job], n_new)
    return (time.perf_counter() - begin) / n_new


def plain_seconds(model: gpt2c.GPT2) -> float:
    """Return the time per token in the engine alone."""
    return token_seconds(model, PROMPT, N_NEW)


def streamed_seconds(model: gpt2c.GPT2) -> float:
    """Return the time per token in `stream`, which returns to Python for each token."""
    stream = model.stream(PROMPT, max_new_tokens=N_NEW + 1)
    next(stream)
    begin = time.perf_counter()
    n = sum(1 for _ in stream)
    return (time.perf_counter() - begin) / n


def disturbed_seconds(model: gpt2c.GPT2) -> float:
    """Return plain_seconds while another process spins."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            time.sleep(0.3)
            return plain_seconds(model)
        finally:
            neighbour.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model = gpt2c.GPT2.from_pretrained(options.checkpoint, threads=options.threads)
    plain_seconds(model)
    plain, streamed, quiet, disturbed = [], [], [], []
    for _ in range(options.repeats):
        # Many short turns, because the difference is smaller than the machine's noise.
        for _ in range(5):
            plain.append(plain_seconds(model))
            streamed.append(streamed_seconds(model))
        quiet.append(plain_seconds(model))
        disturbed.append(disturbed_seconds(model))
    best, best_streamed = min(plain), min(streamed)
    print(f"{gpt2c.__version__}, {model.backend}, {model.threads} threads, {options.checkpoint}")
    print(f"per token: {1e6 * best:,.0f} us; streamed: {1e6 * best_streamed:,.0f} us "
          f"({best_streamed / best - 1:+.1%}; min of {len(plain)})")  # fmt: skip
    kept = [a / b for a, b in zip(quiet, disturbed, strict=True)]
    print(f"next to a busy process: {statistics.median(kept):.0%} of the quiet speed "
          f"({min(kept):.0%} to {max(kept):.0%})")  # fmt: skip


if __name__ == "__main__":
    main()
