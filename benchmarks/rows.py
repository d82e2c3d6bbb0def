"""Times full decode steps of 8 to 256 sequences, and whole calls; the numbers take turns.

    python benchmarks/rows.py CHECKPOINT [--dtype int8] [--sequences 8,64,256] [--repeats 5]

A step of N sequences decodes one token of each. In a whole call, prompts are fed beside sequences
that decode already, so a step has fewer decoding rows at the call's beginning and end. Only the
steps between the last sequence's first token and the first sequence's last token count as full.
Prints the median tokens per second of full steps, and of whole calls.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from gpt2c import GPT2

PROMPT_TOKENS = 16


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sequences", default="8,16,32,64,128,256", metavar="N,N,...")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


class Clock:
    """Notes when each step of a call ends, and how many sequences it decoded."""

    def __init__(self, n_sequences: int, n_new: int) -> None:
        self.n_sequences, self.n_new = n_sequences, n_new
        self.n_begun = self.n_finished = 0
        self.times: list[float] = []  # when each token of the last sequence to begin was there

    def __call__(self, index: int, ids: list[int]) -> bool:
        self.n_begun += len(ids) == 1
        self.n_finished += len(ids) == self.n_new
        if self.n_begun == self.n_sequences and not self.n_finished and index == 0:
            self.times.append(time.perf_counter())
        return False

    def rate(self) -> float:
        """Return the tokens per second of the median step; NaN if fewer than 4 steps were full."""
        if len(self.times) < 4:
            return float("nan")
        return self.n_sequences / float(np.median(np.diff(self.times)))


def measure(model: GPT2, n_sequences: int, n_new: int) -> tuple[float, float]:
    """Return the tokens per second of full steps and of a whole call."""
    ids = np.random.default_rng(0).integers(
        0, model.config.vocab_size, (n_sequences, PROMPT_TOKENS)
    )
    clock = Clock(n_sequences, n_new)
    begin = time.perf_counter()
    texts = model.generate(
        ids.tolist(), max_new_tokens=n_new, draft=None, batch_size=n_sequences, callback=clock
    )
    seconds = time.perf_counter() - begin
    return clock.rate(), sum(map(len, texts)) / seconds


def main() -> None:
    options = parse()
    sizes = [int(n) for n in options.sequences.split(",")]
    with GPT2.from_pretrained(
        options.checkpoint, dtype=options.dtype, threads=options.threads
    ) as model:
        found: dict[int, list[tuple[float, float]]] = {n: [] for n in sizes}
        for repeat in range(-1, options.repeats):  # repeat -1 is a warm-up
            for n in sizes:
                rates = measure(model, n, options.new_tokens)
                if repeat >= 0:
                    found[n].append(rates)
    print(f"{options.dtype}, prompts of {PROMPT_TOKENS}, {options.new_tokens} new tokens; tokens/s")
    print("sequences  full steps  whole calls")
    for n, rates in found.items():
        steps, whole = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"{n:9}  {steps:10.0f}  {whole:11.0f}")


if __name__ == "__main__":
    main()
