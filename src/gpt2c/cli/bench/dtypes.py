"""``gpt2c bench --dtype all``: speed, size and quality of each dtype, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.cli.bench.speed import PREFILL_TOKENS, PROMPT_TOKENS
from gpt2c.model import GPT2

DTYPES: Final = ("float32", "int8", "int4")
_DECODE_TOKENS: Final = 96  # measured tokens of a decoding run
_CHUNK: Final = 64  # the max number of positions whose logits are in memory at the same time


@dataclass(frozen=True)
class Row:
    """One dtype: its size, its speeds in tokens per second, and its quality against float32.

    Speeds are medians. `divergence` is the mean Kullback-Leibler divergence from float32's
    distributions, in nats. `same` is the share of positions where the dtype's most likely id is
    also float32's.
    """

    name: str
    megabytes: float
    decode: float
    prefill: float
    perplexity: float
    divergence: float
    same: float


def compare_dtypes(load: Callable[[str], GPT2], repeats: int) -> Iterator[Row]:
    """Yield a row for each dtype, then one for float32 with speculative decoding.

    `load` loads the model in a dtype. The dtypes are compared on ids that the float32 model
    samples: every model can sample, and the ids resemble its training data.
    """
    float32 = load("float32")
    ids = _sampled_ids(float32)
    prefills = {}
    for dtype in DTYPES:
        model = float32 if dtype == "float32" else load(dtype)
        quality = _quality(float32, model, ids)
        prefills[dtype] = _median(repeats, partial(_prefill_speed, model, ids))
        decode = _median(repeats, partial(_decode_speed, model, ids))
        yield Row(dtype, model.n_bytes / 1e6, decode, prefills[dtype], *quality)
        if model is not float32:
            model.close()
    _decode_speed(float32, ids, draft="auto")  # warm-up: packs the weights of the draft model
    drafted = _median(repeats, partial(_decode_speed, float32, ids, draft="auto"))
    quality = _quality(float32, float32, ids)
    # Prefill uses no drafts, so its speed is that of plain float32.
    yield Row("float32, drafts", float32.n_bytes / 1e6, drafted, prefills["float32"], *quality)
    float32.close()


def _sampled_ids(model: GPT2) -> list[int]:
    n = min(PREFILL_TOKENS, model.config.n_positions) - 1
    start = model.config.bos_token_id
    start = 0 if start is None or start >= model.config.vocab_size else start
    options: Any = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": True, "seed": 0}
    return [start, *model.generate([start], **options)]


def _median(repeats: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(repeats))


def _prefill_speed(model: GPT2, ids: list[int]) -> float:
    """Return the prompt tokens per second."""
    prompt = ids[: model.config.n_positions - 1]
    begin = time.perf_counter()
    model.session().feed(prompt)
    return len(prompt) / (time.perf_counter() - begin)


def _decode_speed(model: GPT2, ids: list[int], draft: str | None = None) -> float:
    """Return the new tokens per second after the first new token, whose time includes prefill."""
    prompt = ids[:PROMPT_TOKENS]
    runs = []
    n = min(_DECODE_TOKENS, model.config.n_positions - PROMPT_TOKENS)
    for n_new in (1, 1 + n):
        begin = time.perf_counter()
        completion = model.complete(prompt, max_new_tokens=n_new, draft=draft)
        runs.append((time.perf_counter() - begin, len(completion.ids)))
    (first, _), (total, n_tokens) = runs
    return max(n_tokens - 1, 1) / max(total - first, 1e-6)


def _quality(float32: GPT2, model: GPT2, ids: list[int]) -> tuple[float, float, float]:
    """Return the model's perplexity, divergence and same; see Row."""
    nats = divergence = same = 0.0
    sessions = float32.session(), model.session()
    for begin in range(0, len(ids) - 1, _CHUNK):
        fed = ids[begin : min(begin + _CHUNK, len(ids) - 1)]
        expected, found = (session.feed(fed, all=True) for session in sessions)
        log_p, log_q = _log_softmax(expected), _log_softmax(found)
        targets = ids[begin + 1 : begin + 1 + len(fed)]
        nats -= float(log_q[np.arange(len(fed)), targets].sum())
        divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
        same += float((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
    n = len(ids) - 1
    return float(np.exp(nats / n)), divergence / n, same / n


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def header() -> str:
    """Return the table's header."""
    return (
        f"{'':18}{'MB':>8}{'decode, tok/s':>15}{'prefill, tok/s':>15}{'perplexity':>12}"
        f"{'KL, nats':>11}{'top-1':>9}"
    )


def line(row: Row) -> str:
    """Return a row as a line of the table."""
    return (
        f"{row.name:18}{row.megabytes:8,.1f}{row.decode:15,.0f}{row.prefill:15,.0f}"
        f"{row.perplexity:12.4f}{row.divergence:11.6f}{row.same:9.2%}"
    )
