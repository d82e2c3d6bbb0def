"""Measures one build of gpt2c for separate_calls.py, which sends lines of JSON.

Each line names a measurement of MEASUREMENTS and its arguments; the answer is a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import gpt2c

LONG_PROMPT = 1000  # tokens of the prompts that keep arriving
SHORT_PROMPT = 12  # tokens of a newcomer's prompt


@cache
def model_of(path: str | None, dtype: str, threads: int) -> gpt2c.GPT2:
    return gpt2c.GPT2.from_pretrained(path, dtype=dtype, threads=threads)


def random_ids(model: gpt2c.GPT2, rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(model.config.vocab_size - 1) for _ in range(n)]


# ---- the prompts of a measurement ----


def workload(model: gpt2c.GPT2, seed: str, n: int, tokens: int, is_greedy: bool) -> dict[str, Any]:
    """Return n prompts of different lengths, and stop tokens that end their texts early.

    The model must not be the one that is measured, which would find the prompts in its caches. A
    text that repeats itself, as greedy texts of random weights do, has no token of its own to stop
    at, and runs to `tokens`.
    """
    rng = random.Random(seed)
    prompts = [random_ids(model, rng, rng.randint(4, 48)) for _ in range(n)]
    wanted = [rng.randint(tokens // 3, tokens) for _ in range(n)]
    options: dict[str, Any] = {"max_new_tokens": tokens}
    seeds = None if is_greedy else [rng.randrange(2**32) for _ in range(n)]
    if seeds is not None:
        options |= {"temperature": 1.0}
    texts = model.generate(prompts, **options, seed=seeds)
    stops = []
    for i, text in enumerate(texts):
        for at in range(wanted[i], len(text)):
            is_first = text[at] not in text[:at]
            if is_first and not any(
                text[at] in other[: wanted[j]] for j, other in enumerate(texts) if j != i
            ):
                stops.append(text[at])
                break
    return {"prompts": prompts, "seeds": seeds, "options": {**options, "stop_token_ids": stops}}


def one_call(model: gpt2c.GPT2, given: dict[str, Any]) -> int:
    """Generate all texts in one call; return the number of new tokens."""
    done = model.generate(
        given["prompts"], **given["options"], seed=given["seeds"],
        batch_size=max(len(given["prompts"]), 1),
    )  # fmt: skip
    return sum(map(len, done))


@cache
def thread_pool(n: int) -> ThreadPoolExecutor:
    """Return a pool of n threads that stays for later measurements, as a web server's does."""
    return ThreadPoolExecutor(n)


def in_threads(model: gpt2c.GPT2, given: dict[str, Any], call: Callable[..., Any]) -> int:
    """Make a call for each prompt in a thread of its own; return the number of new tokens."""

    def work(i: int) -> int:
        options = dict(given["options"])
        if given["seeds"] is not None:
            options["seed"] = given["seeds"][i]
        return sum(1 for _ in call(given["prompts"][i], **options))

    n = len(given["prompts"])
    return sum(thread_pool(n).map(work, range(n)))


def in_tasks(model: gpt2c.GPT2, given: dict[str, Any]) -> int:
    """Stream each prompt in a task of one event loop; return the number of new tokens."""

    async def read(i: int) -> int:
        seed = {} if given["seeds"] is None else {"seed": given["seeds"][i]}
        n = 0
        async for _ in model.stream_async(given["prompts"][i], **given["options"], **seed):
            n += 1
        return n

    async def read_all() -> int:
        return sum(await asyncio.gather(*map(read, range(len(given["prompts"])))))

    return asyncio.run(read_all())


def score_in_one_call(model: gpt2c.GPT2, given: dict[str, Any]) -> int:
    """Score all prompts in one call; return the number of their tokens."""
    return sum(len(score.ids) for score in model.score(given["prompts"]))


def score_in_threads(model: gpt2c.GPT2, given: dict[str, Any]) -> int:
    """Score each prompt in a thread of its own; return the number of their tokens."""
    scores = thread_pool(len(given["prompts"])).map(model.score, given["prompts"])
    return sum(len(score.ids) for score in scores)


WAYS: dict[str, Callable[[gpt2c.GPT2, dict[str, Any]], int]] = {
    "one call": one_call,
    "threads": lambda model, given: in_threads(model, given, model.generate),
    "streams": lambda model, given: in_threads(model, given, model.stream),
    "asyncio": in_tasks,
    "one scoring call": score_in_one_call,
    "scoring threads": score_in_threads,
}


# ---- measurements ----


