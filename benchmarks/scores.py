"""Scores a text with gpt2c and with transformers in float32; the two alternate.

    python benchmarks/scores.py CHECKPOINT TEXT [--tokens 8192] [--stride 512] [--repeats 5]

Both use windows of the whole context that start every `stride` tokens, and score each token once.
Prints scored tokens per second and the total log-probability of the text.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path

from processes import add_options, launcher_for, rate_summary

NAMES = ("gpt2c", "torch-eager")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("text", type=Path)
    parser.add_argument(
        "--tokens", type=int, metavar="N", default=8192, help="score the first N tokens"
    )
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse()
    launcher = launcher_for(options)
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(contextlib.closing(launcher.worker(name))) for name in NAMES
        }
        with workers["gpt2c"].turn():
            ids = workers["gpt2c"].ask("encode", text=str(options.text.resolve()))["ids"]
        ids = ids[: options.tokens]
        rates: dict[str, list[float]] = {name: [] for name in NAMES}
        totals: dict[str, float] = {}
        for repeat in range(-1, options.repeats):  # repeat -1 is a warm-up
            for name, worker in workers.items():
                with worker.turn():
                    reply = worker.ask("score", ids=ids, stride=options.stride)
                totals[name] = reply["total"]
                if repeat >= 0:
                    rates[name].append((len(ids) - 1) / reply["seconds"])
    ours = statistics.median(rates["gpt2c"])
    print(f"{len(ids)} tokens, stride {options.stride}, {options.threads} threads; "
          "N x: gpt2c is N times as fast")  # fmt: skip
    for name, values in rates.items():
        print(f"  {name:12}{rate_summary(values, 1)}   {ours / statistics.median(values):.2f} x"
              f"   total {totals[name]:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
