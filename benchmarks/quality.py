"""Measures what quantisation costs: perplexity, agreement with float32, error of weights.

    python benchmarks/quality.py CHECKPOINT TEXT [--tokens 20000] [--also Q8_0.gguf ...]
    python benchmarks/quality.py --weights FILE.safetensors

The text is cut into windows of the context's length; each token is predicted from the earlier ones
of its window. --also names other quantised files of the same model, such as llama.cpp's. gpt2c
dequantises GGUF, so these lines show the cost of the weights in float32 arithmetic, without the
cost of llama.cpp's 8-bit activations and float16 KV cache. --weights prints the relative RMS error
of each matrix.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2c import GPT2
from gpt2c.engine import _engine
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import open_checkpoint
from gpt2c.weights.checkpoint.quantized import GROUP, PANEL, dequantised

Logits = NDArray[np.float32]
CHUNK = 128  # positions whose logits are in memory together


@dataclass
class Cost:
    """What the quantisation of one model costs, as sums over all tokens."""

    n: int = 0  # tokens
    nats: float = 0.0  # the negative log-probability
    divergence: float = 0.0  # KL(float32 || this), in nats
    n_same: int = 0  # tokens whose most likely id equals float32's

    def add(self, exact: Logits, logits: Logits, targets: NDArray[np.int64]) -> None:
        p, q = log_softmax(exact), log_softmax(logits)
        self.n += len(targets)
        self.nats -= float(q[np.arange(len(targets)), targets].sum())
        self.divergence += float((np.exp(p) * (p - q)).sum())
        self.n_same += int((exact.argmax(axis=1) == logits.argmax(axis=1)).sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nats / self.n))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def logits_in_chunks(model: GPT2, window: list[int]) -> Iterator[Logits]:
    """Yield the logits after each token but the last, [up to CHUNK, n_vocab] at a time."""
    session = model.session()
    for begin in range(0, len(window) - 1, CHUNK):
        yield session.feed(window[begin : min(begin + CHUNK, len(window) - 1)], all=True)


def compare(models: dict[str, GPT2], ids: list[int]) -> dict[str, Cost]:
    """Return the cost of each model, compared with the one named "float32"."""
    exact = models["float32"]
    costs = {name: Cost() for name in models}
    n = exact.config.n_positions
    for begin in range(0, len(ids) - 1, n):
        window = ids[begin : begin + n + 1]
        runs = {name: logits_in_chunks(model, window) for name, model in models.items()}
        at = 0
        for reference in runs.pop("float32"):
            targets = np.array(window[at + 1 : at + 1 + len(reference)])
            at += len(reference)
            costs["float32"].add(reference, reference, targets)
            for name, run in runs.items():
                costs[name].add(reference, next(run), targets)
    return costs


def open_in_float32(path: str) -> GPT2:
    """Open a checkpoint in float32, without its tokenizer, which may be a placeholder."""
    with open_checkpoint(path) as checkpoint:
        return GPT2(checkpoint, MissingTokenizer("not needed here"), dtype="float32")


def print_costs(checkpoint: str, text: Path, n_tokens: int, others: list[str]) -> None:
    models = {dtype: GPT2.from_pretrained(checkpoint, dtype=dtype)
              for dtype in ("float32", "int8", "int4")}  # fmt: skip
    models |= {"/".join(Path(path).parts[-2:]): open_in_float32(path) for path in others}
    ids = models["float32"].tokenizer.encode(text.read_text())[: n_tokens + 1]
    costs = compare(models, ids)
    exact = costs["float32"].perplexity
    print(f"{checkpoint}, {len(ids) - 1} tokens of {text.name}\n")
    print(f"{'':24}{'perplexity':>12}{'increase':>9}{'top-1':>9}{'mean KL':>11}{'MB':>8}")
    for name, cost in costs.items():
        print(f"{name:24}{cost.perplexity:12.4f}{cost.perplexity / exact - 1:9.3%}"
              f"{cost.n_same / cost.n:9.2%}{cost.divergence / cost.n:11.6f}"
              f"{models[name].n_bytes / 1e6:8.0f}")  # fmt: skip


def round_trip(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Quantise and dequantise a matrix [k, n] that consists of whole groups and panels."""
    k, n = weights.shape
    isa = [name for name, runs in _engine.instruction_sets() if runs][-1]
    panels = [
        [
            _engine.quantize_block(
                isa, bits, np.ascontiguousarray(weights[i : i + GROUP, j : j + PANEL])
            )
            for i in range(0, k, GROUP)
        ]
        for j in range(0, n, PANEL)
    ]
    return dequantised(np.array(panels), f"int{bits}")


def print_weights(file: Path) -> None:
    from safetensors.numpy import load_file

    print(f"{'relative RMS error of':44}{'int8':>9}{'int4':>9}")
    for name, tensor in sorted(load_file(file).items()):
        weights = tensor.astype(np.float32)
        if weights.ndim != 2 or weights.shape[0] % GROUP or weights.shape[1] % PANEL:
            continue
        square = np.square(weights, dtype=np.float64).sum()
        errors = [
            np.sqrt(np.square(round_trip(weights, bits) - weights, dtype=np.float64).sum() / square)
            for bits in (8, 4)
        ]
        print(f"{name:44}{errors[0]:9.5f}{errors[1]:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--also", nargs="*", default=[], metavar="CHECKPOINT")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.weights:
        print_weights(options.weights)
    if options.checkpoint:
        if options.text is None:
            parser.error("TEXT is missing: the text to measure CHECKPOINT on")
        print_costs(options.checkpoint, options.text, options.tokens, options.also)


if __name__ == "__main__":
    main()