def measure_workloads(
    path: str | None, dtype: str, threads: int, seeds: list[str], n: int, tokens: int, greedy: bool
) -> list[Any]:
    """Return a workload for each seed, made with a model that is closed afterwards."""
    with gpt2c.GPT2.from_pretrained(path, dtype=dtype, threads=threads) as model:
        return [workload(model, seed, n, tokens, greedy) for seed in seeds]


def measure_rate(
    path: str | None,
    dtype: str,
    threads: int,
    way: str,
    workloads: list[Any],
    draft: str | None,
) -> float:
    """Return the new tokens per second of all workloads together."""
    model = model_of(path, dtype, threads)
    n_tokens, begin = 0, time.perf_counter()
    for given in workloads:
        options = {**given["options"], "draft": draft}
        n_tokens += WAYS[way](model, {**given, "options": options})
    return n_tokens / (time.perf_counter() - begin)


class Streams:
    """Streams in threads that note the time of each token until they are stopped."""

    def __init__(self, model: gpt2c.GPT2, n: int, rng: random.Random) -> None:
        self._model, self._is_over = model, False
        self.times: list[list[float]] = [[] for _ in range(n)]
        prompts = [random_ids(model, rng, rng.randint(4, 32)) for _ in range(n)]
        self._threads = [
            threading.Thread(target=self._read, args=(i, prompt))
            for i, prompt in enumerate(prompts)
        ]
        for thread in self._threads:
            thread.start()
        while not all(len(times) > 2 for times in self.times):
            time.sleep(0.01)

    def _read(self, i: int, prompt: list[int]) -> None:
        n_new = self._model.config.n_positions - len(prompt)
        stream = self._model.stream(
            prompt, max_new_tokens=n_new, min_new_tokens=n_new, temperature=1.0, seed=i, draft=None
        )
        for _ in stream:
            self.times[i].append(time.perf_counter())
            if self._is_over:
                return

    def gaps(self, begin: float, end: float) -> list[float]:
        """Return the times between two tokens of a stream, in seconds, from begin to end."""
        return [
            b - a for times in self.times for a, b in pairwise(times) if begin <= a and b <= end
        ]

    def stop(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()


def measure_latency(
    path: str | None, dtype: str, threads: int, n: int, seconds: float, seed: int
) -> dict[str, float]:
    """Return times in seconds: between two tokens of n streams, and to a newcomer's first token."""
    model, rng = model_of(path, dtype, threads), random.Random(seed)

    def first_token(n_prompt: int) -> float:
        begin = time.perf_counter()
        model.generate(random_ids(model, rng, n_prompt), max_new_tokens=1)
        return time.perf_counter() - begin

    alone = statistics.median(first_token(SHORT_PROMPT) for _ in range(7))
    streams = Streams(model, n, rng)
    try:
        begin = time.perf_counter()
        time.sleep(seconds)
        quiet = streams.gaps(begin, time.perf_counter())
        newcomers = []
        for _ in range(9):
            time.sleep(0.1)
            newcomers.append(first_token(SHORT_PROMPT))
        begin, n_arrived = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            first_token(min(LONG_PROMPT, model.config.n_positions - 1))
            n_arrived += 1
        busy = streams.gaps(begin, time.perf_counter())
    finally:
        streams.stop()
    return {
        "quiet p50": quantile(quiet, 0.5), "quiet p99": quantile(quiet, 0.99),
        "busy p50": quantile(busy, 0.5), "busy p99": quantile(busy, 0.99),
        "arrivals per second": n_arrived / seconds,
        "first token alone": alone, "first token beside": statistics.median(newcomers),
    }  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    """Return the quantile of the values at `share`, from 0 to 1."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def measure_limits(path: str | None, dtype: str, threads: int) -> dict[str, float]:
    """Return n_bytes of the model, and what the machine can read and compute in a second."""
    model = model_of(path, dtype, threads)
    found = {"n_bytes": float(model.n_bytes)}
    for name in ("stream_rate", "multiply_add_rate"):
        found[name] = statistics.median(getattr(model._engine, name)() for _ in range(3))
    return found


def measure_build() -> str:
    return f"{gpt2c.__version__} at {os.path.dirname(gpt2c.__file__)}"


def measure_drop() -> None:
    """Free all models."""
    model_of.cache_clear()


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "build": measure_build,
    "workloads": measure_workloads,
    "rate": measure_rate,
    "latency": measure_latency,
    "limits": measure_limits,
    "drop": measure_drop,
}


def main() -> None:
    # The pipe is for answers only.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": MEASUREMENTS[name](**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=pipe)


if __name__ == "__main__":
    main()
