"""Prints one digest of logits and drawn ids for each dtype. Needs only an installed gpt2c.

The digests are equal on every machine, operating system and instruction set. The program computes
them on each instruction set that this CPU runs, and fails if two differ. It takes some seconds.

Usage: python digest.py [instruction set...]      default: all that this CPU runs
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys

import numpy as np
from numpy.typing import NDArray

import gpt2c
from gpt2c.config import tensor_shapes
from gpt2c.engine import _engine
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import from_arrays

# Each line's dtype, how many bits its weights have (a sign and the digits of an integer), and how
# the engine stores them. An integer with 8 digits fits in bfloat16, one with 11 in float16.
LINES = [
    ("float32", 20, "float32"),
    ("bfloat16", 7, "bfloat16"),
    ("float16", 10, "float16"),
    ("int8", 20, "int8"),
    ("int4", 20, "int4"),
]
# Sizes that do not fill whole panels of 32 columns, blocks of 64 and pages of the KV cache.
CONFIG = gpt2c.GPT2Config(
    vocab_size=1300, n_positions=150, n_embd=132, n_layer=2, n_head=6, eos_token_id=None,
    bos_token_id=None,
)  # fmt: skip
TEXT = "One day, a little girl named Lily found a needle in her room. It was sharp and shiny."


def integers(shape: tuple[int, ...], n_bits: int, key: int) -> NDArray[np.float32]:
    """Return weights of a shape: hashed integers of n_bits and a sign, scaled to +-1/4."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(key << 20)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # an integer hash: xor and multiply
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    whole = (x >> np.uint32(31 - n_bits)).astype(np.int64) - (1 << n_bits)
    return (whole / (4 << n_bits)).astype(np.float32).reshape(shape)


def model_of_integers(dtype: str, n_bits: int, stored: str) -> gpt2c.GPT2:
    """Make the model of one line, and check how the engine stores it."""
    weights = {
        name: integers(shape, n_bits, key)
        for key, (name, shape) in enumerate(tensor_shapes(CONFIG).items())
    }
    model = gpt2c.GPT2(
        from_arrays(CONFIG, weights), MissingTokenizer("it has none"), dtype=dtype, backend="c"
    )
    found = model.stored_dtype("h.1.mlp.c_fc.weight")
    if found != stored:
        sys.exit(f"digest: weights of {n_bits} bits are stored as {found}, not {stored}")
    return model


def digest(dtype: str, n_bits: int, stored: str) -> str:
    """Return the digest of one line."""
    loaded = dtype if dtype in ("int8", "int4") else "float32"
    ids = [17 * i % CONFIG.vocab_size for i in range(CONFIG.n_positions)]
    sha = hashlib.sha256()
    with model_of_integers(loaded, n_bits, stored) as model:
        sha.update(model.logits(ids).astype("<f4").tobytes())
        sha.update(str(model.generate(ids[:9], max_new_tokens=40, seed=11, top_k=50)).encode())
    # The embedded model, tales, is stored in float16.
    if stored in ("float16", "int8", "int4"):
        with gpt2c.GPT2.from_pretrained(dtype=loaded, backend="c") as model:
            sha.update(model.logits(model.tokenizer.encode(TEXT)).astype("<f4").tobytes())
            sha.update(model.generate(TEXT, max_new_tokens=40, seed=12).encode())
    return sha.hexdigest()


def main() -> None:
    chosen = sys.argv[1:] or [name for name, runs in _engine.instruction_sets() if runs]
    for line in LINES:
        digests = {}
        for name in chosen:
            os.environ["GPT2C_ISA"] = name
            digests[name] = digest(*line)
        if len(set(digests.values())) != 1:
            sys.exit(f"digest: {line[0]} differs between instruction sets: {digests}")
        print(f"{line[0]:9} {next(iter(digests.values()))}", flush=True)
    print(
        f"gpt2c {gpt2c.__version__}, arithmetic {gpt2c.ARITHMETIC}, Python "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{' '.join(chosen)}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
