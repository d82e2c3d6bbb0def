"""The tasks of compare.py, and how each is measured."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Generate = Callable[[list[list[int]], int], float]  # (prompts, new tokens per prompt) -> seconds


@dataclass(frozen=True)
class Task:
    """Prompts of random ids, the number of tokens to generate, and what is measured."""

    name: str
    unit: str
    n_prompts: int
    prompt_length: int  # in tokens
    n_new: int  # new tokens for each prompt
    # Returns the measured value in `unit`. None: measure the first token of a new process.
    measure: Callable[[Task, Generate, list[list[int]]], float] | None
    more_is_better: bool = True
    limit: str = ""  # the part of the roofline that bounds this task

    def prompts(self, seed: int, repeat: int, n_vocab: int) -> list[list[int]]:
        """Return new prompts for each repeat, so that prompt caches do not help.

        They never contain the last id, which may be the EOS token.
        """
        rng = random.Random(f"{seed} {self.name} {repeat}")
        return [
            [rng.randrange(n_vocab - 1) for _ in range(self.prompt_length)]
            for _ in range(self.n_prompts)
        ]

    def __str__(self) -> str:
        prompts = "a prompt" if self.n_prompts == 1 else f"{self.n_prompts} prompts"
        tokens = "1 new token" if self.n_new == 1 else f"{self.n_new} new tokens each"
        better = "more" if self.more_is_better else "less"
        what = f"{prompts} of {self.prompt_length}, {tokens}"
        return f"{self.name}: {what} ({self.unit}, {better} is better)"


def decode_seconds(task: Task, generate: Generate, prompts: list[list[int]]) -> float:
    """Return the time per token without prefill: the time of all tokens minus that of the first.

    The first token is measured before and after, because its time drifts; most of it is prefill.
    """
    before = generate(prompts, 1)
    seconds = generate(prompts, task.n_new)
    return (seconds - (before + generate(prompts, 1)) / 2) / (task.n_new - 1)


def decode_rate(task: Task, generate: Generate, prompts: list[list[int]]) -> float:
    """Return the tokens per second without prefill."""
    return 1 / decode_seconds(task, generate, prompts)


def prefill_rate(task: Task, generate: Generate, prompts: list[list[int]]) -> float:
    """Return the prompt's tokens per second, until the first new token."""
    return task.prompt_length / generate(prompts, 1)


def total_rate(task: Task, generate: Generate, prompts: list[list[int]]) -> float:
    """Return the new tokens per second of all prompts together, prefill included."""
    return task.n_prompts * task.n_new / generate(prompts, task.n_new)


TASKS = {
    task.name: task
    for task in (
        Task("decode", "tokens/s", 1, 16, 128, decode_rate, limit="stream_rate"),
        Task("decode-deep", "ms/token", 1, 990, 24,
             lambda *given: 1e3 * decode_seconds(*given), more_is_better=False),
        Task("prefill", "tokens/s", 1, 512, 1, prefill_rate, limit="multiply_add_rate"),
        Task("batch-8", "tokens/s", 8, 16, 64, total_rate),
        Task("batch-16", "tokens/s", 16, 16, 64, total_rate),
        Task("batch-32", "tokens/s", 32, 16, 64, total_rate),
        Task("batch-64", "tokens/s", 64, 16, 64, total_rate),
        Task("first-token", "s", 1, 16, 1, None, more_is_better=False),
    )
}  # fmt: skip
AGREEMENT = Task("agreement", "ids", 8, 16, 16, None)


def roofline_share(
    task: Task, value: float, roofline: dict[str, float], config: dict[str, Any]
) -> float:
    """Return the share of the roofline that a decode or prefill rate reaches.

    `value` is the rate in tokens per second, `roofline` the result of Engine.roofline, and `config`
    the checkpoint's config.json.
    """
    rate = roofline[task.limit]
    if task.limit == "stream_rate":  # every token reads all weights
        return roofline["n_bytes"] * value / rate
    n, width, layers = task.prompt_length, config["n_embd"], config["n_layer"]
    inner = config.get("n_inner") or 4 * width
    blocks = 2 * n * layers * (4 * width * width + 2 * width * inner)
    attention = 4 * (n * (n + 1) // 2) * width * layers
    logits = 2 * config["vocab_size"] * width
    return (blocks + attention + logits) * value / n / rate
