"""Draws what a GPT-2 has in mind on the way: a logit lens, and what its heads look at.

    python docs/examples/look_inside.py "Once upon a time there was a king" [--model MODEL]

Writes logit_lens.png: each block's likeliest next token, were the residual stream after it the
last (nostalgebraist 2020, "interpreting GPT: the logit lens"); and attention.png: a block's heads,
each row a token and how it shares out its attention over those before. Needs matplotlib.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np

from gpt2c import GPT2

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def logit_lens(model: GPT2, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest ids [n_layer, n] after each block, and their probabilities."""
    x = model.forward(ids, capture="resid_post")["resid_post"]  # [n_layer, n, n_embd]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + model.config.layer_norm_epsilon
    )
    x = x * model.weight("ln_f.weight") + model.weight("ln_f.bias")
    logits = x @ model.weight("lm_head.weight").T  # [n_layer, n, n_vocab]
    best = logits.argmax(-1)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return best, 1 / e.sum(-1)


def shown(model: GPT2, ids: list[int]) -> list[str]:
    """Tokens as labels, with their spaces visible."""
    return [model.tokenizer.decode([id]).replace(" ", "·").replace("\n", "↵") for id in ids]


def draw_lens(model: GPT2, ids: list[int], path: str) -> None:
    """A row for each block, a column for each token."""
    best, probs = logit_lens(model, ids)
    n_layer, n = best.shape
    figure, axes = plt.subplots(figsize=(1 + 0.9 * n, 1.5 + 0.45 * n_layer), layout="constrained")
    image = axes.imshow(probs, cmap="YlGn", vmin=0, vmax=1, aspect="auto", origin="lower")
    for block in range(n_layer):
        for i, text in enumerate(shown(model, best[block].tolist())):
            color = "white" if probs[block, i] > 0.6 else "black"
            axes.text(i, block, text, ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(n), shown(model, ids), rotation=45, ha="right")
    axes.set_yticks(range(n_layer), [f"after block {b}" for b in range(n_layer)])
    axes.set_title("The likeliest next token, read off after each block")
    figure.colorbar(image, label="its probability")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_attention(model: GPT2, ids: list[int], block: int, path: str) -> None:
    """A square for each head."""
    probs = model.forward(ids, capture=f"h.{block}.probs")[f"h.{block}.probs"]  # [n_head, n, n]
    n_columns = min(4, len(probs))
    n_rows = -(-len(probs) // n_columns)
    figure, all_axes = plt.subplots(
        n_rows, n_columns, figsize=(3 * n_columns, 3 * n_rows), layout="constrained", squeeze=False
    )
    for head, axes in enumerate(all_axes.flat):
        axes.axis("off")
        if head < len(probs):
            axes.axis("on")
            axes.imshow(probs[head], cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"head {head}", fontsize=10)
            axes.set_xticks(range(len(ids)), shown(model, ids), rotation=90, fontsize=7)
            axes.set_yticks(range(len(ids)), shown(model, ids), fontsize=7)
    figure.suptitle(f"What the heads of block {block} look at")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Both pictures, into the folder that it is called in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--model", help="a folder, or a name; default: the embedded model")
    parser.add_argument("--block", type=int, default=1, help="whose heads are drawn")
    options = parser.parse_args()
    with GPT2.from_pretrained(options.model) as model:
        ids = model.tokenizer.encode(options.text)
        draw_lens(model, ids, "logit_lens.png")
        draw_attention(model, ids, options.block, "attention.png")
    print("wrote logit_lens.png and attention.png")


if __name__ == "__main__":
    main()
