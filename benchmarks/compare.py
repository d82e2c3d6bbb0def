"""Compares gpt2c with other engines on one checkpoint; the engines alternate on the same prompts.

    python benchmarks/compare.py CHECKPOINT [--tasks decode,prefill] [--engines gpt2c,llama.cpp]

CHECKPOINT is a folder with config.json and model.safetensors. benchmarks/README.md says how to
install the engines and what makes the comparison fair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from convert import read_config
from peers import DEFAULT_ENGINES, ENGINES
from processes import EngineError, Launcher, Worker, add_options, first_token_seconds, launcher_for
from tasks import AGREEMENT, TASKS, Task, roofline_share

Samples = dict[str, list[float]]  # engine: one value per repeat


class Comparison:
    """The engines that run here, and their measurements.

    `samples` has a value for each repeat, and `shares` the share of the roofline that it reaches,
    both by task and engine. `agreement` has, by engine, the number of equal ids in each text.
    """

    def __init__(self, launcher: Launcher, seed: int, repeats: int, first_engine: str) -> None:
        self.launcher, self.seed, self.repeats = launcher, seed, repeats
        self.first_engine = first_engine  # it is compared with the others
        self.config = read_config(launcher.checkpoint)
        self.workers: dict[str, Worker] = {}
        self.skipped: dict[str, str] = {}
        self.samples: dict[str, Samples] = {}
        self.shares: dict[str, Samples] = {}
        self.agreement: dict[str, list[int]] = {}

    def start(self, names: list[str]) -> None:
        for name in names:
            try:
                if name == "llama-batched-bench" and not self.launcher.env["LLAMA_BATCHED_BENCH"]:
                    raise EngineError("give its path with --llama-batched-bench")
                self.workers[name] = self.launcher.worker(name)
            except EngineError as error:
                self.skip(name, str(error))

    def skip(self, name: str, reason: str) -> None:
        print(f"without {name}: {reason}", flush=True)
        self.skipped[name] = reason
        if name in self.workers:
            self.workers.pop(name).close()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def prompts(self, task: Task, repeat: int) -> list[list[int]]:
        return task.prompts(self.seed, repeat, self.config["vocab_size"])

    def check_agreement(self) -> None:
        """Count each engine's greedy ids up to the first that differs from the first engine's."""
        prompts, ids = self.prompts(AGREEMENT, 0), {}
        for name, worker in list(self.workers.items()):
            if not ENGINES[name].runs_single_prompts:
                continue
            try:
                with worker.turn():
                    ids[name] = worker.ask("generate", prompts=prompts, n_new=AGREEMENT.n_new)
            except EngineError as error:
                self.skip(name, str(error))
        first = next(iter(ids), "")
        for name, found in ids.items():
            self.agreement[name] = [
                next(
                    (i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[0])
                )
                for pair in zip(found["ids"], ids[first]["ids"], strict=True)
            ]

    def run(self, task: Task) -> None:
        """Run a task on every engine in alternation, after a warm-up round."""
        samples = self.samples[task.name] = {}
        shares = self.shares[task.name] = {}
        for repeat in range(-1, self.repeats):
            for name in [name for name in self.workers if can_run(name, task)]:
                try:
                    value, used = self.take_turn(name, task, self.prompts(task, repeat))
                except EngineError as error:
                    self.skip(name, f"{task.name}: {error}")
                    continue
                if repeat >= 0:
                    samples.setdefault(name, []).append(value)
                    shares.setdefault(name, []).extend(used)

    def take_turn(
        self, name: str, task: Task, prompts: list[list[int]]
    ) -> tuple[float, list[float]]:
        """Return the measured value, and the share of the roofline that it reaches.

        The share is in a list, which is empty if the roofline is unknown.
        """
        if task.measure is None:
            return first_token_seconds(self.launcher, name, prompts[0]), []

        def generate(prompts: list[list[int]], n_new: int) -> float:
            return float(worker.ask("generate", prompts=prompts, n_new=n_new)["seconds"])

        worker = self.workers[name]
        with worker.turn():
            before = worker.ask("roofline") if task.limit else {}
            value = task.measure(task, generate, prompts)
            if task.limit not in before:
                return value, []
            after = worker.ask("roofline")
        roofline = {key: (before[key] + after[key]) / 2 for key in before}
        return value, [roofline_share(task, value, roofline, self.config)]


def can_run(name: str, task: Task) -> bool:
    """Return whether an engine can be measured on a task."""
    engine = ENGINES[name]
    if task.measure is None:
        return not engine.why_no_first_token
    return engine.runs_single_prompts if task.n_prompts == 1 else engine.runs_batches


def spread(values: list[float]) -> str:
    """Format the median, min and max."""
    return f"{statistics.median(values):10.4g}  {min(values):8.4g} - {max(values):<8.4g}"


def print_table(result: Comparison, task: Task) -> None:
    samples = result.samples[task.name]
    medians = {name: statistics.median(values) for name, values in samples.items()}
    first_median = medians.get(result.first_engine)
    decode_rates = result.samples.get("decode", {}) if task.name == "decode-deep" else {}
    print(f"\n{task}\n  {'':20}    median       min - max      speedup of {result.first_engine}")
    for name, values in samples.items():
        line = f"  {name:20}{spread(values)}"
        if first_median:
            median = medians[name]
            speedup = first_median / median if task.more_is_better else median / first_median
            line += f"{speedup:8.2f}"
        if name in decode_rates:
            slowdown = medians[name] / 1e3 * statistics.median(decode_rates[name])
            line += f"   {slowdown:.2f} times the time per token in decode"
        print(line)
        if used := result.shares[task.name].get(name):
            print(f"  {'':4}share of the machine's {task.limit}: {spread(used).strip()}")
    for name in result.workers:
        if task.measure is None and (reason := ENGINES[name].why_no_first_token):
            print(f"  {name:20}not measured: {reason}")


def print_agreement(result: Comparison) -> None:
    per_text = [AGREEMENT.n_new] * AGREEMENT.n_prompts
    print(f"\nGreedy ids equal to {next(iter(result.agreement), '')}'s, of {sum(per_text)}, "
          "in each text up to the first that differs:")  # fmt: skip
    for name, lengths in result.agreement.items():
        is_suspect = ENGINES[name].is_float32 and lengths != per_text
        note = "   although it computes in float32" if is_suspect else ""
        print(f"  {name:20}{sum(lengths):4}{note}")


def names_of(known: dict[str, Any], text: str) -> list[str]:
    """Split an option's value at commas, and check that the names are known."""
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is unknown; known are {', '.join(known)}")
    return names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--engines", type=lambda text: names_of(ENGINES, text),
                        default=[*DEFAULT_ENGINES],
                        help="separated by commas; the first is compared "
                             "with the others")  # fmt: skip
    parser.add_argument("--tasks", type=lambda text: names_of(TASKS, text), default=[*TASKS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--llama-batched-bench", metavar="PATH", help="llama.cpp's program",
                        default=os.environ.get("LLAMA_BATCHED_BENCH", ""))  # fmt: skip
    parser.add_argument("--no-agreement", action="store_true", help="do not compare greedy ids")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to a file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    launcher = launcher_for(options, options.llama_batched_bench)
    result = Comparison(launcher, options.seed, options.repeats, options.engines[0])
    try:
        result.start(options.engines)
        for name, worker in result.workers.items():
            versions = ", ".join(" ".join(pair) for pair in worker.versions.items())
            print(f"{name}: {versions or 'unknown version'}")
        print(
            f"speedup of {result.first_engine}: its speed divided by the speed of the line's engine"
        )
        if not options.no_agreement:
            result.check_agreement()
            print_agreement(result)
        for task in map(TASKS.__getitem__, options.tasks):
            if task.prompt_length + task.n_new > result.config["n_positions"]:
                print(f"\n{task.name}: skipped, the model's context is too short")
                continue
            result.run(task)
            print_table(result, task)
    finally:
        result.close()
        if options.json:
            fields = ("samples", "shares", "agreement", "skipped", "repeats", "seed")
            report = {field: getattr(result, field) for field in fields}
            report["versions"] = {name: w.versions for name, w in result.workers.items()}
            options.json.write_text(json.dumps(report | {"threads": options.threads}, indent=1))


if __name__ == "__main__":
    main()
