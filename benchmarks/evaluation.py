"""Compares gpt2c and transformers as models of lm-eval, on requests of the same shapes, in turns.

    python benchmarks/evaluation.py CHECKPOINT [--dtypes float32 int8] [--batch-sizes 1 8 32]

Needs lm-eval, torch and transformers in this environment. Three kinds of requests: questions with
four choices (80 tokens of context, 30 of each choice), texts to generate (100 tokens of context, 64
new), and rolling log-likelihoods of long documents. lm-eval's own model "hf" runs at each of the
batch sizes; its best one counts. All run in this process, one after another, with the same threads.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM

from gpt2c.compat.lm_eval import GPT2LM


class Request(NamedTuple):
    """The part of lm-eval's Instance that models use."""

    args: tuple[Any, ...]


WORDS = ("the", "king", "of", "a", "and", "to", "house", "in", "that", "was", "he", "it", "garden")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tokenizer", default="gpt2", help="a folder or name, for both")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "int8"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="+", default=["choices", "generate", "rolling"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=16, help="the number of questions")
    return parser.parse_args()


def words(n: int, generator: random.Random) -> str:
    """Return n words, each of which is one token of GPT-2."""
    return " ".join(generator.choice(WORDS) for _ in range(n))


def make_requests(kind: str, n: int, repeat: int) -> list[Request]:
    """Return new requests for each repeat, so that nothing is found in a cache."""
    generator = random.Random(f"{kind} {repeat}")
    if kind == "choices":
        return [
            Request((context, " " + words(30, generator)))
            for context in [words(80, generator) for _ in range(n)]
            for _ in range(4)
        ]
    if kind == "generate":
        kwargs = {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False}
        return [Request((words(100, generator), kwargs)) for _ in range(2 * n)]
    return [Request((words(1500, generator),)) for _ in range(max(n // 8, 1))]


def call(model: Any, kind: str) -> Callable[[list[Request]], Any]:
    names = {"choices": "loglikelihood", "generate": "generate_until"}
    return getattr(model, names.get(kind, "loglikelihood_rolling"))


def main() -> None:
    options = parse()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    hf = HFLM(options.checkpoint, tokenizer=options.tokenizer, dtype="float32", device="cpu")
    ours = {
        dtype: GPT2LM(options.checkpoint, dtype=dtype, threads=options.threads)
        for dtype in options.dtypes
    }

    def run(model: Any, kind: str, repeat: int, size: int = 1) -> float:
        if model is hf:
            hf.batch_size_per_gpu = size
        requests = make_requests(kind, options.documents, repeat)
        begin = time.perf_counter()
        call(model, kind)(requests, disable_tqdm=True)
        return time.perf_counter() - begin

    for kind in options.kinds:
        sizes = {size: run(hf, kind, 0, size) for size in options.batch_sizes}
        best = min(sizes, key=sizes.__getitem__)
        for model in ours.values():
            run(model, kind, 0)
        seconds: dict[str, list[float]] = {name: [] for name in ["hf", *ours]}
        for repeat in range(1, options.repeats + 1):
            seconds["hf"].append(run(hf, kind, repeat, best))
            for dtype, model in ours.items():
                seconds[dtype].append(run(model, kind, repeat))
        theirs = statistics.median(seconds["hf"])
        tried = ", ".join(f"{size}: {time:.2f}" for size, time in sizes.items())
        print(f"{kind}: hf float32 {theirs:.2f} s at batch size {best} (seconds by size: {tried})")
        for dtype in ours:
            median = statistics.median(seconds[dtype])
            print(f"  gpt2c {dtype:8} {median:.2f} s   {theirs / median:.2f} x", flush=True)


if __name__ == "__main__":
    main()
