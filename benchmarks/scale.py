"""Measures what a machine does in a long job, and plans the time of a job on many machines.

    python benchmarks/scale.py measure CHECKPOINT [--dtypes float32,int8] [--threads 1,2]
    python benchmarks/scale.py plan --rows 1e9 --tokens-per-row 150 --rate 700 --machines 1000

`measure` prints new tokens per second of one call with many prompts, scored tokens per second of
one call with many texts, and the seconds to load the model. `plan` prints the time of a job on
clusters of several sizes, with all that it costs besides the tokens: docs/scale.md explains its
formulas, and each of its options is one of their symbols.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt2c import GPT2

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Job:
    """A job and a cluster: the symbols of docs/scale.md. Times are in seconds."""

    rows: float
    tokens_per_row: float  # new tokens of a row, or scored ones
    bytes_per_row: float  # read and written, together
    rate: float  # tokens per second of a machine
    piece_rows: float  # rows that go to an actor at a time
    start: float  # from the command to the first row on every machine
    driver_row: float  # the driver's own work for a row
    driver_bandwidth: float  # bytes per second that the driver's network takes
    lost_per_day: float  # losses of a machine per day
    replace: float  # from the loss of a machine until its replacement works
    detect: float  # from the loss of a machine until the driver knows
    slow: float  # how many times slower the slowest machine is
    is_ray_data: bool  # Ray Data does no piece twice, as gpt2c batch does for an idle actor

    @property
    def piece(self) -> float:
        """Seconds that a machine takes for a piece."""
        return self.piece_rows * self.tokens_per_row / self.rate

    def driver_limit(self) -> float:
        """Return the number of machines from which on the driver is the bottleneck."""
        per_row = max(self.driver_row, self.bytes_per_row / self.driver_bandwidth)
        return self.tokens_per_row / self.rate / per_row

    def share_lost(self) -> float:
        """Return the share of a machine's time that losses of machines cost."""
        # A loss costs half of the piece in work on average, the time until the driver knows, and
        # the time until the replacement works.
        per_loss = self.piece / 2 + self.detect + self.replace
        return min(1.0, self.lost_per_day * per_loss / DAY)

    def hours(self, machines: float) -> float:
        """Return the hours that the job takes on that number of machines."""
        tokens = self.rows * self.tokens_per_row
        working = min(machines, self.driver_limit())
        # At the end, all wait for the last pieces. One that a slow machine has is done again.
        tail = self.piece * (self.slow if self.is_ray_data else min(self.slow, 2))
        return (self.start + tokens / (working * self.rate * (1 - self.share_lost())) + tail) / 3600


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure this machine")
    measuring.add_argument("checkpoint")
    measuring.add_argument("--dtypes", default="float32,int8")
    measuring.add_argument("--threads", default="1,2")
    measuring.add_argument("--sequences", type=int, default=64)
    measuring.add_argument("--prompt-tokens", type=int, default=32)
    measuring.add_argument("--new-tokens", type=int, default=64)
    measuring.add_argument("--texts", type=int, default=16)
    measuring.add_argument("--text-tokens", type=int, default=256)
    measuring.add_argument("--repeats", type=int, default=3)
    planning = commands.add_parser("plan", help="plan a job")
    planning.add_argument("--rows", type=float, required=True)
    planning.add_argument("--tokens-per-row", type=float, required=True)
    planning.add_argument("--rate", type=float, required=True, help="tokens/s of a machine")
    planning.add_argument("--machines", default="1,10,100,1000", metavar="N,N,...")
    planning.add_argument("--bytes-per-row", type=float, default=800)
    planning.add_argument("--piece-rows", type=float, default=256)
    planning.add_argument("--start", type=float, default=60)
    planning.add_argument("--driver-row", type=float, default=36e-6)
    planning.add_argument("--driver-bandwidth", type=float, default=1e9)
    planning.add_argument("--lost-per-day", type=float, default=0.05)
    planning.add_argument("--replace", type=float, default=300)
    planning.add_argument("--detect", type=float, default=30)
    planning.add_argument("--slow", type=float, default=1.5)
    planning.add_argument("--is-ray-data", action="store_true")
    return parser.parse_args()


def median_rate(n_tokens: int, repeats: int, call: Callable[[], object]) -> float:
    """Return the tokens per second of the median call, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return n_tokens / statistics.median(seconds[1:])


def measure_model(model: GPT2, options: argparse.Namespace) -> tuple[float, float]:
    """Return the new and the scored tokens per second."""
    rng = np.random.default_rng(0)
    n_vocab = model.config.vocab_size
    prompts = rng.integers(0, n_vocab, (options.sequences, options.prompt_tokens)).tolist()
    texts = rng.integers(0, n_vocab, (options.texts, options.text_tokens)).tolist()
    n_new = options.new_tokens

    def generate() -> object:
        return model.generate(
            prompts, max_new_tokens=n_new, draft=None, batch_size=options.sequences
        )

    new = median_rate(options.sequences * n_new, options.repeats, generate)
    n_scored = options.texts * options.text_tokens
    return new, median_rate(n_scored, options.repeats, lambda: model.score(texts))


def measure(options: argparse.Namespace) -> None:
    print(f"{'dtype':9}{'threads':>8}{'load, s':>9}{'new tok/s':>11}{'scored tok/s':>14}")
    for dtype in options.dtypes.split(","):
        for threads in map(int, options.threads.split(",")):
            begin = time.perf_counter()
            with GPT2.from_pretrained(options.checkpoint, dtype=dtype, threads=threads) as model:
                load = time.perf_counter() - begin
                new, scored = measure_model(model, options)
            print(f"{dtype:9}{threads:8}{load:9.2f}{new:11.0f}{scored:14.0f}", flush=True)


def plan(options: argparse.Namespace) -> None:
    values = {k: v for k, v in vars(options).items() if k not in ("command", "machines")}
    job = Job(**values)
    tokens = job.rows * job.tokens_per_row
    print(f"{tokens:.3g} tokens; a piece takes {job.piece:.0f} s; the driver keeps up with "
          f"{job.driver_limit():.0f} machines; losses cost {job.share_lost():.2%}")  # fmt: skip
    print("machines     hours  tokens a day  share of the ideal")
    for machines in map(float, options.machines.split(",")):
        hours = job.hours(machines)
        ideal = tokens / (machines * job.rate) / 3600
        per_day = tokens / hours * 24
        print(f"{machines:8.0f}{hours:10.2f}{per_day:14.3g}{ideal / hours:20.2f}")


def main() -> None:
    options = parse()
    if options.command == "measure":
        measure(options)
    else:
        plan(options)


if __name__ == "__main__":
    main()
