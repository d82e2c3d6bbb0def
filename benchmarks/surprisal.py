"""Word surprisals by gpt2c and by minicons, which take turns on the same sentences.

    python benchmarks/surprisal.py CHECKPOINT TEXT [--sentences 64] [--repeats 3]
        [--peer-python PATH]

CHECKPOINT is a folder in Hugging Face's format; GPT-2's tokenizer is used if it has none. The
sentences are those of TEXT with 15 to 31 tokens (--tokens), evenly chosen. --peer-python names the
interpreter of an environment with minicons, if it is another one.

Each tool runs in a process of its own and waits, stopped, while the other has its turn. The first
round is a warm-up, which also finds minicons' fastest batch size. The script prints sentences per
second (medians), the ratios, what surprisal costs beyond GPT2.score, each process's largest
resident memory, and the seconds from the start of Python to the first surprisal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH_SIZES = (1, 4, 8, 16, 32)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])")
FIRST = """
import sys, gpt2c
model = gpt2c.GPT2.from_pretrained(sys.argv[1], threads=int(sys.argv[2]), dtype=sys.argv[3])
print(gpt2c.surprisal(model, "The old king sat down.").columns["surprisal"][0])
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("text", type=Path)
    add("--sentences", type=int, default=64)
    add("--tokens", type=int, nargs=2, default=(15, 31), metavar=("MIN", "MAX"))
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--peer-python", default=sys.executable)
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- the workers ----


def gpt2c_tasks(folder: str, threads: int, dtype: str) -> dict[str, Callable[[list[str]], object]]:
    import gpt2c

    model = gpt2c.GPT2.from_pretrained(folder, dtype=dtype, threads=threads)

    def words(correction: Any) -> Callable[[list[str]], object]:
        return lambda texts: gpt2c.surprisal(model, texts, correction=correction).columns

    names = ("none", "pimentel", "oh_schuler")
    tasks: dict[str, Callable[[list[str]], object]] = {name: words(name) for name in names}

    def written(texts: list[str]) -> None:
        with tempfile.TemporaryDirectory() as out:
            gpt2c.surprisal(model, texts, correction="pimentel").write(f"{out}/words.tsv")

    return {"score": lambda texts: model.score(texts, bos=True), **tasks, "written": written}


def minicons_tasks(folder: str, threads: int) -> dict[str, Callable[[list[str]], object]]:
    import torch
    from minicons import scorer

    torch.set_num_threads(threads)
    lm = scorer.IncrementalLMScorer(folder, "cpu")

    def words(size: int, rank: bool) -> Callable[[list[str]], object]:
        def run(texts: list[str]) -> None:
            for begin in range(0, len(texts), size):
                batch = texts[begin : begin + size]
                if rank:
                    lm.token_score(batch, rank=True, bos_token=True, surprisal=True)
                else:
                    lm.word_score_tokenized(batch, str.split, bos_token=True, surprisal=True)

        return run

    tasks = {f"batch of {n}": words(n, False) for n in BATCH_SIZES}
    return tasks | {f"ranks, batch of {n}": words(n, True) for n in BATCH_SIZES}


def memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])  # type: ignore[index]


def work(kind: str, folder: str, threads: int) -> None:
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a tool prints goes to standard error
    tool, _, dtype = kind.partition(":")
    tasks = (
        gpt2c_tasks(folder, threads, dtype) if tool == "gpt2c" else minicons_tasks(folder, threads)
    )
    print(json.dumps(sorted(tasks)), file=pipe)
    for line in sys.stdin:
        task = json.loads(line)
        begin = time.perf_counter()
        tasks[task["name"]](task["texts"])
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "memory": memory()}), file=pipe)


