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
_DECODED: Final = 96  # tokens
_CHUNK: Final = 64  # positions whose logits are in memory together


@dataclass(frozen=True)
class Row:
    """One dtype. Speeds are medians, in tokens a second; quality is against float32.

    perplexity is of the text, divergence the mean Kullback-Leibler divergence from float32's
    distributions in nats, same the share of positions whose most likely id is float32's.
    """

    name: str
    megabytes: float
    decode: float
    prefill: float
    perplexity: float
    divergence: float
    same: float


def compare_dtypes(load: Callable[[str], GPT2], repeats: int) -> Iterator[Row]:
    """A row for each dtype, and for float32 with drafts, as soon as it is there.

    load makes the model in a dtype. The text that they are compared on is one that the model draws
    in float32 itself: of any model there is one, and it is about what the model is about.
    """
    exact = load("float32")
    text = _own_text(exact)
    prefills = {}
    for dtype in DTYPES:
        model = exact if dtype == "float32" else load(dtype)
        quality = _quality(exact, model, text)
        prefills[dtype] = _median(repeats, partial(_prefill, model, text))
        decode = _median(repeats, partial(_decode, model, text))
        yield Row(dtype, model.n_bytes / 1e6, decode, prefills[dtype], *quality)
        if model is not exact:
            model.close()
    _decode(exact, text, draft="auto")  # which packs the weights
    drafted = _median(repeats, partial(_decode, exact, text, draft="auto"))
    quality = _quality(exact, exact, text)
    # Prompts have no drafts: theirs is float32's own speed.
    yield Row("float32, drafts", exact.n_bytes / 1e6, drafted, prefills["float32"], *quality)
    exact.close()


def _own_text(model: GPT2) -> list[int]:
    n = min(PREFILL, model.config.n_positions) - 1
    start = model.config.bos_token_id
    start = 0 if start is None or start >= model.config.vocab_size else start
    whole: Any = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": True, "seed": 0}
    return [start, *model.generate([start], **whole)]


def _median(repeats: int, measured: Callable[[], float]) -> float:
    return statistics.median(measured() for _ in range(repeats))


def _prefill(model: GPT2, text: list[int]) -> float:
    ids = text[: model.config.n_positions - 1]
    begin = time.perf_counter()
    model.session().feed(ids)
    return len(ids) / (time.perf_counter() - begin)


def _decode(model: GPT2, text: list[int], draft: str | None = None) -> float:
    """The time of some tokens after the text's first, without that of the prompt."""
    prompt = text[:PROMPT]
    seconds = []
    n = min(_DECODED, model.config.n_positions - PROMPT)
    for n_new in (1, 1 + n):
        begin = time.perf_counter()
        done = model.complete(prompt, max_new_tokens=n_new, draft=draft)
        seconds.append((time.perf_counter() - begin, len(done.ids)))
    (first, _), (all_of_it, n_tokens) = seconds
    return max(n_tokens - 1, 1) / max(all_of_it - first, 1e-6)


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
    """The table's first line."""
    return (
        f"{'':18}{'MB':>8}{'decode, tok/s':>15}{'prompt, tok/s':>15}{'perplexity':>12}"
        f"{'KL, nats':>11}{'top-1':>9}"
    )


def line(row: Row) -> str:
    """A row as a line of the table."""
    return (
        f"{row.name:18}{row.megabytes:8,.1f}{row.decode:15,.0f}{row.prefill:15,.0f}"
        f"{row.perplexity:12.4f}{row.divergence:11.6f}{row.same:9.2%}"
    )
