"""Compares gpt2c and transformers in float32 on the same checkpoint.

    python tools/compare_with_transformers.py CHECKPOINT [TEXT_FILE] [--random]

Prints the largest difference between their logits, the RMS error of each against torch's float64,
and whether 100 greedy ids agree. Needs torch and transformers. --random first creates CHECKPOINT:
a GPT-2 124M with transformers' random initial weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import GPT2LMHeadModel

import gpt2c

MIN_POSITIONS = 1000  # positions to compare, at least


def token_windows(model: gpt2c.GPT2, text: Path | None) -> list[list[int]]:
    """Return windows of n_positions tokens of the text, or random ones without a text."""
    length = model.config.n_positions
    n_windows = -(-MIN_POSITIONS // length)
    if text is None:
        rng = np.random.default_rng(0)
        return rng.integers(0, model.config.vocab_size, (n_windows, length)).tolist()
    ids = model.tokenizer.encode(text.read_text()[: 20 * length * n_windows])
    return [ids[i * length : (i + 1) * length] for i in range(n_windows)]


@torch.no_grad()
def logits_of(model: GPT2LMHeadModel, windows: list[list[int]]) -> np.ndarray:
    """Return the logits of all windows together, [n, n_vocab]."""
    return np.concatenate([model(torch.tensor([w])).logits[0].numpy() for w in windows])


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--random", action="store_true")
    options = parser.parse_args()
    if options.random:
        torch.manual_seed(0)
        GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(options.checkpoint)

    ours = gpt2c.GPT2.from_pretrained(options.checkpoint, backend="c")
    theirs = GPT2LMHeadModel.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    windows = token_windows(ours, options.text)
    prompts = [window[:16] for window in windows[:3]]
    # Prompt and new ids must fit the context.
    n_new = min(100, ours.config.n_positions - 16)
    greedy = [
        theirs.generate(
            torch.tensor([p]), attention_mask=torch.ones(1, 16, dtype=torch.long),
            max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, 16:].tolist()
        for p in prompts
    ]  # fmt: skip
    equal = [ours.generate(p, max_new_tokens=n_new) for p in prompts] == greedy

    torch_float32 = logits_of(theirs, windows)
    ours_float32 = np.concatenate([ours.logits(window) for window in windows])
    torch_float64 = logits_of(theirs.double(), windows)
    print(f"gpt2c {gpt2c.__version__} ({ours.backend}), transformers {transformers.__version__}, "
          f"torch {torch.__version__}; {len(ours_float32)} positions")  # fmt: skip
    largest = np.abs(ours_float32 - torch_float32).max()
    print(f"largest logit difference {largest:.2e} (RMS of the logits {rms(torch_float64):.2f})")
    error, torch_error = rms(ours_float32 - torch_float64), rms(torch_float32 - torch_float64)
    print(f"RMS error against float64: gpt2c {error:.3e}, torch {torch_error:.3e}, "
          f"ratio {error / torch_error:.2f}")  # fmt: skip
    print(f"{n_new} greedy ids after {len(prompts)} prompts equal: {equal}")


if __name__ == "__main__":
    main()
