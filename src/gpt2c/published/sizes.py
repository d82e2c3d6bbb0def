"""OpenAI's four sizes of GPT-2, and which of them a configuration is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpt2c.config import GPT2Config


@dataclass(frozen=True)
class Size:
    """A size: its name, and the configuration of its checkpoint."""

    name: str
    config: GPT2Config


SIZES: Final = tuple(
    Size(name, GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    for name, n_layer, n_head, n_embd in (
        ("124M", 12, 12, 768),
        ("355M", 24, 16, 1024),
        ("774M", 36, 20, 1280),
        ("1558M", 48, 25, 1600),
    )
)
# What decides which computation the weights mean; the special tokens do not.
ARCHITECTURE: Final = (
    "n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "activation_function",
    "layer_norm_epsilon", "tie_word_embeddings", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
_SHAPE: Final = ("n_layer", "n_embd", "vocab_size")


def has_shape_of(config: GPT2Config, other: GPT2Config) -> bool:
    """Return whether two models have tensors of the same shapes, apart from the positions."""
    return all(getattr(config, name) == getattr(other, name) for name in _SHAPE)


def size_of(config: GPT2Config) -> str | None:
    """Return the name of OpenAI's size that has this shape, such as "124M", or None."""
    return next((size.name for size in SIZES if has_shape_of(config, size.config)), None)
