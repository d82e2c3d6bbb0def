"""The models whose exact logits are recorded in golden_bits.json."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from conftest import config_of, model_on

from gpt2c import GPT2, GPT2Config
from gpt2c.config import tensor_shapes

# Each activation, with shapes that do and do not fill whole panels, blocks of k, pages and blocks
# of positions.
CONFIGS = {
    "gelu_new": {"n_embd": 64, "n_head": 4, "n_positions": 200, "vocab_size": 300},
    "gelu": {"n_embd": 130, "n_head": 2, "n_positions": 70, "activation_function": "gelu"},
    "relu": {"n_embd": 33, "n_head": 3, "n_inner": 100, "activation_function": "relu"},
    "silu": {"n_embd": 24, "n_head": 8, "activation_function": "silu", "scale_attn_weights": False},
    "quick_gelu": {
        "n_embd": 48, "n_head": 1, "activation_function": "quick_gelu",
        "scale_attn_by_inverse_layer_idx": True,
    },
    "tanh": {
        "n_embd": 10, "n_head": 5, "activation_function": "tanh", "tie_word_embeddings": False,
    },
}  # fmt: skip


def weights_of(config: GPT2Config) -> dict[str, np.ndarray]:
    """Draw weights from NumPy's legacy generator, whose stream is frozen; scale them exactly."""
    rng = np.random.RandomState(12345)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        # Multiples of 2^-12 between -1/2 and 1/2, so no library rounds them.
        values = rng.randint(-2048, 2049, shape).astype(np.float32) / np.float32(4096)
        weights[name] = values + np.float32("ln_" in name and name.endswith("weight"))
    return weights


def ids_of(config: GPT2Config) -> np.ndarray:
    """Draw token ids that fill the context."""
    return np.random.RandomState(7).randint(0, config.vocab_size, config.n_positions)


def digests(
    isa: str, dtype: str, make: Callable[..., GPT2] = model_on
) -> Iterator[tuple[str, str]]:
    """Yield the SHA-256 of each model's logits and of the ids that it samples.

    `make` has the parameters of model_on.
    """
    for name, options in CONFIGS.items():
        config = config_of(**options)
        model = make(isa, config, weights_of(config), dtype=dtype)
        ids = ids_of(config)
        logits = model.logits(ids).astype("<f4")
        yield f"{name}, logits", hashlib.sha256(logits.tobytes()).hexdigest()
        drawn = model.generate(ids[:5], max_new_tokens=30, temperature=0.9, top_k=20, seed=2**40)
        yield f"{name}, draws", hashlib.sha256(bytes(str(drawn), "ascii")).hexdigest()
