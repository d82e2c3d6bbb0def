"""Draws a logit lens and attention maps of a GPT-2.

    python docs/examples/look_inside.py "Once upon a time there was a king" [--model MODEL]

Writes two pictures. Needs matplotlib.

logit_lens.png shows the most likely next token after each block: the final layer norm and the head
are applied to the residual stream of that block (nostalgebraist 2020, "interpreting GPT: the logit
lens"). attention.png shows the heads of one block: each row is a token, and its colours are the
attention weights on the tokens up to it.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np

from gpt2c import GPT2

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def logit_lens(model: GPT2, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the most likely ids after each block, and their probabilities, both [n_layer, n]."""
    x = model.forward(ids, capture="resid_post")["resid_post"]  # [n_layer, n, n_embd]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + model.config.layer_norm_epsilon
    )
    x = x * model.weight("ln_f.weight") + model.weight("ln_f.bias")
    logits = x @ model.weight("lm_head.weight").T  # [n_layer, n, n_vocab]
    best = logits.argmax(-1)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return best, 1 / e.sum(-1)


def labels(model: GPT2, ids: list[int]) -> list[str]:
    """Return a label for each token, with visible spaces and line ends."""
    return [model.tokenizer.decode([id]).replace(" ", "·").replace("\n", "↵") for id in ids]


def draw_lens(model: GPT2, ids: list[int], path: str) -> None:
    """Draw a row for each block and a column for each token."""
    best, probs = logit_lens(model, ids)
    n_layer, n = best.shape
    figure, axes = plt.subplots(figsize=(1 + 0.9 * n, 1.5 + 0.45 * n_layer), layout="constrained")
    image = axes.imshow(probs, cmap="YlGn", vmin=0, vmax=1, aspect="auto", origin="lower")
    for block in range(n_layer):
        for i, text in enumerate(labels(model, best[block].tolist())):
            color = "white" if probs[block, i] > 0.6 else "black"
            axes.text(i, block, text, ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(n), labels(model, ids), rotation=45, ha="right")
    axes.set_yticks(range(n_layer), [f"after block {b}" for b in range(n_layer)])
    axes.set_title("The most likely next token after each block")
    figure.colorbar(image, label="probability")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_attention(model: GPT2, ids: list[int], block: int, path: str) -> None:
    """Draw the attention map of each head of a block."""
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
            axes.set_xticks(range(len(ids)), labels(model, ids), rotation=90, fontsize=7)
            axes.set_yticks(range(len(ids)), labels(model, ids), fontsize=7)
    figure.suptitle(f"Attention of the heads of block {block}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write both pictures to the current folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--model", help="a folder or a name; default: the embedded model")
    parser.add_argument(
        "--block", type=int, default=1, help="the block whose heads to draw; default: 1"
    )
    options = parser.parse_args()
    with GPT2.from_pretrained(options.model) as model:
        ids = model.tokenizer.encode(options.text)
        draw_lens(model, ids, "logit_lens.png")
        draw_attention(model, ids, options.block, "attention.png")
    print("wrote logit_lens.png and attention.png")


if __name__ == "__main__":
    main()