class Worker:
    """A tool in a process of its own, stopped between its turns."""

    def __init__(self, python: str, kind: str, folder: str, options: argparse.Namespace) -> None:
        arguments = [folder, str(options.text), "--worker", kind, "--threads", str(options.threads)]
        self.process = subprocess.Popen(
            [python, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)},
        )  # fmt: skip
        self.memory = 0
        if not self.process.stdout.readline():  # type: ignore[union-attr]
            raise SystemExit(f"{kind} does not run with {python}")
        self.process.send_signal(signal.SIGSTOP)

    def seconds(self, name: str, texts: list[str]) -> float:
        """Run a task, and return how long it took."""
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps({"name": name, "texts": texts}), file=self.process.stdin, flush=True)
        reply = json.loads(self.process.stdout.readline())  # type: ignore[union-attr]
        self.process.send_signal(signal.SIGSTOP)
        self.memory = reply["memory"]
        return float(reply["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


# ---- the run ----


def sentences_of(path: Path, n: int, low: int, high: int) -> list[str]:
    """Return n sentences of `low` to `high` GPT-2 tokens, evenly chosen from a text."""
    import gpt2c

    encode = gpt2c.Tokenizer.gpt2().encode
    lines = path.read_text(encoding="utf-8").split("\n")
    found = [s for line in lines for s in SENTENCE_END.split(line.strip()) if s]
    found = [s for s in found if low <= len(encode(s)) <= high]
    return [found[i * len(found) // n] for i in range(min(n, len(found)))]


def with_tokenizer(checkpoint: Path, folder: str) -> None:
    """Fill a folder with links to a checkpoint's files, and GPT-2's tokenizer if it has none."""
    from gpt2c.text.tokenizer import gpt2_vocab_and_merges

    for path in checkpoint.iterdir():
        os.symlink(path.resolve(), Path(folder, path.name))
    if not Path(folder, "vocab.json").exists() and not Path(folder, "tokenizer.json").exists():
        vocab, merges = gpt2_vocab_and_merges()
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        Path(folder, "merges.txt").write_bytes(merges.read_bytes())


def main() -> None:
    options = parse()
    if options.worker:
        work(options.worker, str(options.checkpoint), options.threads)
        return
    texts = sentences_of(options.text, options.sentences, *options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        with_tokenizer(options.checkpoint, folder)
        workers = {
            "gpt2c": Worker(sys.executable, "gpt2c:float32", folder, options),
            "gpt2c int8": Worker(sys.executable, "gpt2c:int8", folder, options),
            "minicons": Worker(options.peer_python, "minicons", folder, options),
        }
        try:
            run(workers, texts, options)
        finally:
            for worker in workers.values():
                worker.close()
        for dtype in ("float32", "int8"):
            command = [sys.executable, "-c", FIRST, folder, str(options.threads), dtype]
            times = []
            for _ in range(options.repeats):
                begin = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times.append(time.perf_counter() - begin)
            print(f"first surprisal, {dtype}: {statistics.median(times):.2f} s")


def run(workers: dict[str, Worker], texts: list[str], options: argparse.Namespace) -> None:
    peer = workers["minicons"]
    few = texts[: max(len(texts) // 2, 1)]
    peer.seconds("batch of 8", few)  # a warm-up
    found = {n: peer.seconds(f"batch of {n}", few) for n in BATCH_SIZES[1:]}
    best = min(found, key=found.__getitem__)
    tasks = [
        ("gpt2c", "score"), ("gpt2c", "none"), ("gpt2c", "pimentel"), ("gpt2c", "oh_schuler"),
        ("gpt2c", "written"), ("minicons", f"batch of {best}"), ("minicons", "batch of 1"),
        ("minicons", f"ranks, batch of {best}"), ("gpt2c int8", "score"), ("gpt2c int8", "none"),
        ("gpt2c int8", "pimentel"),
    ]  # fmt: skip
    rates: dict[tuple[str, str], list[float]] = {task: [] for task in tasks}
    for repeat in range(-1, options.repeats):
        for tool, name in tasks:
            if repeat < 0 and tool == "minicons":
                continue
            seconds = workers[tool].seconds(name, texts)
            if repeat >= 0:
                rates[tool, name].append(len(texts) / seconds)
    medians = {task: statistics.median(values) for task, values in rates.items()}
    print(f"{len(texts)} sentences, {options.threads} threads, sentences/s (min - max):")
    for (tool, name), values in rates.items():
        print(f"  {tool:10} {name:24} {medians[tool, name]:7.1f} ({min(values):.1f} - "
              f"{max(values):.1f})")  # fmt: skip
    peers = {
        "minicons' best": f"batch of {best}",
        "minicons one by one": "batch of 1",
        "minicons with ranks": f"ranks, batch of {best}",
    }
    for what, name in peers.items():
        ratios = [
            f"{tool} {medians[tool, correction] / medians['minicons', name]:.2f} x"
            + ("" if correction == "none" else f" ({correction})")
            for tool, correction in (
                ("gpt2c", "none"), ("gpt2c", "pimentel"), ("gpt2c int8", "none"),
                ("gpt2c int8", "pimentel"),
            )
        ]  # fmt: skip
        print(f"against {what}: {', '.join(ratios)}")
    for tool, name in tasks:
        if tool != "minicons" and name != "score":
            pairs = zip(rates[tool, "score"], rates[tool, name], strict=True)
            cost = statistics.median(plain / rate - 1 for plain, rate in pairs)
            print(f"{tool} {name}: {100 * cost:+.1f} % of score's time")
    for tool, worker in workers.items():
        print(f"{tool}: {worker.memory / 2**20:.0f} MiB resident at most")


if __name__ == "__main__":
    main()
