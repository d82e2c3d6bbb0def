"""Scores a text with gpt2c and with transformers' float32 forward, in turns.

    python benchmarks/scores.py CHECKPOINT TEXT [--tokens 8192] [--stride 512] [--repeats 5]

Both follow the usual recipe: windows of the whole context every `stride` tokens, each token scored
once. Prints scored tokens/s and what both say of the text.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from peers import ENGINES
from processes import Launcher, Worker

NAMES = ("gpt2c", "torch-eager")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="so much of the text's beginning")
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", metavar="ENGINE=PATH", action="append", default=[],
                        help="the interpreter that runs an engine; this one otherwise")  # fmt: skip
    parser.add_argument("--work-folder", type=Path, help="for logs",
                        default=Path(tempfile.gettempdir()) / "gpt2c-benchmarks")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.work_folder.mkdir(parents=True, exist_ok=True)
    pythons = dict(pair.split("=", 1) for pair in options.python)
    launcher = Launcher(options.checkpoint, options.work_folder, pythons, options.threads, "")
    workers: dict[str, Worker] = {}
    try:
        for name in NAMES:
            workers[name] = Worker(launcher, name, ENGINES[name].files)
        with workers["gpt2c"].turn():
            ids = workers["gpt2c"].ask("encode", text=str(options.text.resolve()))["ids"]
        ids = ids[: options.tokens]
        rates: dict[str, list[float]] = {name: [] for name in NAMES}
        totals: dict[str, float] = {}
        for repeat in range(-1, options.repeats):  # one that is not counted
            for name, worker in workers.items():
                with worker.turn():
                    reply = worker.ask("score", ids=ids, stride=options.stride)
                totals[name] = reply["total"]
                if repeat >= 0:
                    rates[name].append((len(ids) - 1) / reply["seconds"])
    finally:
        for worker in workers.values():
            worker.close()
    ours = statistics.median(rates["gpt2c"])
    print(f"{len(ids)} tokens, stride {options.stride}, {options.threads} threads")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"  {name:12}{median:8.1f} tokens/s ({min(values):.1f} - {max(values):.1f})"
              f"   gpt2c/it {ours / median:.2f}   total {totals[name]:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
