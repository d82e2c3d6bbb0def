"""Compares calls that run at the same time with one call that has all their prompts.

    python benchmarks/separate_calls.py [PART ...] [--src TREE --src TREE] [--repeats 5]

The parts are `threads` (8 and 32 threads that each generate a text), `streams` and `asyncio` (32
threads, or tasks of one event loop, that each read a stream), `tales` (8 threads on the embedded
model), `scores` (8 threads that each score a text), `alone` (one call with one prompt and with 32)
and `latency` (the times between two tokens of 31 streams while prompts of 1,000 tokens arrive).
Each line shows a ratio and its bar, if it has one.

Prompts and texts have different lengths, and no prompt comes twice. The two sides of a ratio
alternate; the ratio is the median over the turns. With several --src, each the root of a built
source tree, the trees alternate too, and `alone` compares each with the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("threads", "streams", "asyncio", "tales", "scores", "alone", "latency")
BARS = {"threads": 0.95, "streams": 0.85, "asyncio": 0.85, "tales": 0.85, "alone": 0.98}
LATENCY_BAR = 2.5  # p99 between two tokens with arrivals / median without
# The number of workloads in one measurement of a small model; one workload would take only
# milliseconds.
N_WORKLOADS = {"tales": 8, "prose-21m": 4}


@dataclass(frozen=True)
class Model:
    """A model to measure; a path of None is the embedded one."""

    name: str
    path: str | None
    dtype: str

    def arguments(self, options: argparse.Namespace) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype, "threads": options.threads}

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"


class Build:
    """A process that imports gpt2c from one source tree, or as it is installed."""

    script = "separate_worker.py"

    def __init__(self, letter: str, tree: Path | None) -> None:
        env = dict(os.environ)
        if tree is not None:
            env["PYTHONPATH"] = str(tree / "src")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / self.script)],
            env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.letter, self.name = letter, ""
        self.name = f"{letter}: {self.ask('build')}"
        if tree is not None and not self.name.endswith(f" {tree}/src/gpt2c"):
            raise SystemExit(f"--src {tree}: found {self.name}; is the tree built?")

    def ask(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"{self.name}, {name}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Bench:
    """Runs the parts and keeps the figures."""

    def __init__(self, builds: list[Build], options: argparse.Namespace) -> None:
        self.builds, self.options = builds, options
        self.figures: list[dict[str, Any]] = []

    def rates(self, model: Model, ways: list[str], n: int, style: str) -> dict[Any, list[float]]:
        """Return the tokens per second of each (build's letter, way), turn by turn.

        `style` is one of --styles.
        """
        o = self.options
        greedy, draft = style.startswith("greedy"), None if "no drafts" in style else "auto"
        n_workloads, turns = N_WORKLOADS.get(model.name, 1), range(-1, o.repeats)
        seeds = [f"{turn} {way} {i}" for turn in turns for way in ways for i in range(n_workloads)]
        arguments = model.arguments(o)
        workloads = self.builds[0].ask(
            "workloads", **arguments, seeds=seeds, n=n, tokens=o.tokens, greedy=greedy
        )
        workload_of = dict(zip(seeds, workloads, strict=True))
        found: dict[Any, list[float]] = {(b.letter, way): [] for b in self.builds for way in ways}
        for turn in turns:  # the first turn, -1, is a warm-up
            for way in ways:
                for build in self.builds:
                    given = [workload_of[f"{turn} {way} {i}"] for i in range(n_workloads)]
                    rate = build.ask("rate", **arguments, way=way, workloads=given, draft=draft)
                    if turn >= 0:
                        found[build.letter, way].append(rate)
        return found

    def compare_ways(
        self, part: str, model: Model, way: str, n: int, whole: str = "one call"
    ) -> None:
        """Print the rate of n calls in one of WAYS, divided by the rate of the way `whole`."""
        for style in self.options.styles:
            found = self.rates(model, [whole, way], n, style)
            for build in self.builds:
                ours, theirs = found[build.letter, way], found[build.letter, whole]
                what = f"{n} {way} / {whole}, {model}, {style}"
                self.show(part, build, what, ours, theirs, BARS.get(part))

    def show(
        self, part: str, build: Build, what: str, a: list[float], b: list[float], bar: float | None
    ) -> None:
        """Print a ratio of rates, and keep it."""
        ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
        medians = f"{statistics.median(a):8,.0f} / {statistics.median(b):8,.0f} tok/s"
        verdict = ""
        if bar is not None:
            verdict = f" (bar {bar})" if ratio >= bar else f" (bar {bar})  BELOW"
        print(f"{build.letter} {what:64} {medians} = {ratio:.3f}{verdict}", flush=True)
        self.figures.append(
            {"part": part, "build": build.name, "what": what, "a": a, "b": b, "ratio": ratio}
        )

    def alone(self, model: Model, n: int) -> None:
        """Print the rate of one call; with several builds, compare each with the first."""
        for style in self.options.styles:
            found = self.rates(model, ["one call"], n, style)
            first = found[self.builds[0].letter, "one call"]
            what = f"one call x {n}, {model}, {style}"
            if len(self.builds) == 1:
                rate = f"{statistics.median(first):8,.0f} tok/s"
                print(f"A {what:64} {rate} ({min(first):,.0f} to {max(first):,.0f})", flush=True)
                self.figures.append(
                    {"part": "alone", "build": self.builds[0].name, "what": what, "a": first}
                )
            for build in self.builds[1:]:
                rates = found[build.letter, "one call"]
                self.show("alone", build, what, rates, first, BARS["alone"])

    def latency(self, model: Model) -> None:
        """Measure and print the times between two tokens of streams."""
        o = self.options
        found: dict[str, list[dict[str, float]]] = {build.letter: [] for build in self.builds}
        for turn in range(o.repeats):
            for build in self.builds:
                found[build.letter].append(
                    build.ask("latency", **model.arguments(o), n=o.streams, seconds=o.seconds,
                              seed=turn)
                )  # fmt: skip
        for build in self.builds:
            self.show_latency(model, build, found[build.letter])

    def show_latency(self, model: Model, build: Build, turns: list[dict[str, float]]) -> None:
        ms = {
            name: 1e3 * statistics.median(turn[name] for turn in turns)
            for name in turns[0]
        }  # fmt: skip
        ratio = statistics.median(t["busy p99"] / t["quiet p50"] for t in turns)
        share = statistics.median(
            t["first token beside"] / (t["first token alone"] + 2 * t["quiet p50"]) for t in turns
        )
        print(f"{build.letter} {self.options.streams} streams, {model}, ms between two tokens: "
              f"p50 {ms['quiet p50']:.1f}, p99 {ms['quiet p99']:.1f}; while "
              f"{ms['arrivals per second'] / 1e3:.1f} long prompts a second arrive: "
              f"p50 {ms['busy p50']:.1f}, p99 {ms['busy p99']:.1f}")  # fmt: skip
        print(f"  p99 with arrivals / p50 without = {ratio:.2f} (bar {LATENCY_BAR})"
              f"{'' if ratio <= LATENCY_BAR else '  ABOVE'}")  # fmt: skip
        print(f"  a short newcomer's first token: {ms['first token beside']:.1f} ms, alone "
              f"{ms['first token alone']:.1f} ms; / (alone + 2 x p50) = {share:.2f} (bar 1)"
              f"{'' if share <= 1 else '  ABOVE'}", flush=True)  # fmt: skip
        self.figures.append(
            {"part": "latency", "build": build.name, "what": str(model), "turns": turns}
        )

    def run(self, part: str) -> None:
        o = self.options
        real = [Model("124M", str(o.checkpoint), dtype) for dtype in o.dtypes]
        tales = Model("tales", None, "float32")
        if part == "alone":
            small = [tales]
            if o.prose is not None:
                small.append(Model("prose-21m", str(o.prose), "float32"))
            for model in [*small, *real]:
                for n in (1, 32):
                    self.alone(model, n)
                self.drop()
        elif part == "tales":
            self.compare_ways(part, tales, "threads", 8)
        elif part == "scores":
            for model in real:
                self.compare_ways(part, model, "scoring threads", 8, "one scoring call")
                self.drop()
        elif part == "latency":
            for model in real:
                self.latency(model)
                self.drop()
        else:
            for model in real:
                for n in o.sizes if part == "threads" else [max(o.sizes)]:
                    self.compare_ways(part, model, part, n)
                self.drop()

    def drop(self) -> None:
        """Free the models of all builds."""
        for build in self.builds:
            build.ask("drop")


def main() -> None:
    options = arguments()
    if {*options.parts} - {"tales"}:
        make_checkpoint(options.checkpoint)
    builds: list[Build] = []
    try:
        for letter, tree in zip("ABCDEFGH", options.src or [None], strict=False):
            builds.append(Build(letter, tree and tree.resolve()))
        bench = Bench(builds, options)
        for build in builds:
            print(build.name)
        for part in options.parts:
            bench.run(part)
        if options.json is not None:
            options.json.write_text(json.dumps(bench.figures, indent=1))
    finally:
        for build in builds:
            build.close()


def make_checkpoint(folder: Path) -> None:
    """Make GPT-2 124M with random weights if the folder does not exist."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        script = HERE.parent / "tools" / "make_random_model.py"
        command = [sys.executable, str(script), "124M", str(folder), "--dtype", "float32"]
        subprocess.run(command, check=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    work = Path(tempfile.gettempdir()) / "gpt2c-benchmarks"
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"from {', '.join(PARTS)}; default: all")
    add("--src", type=Path, action="append", metavar="TREE",
        help="the root of a built source tree; default: gpt2c as installed")  # fmt: skip
    add("--checkpoint", type=Path, help="default: random weights with the shapes of 124M",
        default=work / "124M")  # fmt: skip
    add("--prose", type=Path, metavar="FOLDER",
        help="a small trained model, such as prose-21m, for `alone`")  # fmt: skip
    add("--dtypes", type=names, default=["float32", "int8"])
    add("--sizes", type=lambda text: [*map(int, names(text))], default=[8, 32],
        help="numbers of threads; streams and tasks use the largest")  # fmt: skip
    add("--styles", type=names, default=["sampled"],
        help="separated by commas, of: sampled, greedy, 'sampled no drafts', "
             "'greedy no drafts'")  # fmt: skip
    add("--tokens", type=int, default=48, help="the max length of a text")
    add("--repeats", type=int, default=5)
    add("--streams", type=int, default=31, help="number of streams in `latency`")
    add("--seconds", type=float, default=6, help="length of each half of `latency`")
    add("--threads", type=int, default=2, help="threads of the engine")
    add("--json", type=Path, metavar="FILE", help="write all figures to a file")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    return options


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    main()
