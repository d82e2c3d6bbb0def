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

from gpt2c.cli.bench_speed import PREFILL, PROMPT
from gpt2c.model import GPT2

DTYPES: Final = ("float32", "int8", "int4")
_DECODED: Final = 96  # new tokens of a decoding run
_CHUNK: Final = 64  # the max number of positions whose logits are in memory together


@dataclass(frozen=True)
class Row:
    """One dtype: its size, its speeds in tokens per second, and its quality against float32.

    Speeds are medians. divergence is the mean Kullback-Leibler divergence from float32's
    distributions, in nats; same is the share of positions whose most likely id is float32's.
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

    load loads the model in a dtype. The dtypes are compared on a text that the float32 model
    samples: every model can produce one, and it resembles what the model was trained on.
    """
    exact = load("float32")
    text = _sampled_text(exact)
    prefills = {}
    for dtype in DTYPES:
        model = exact if dtype == "float32" else load(dtype)
        quality = _quality(exact, model, text)
        prefills[dtype] = _median(repeats, partial(_prefill, model, text))
        decode = _median(repeats, partial(_decode, model, text))
        yield Row(dtype, model.n_bytes / 1e6, decode, prefills[dtype], *quality)
        if model is not exact:
            model.close()
    _decode(exact, text, draft="auto")  # warm-up: packs the weights of the draft model
    drafted = _median(repeats, partial(_decode, exact, text, draft="auto"))
    quality = _quality(exact, exact, text)
    # Prefill uses no drafts, so its speed is that of plain float32.
    yield Row("float32, drafts", exact.n_bytes / 1e6, drafted, prefills["float32"], *quality)
    exact.close()


def _sampled_text(model: GPT2) -> list[int]:
    n = min(PREFILL, model.config.n_positions) - 1
    start = model.config.bos_token_id
    start = 0 if start is None or start >= model.config.vocab_size else start
    options: Any = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": True, "seed": 0}
    return [start, *model.generate([start], **options)]


def _median(repeats: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(repeats))


def _prefill(model: GPT2, text: list[int]) -> float:
    ids = text[: model.config.n_positions - 1]
    begin = time.perf_counter()
    model.session().feed(ids)
    return len(ids) / (time.perf_counter() - begin)


def _decode(model: GPT2, text: list[int], draft: str | None = None) -> float:
    """Return the tokens per second after the first token, so without the time for the prompt."""
    prompt = text[:PROMPT]
    runs = []
    n = min(_DECODED, model.config.n_positions - PROMPT)
    for n_new in (1, 1 + n):
        begin = time.perf_counter()
        done = model.complete(prompt, max_new_tokens=n_new, draft=draft)
        runs.append((time.perf_counter() - begin, len(done.ids)))
    (first, _), (total, n_tokens) = runs
    return max(n_tokens - 1, 1) / max(total - first, 1e-6)


def _quality(exact: GPT2, model: GPT2, text: list[int]) -> tuple[float, float, float]:
    nats = divergence = same = 0.0
    sessions = exact.session(), model.session()
    for begin in range(0, len(text) - 1, _CHUNK):
        ids = text[begin : min(begin + _CHUNK, len(text) - 1)]
        expected, found = (session.feed(ids, all=True) for session in sessions)
        p, q = _log_softmax(expected), _log_softmax(found)
        targets = text[begin + 1 : begin + 1 + len(ids)]
        nats -= float(q[np.arange(len(ids)), targets].sum())
        divergence += float((np.exp(p) * (p - q)).sum())
        same += float((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
    n = len(text) - 1
    return float(np.exp(nats / n)), divergence / n, same / n


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def header() -> str:
    """Return the table's header."""
    return (
        f"{'':18}{'MB':>8}{'decode, tok/s':>15}{'prompt, tok/s':>15}{'perplexity':>12}"
        f"{'KL, nats':>11}{'top-1':>9}"
    )


def line(row: Row) -> str:
    """Return a row as a line of the table."""
    return (
        f"{row.name:18}{row.megabytes:8,.1f}{row.decode:15,.0f}{row.prefill:15,.0f}"
        f"{row.perplexity:12.4f}{row.divergence:11.6f}{row.same:9.2%}"
    )
