"""GPT-2 in plain NumPy: the oracle that every other result is tested against.

Start reading at :func:`gpt2`, at the end, and go upwards. The model is that of Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners".

The weights `w` have GPT-2's own names, such as "h.0.attn.c_attn.weight". All arithmetic is in their
dtype, float32 or float64. Comments give shapes in these names:

    n          tokens of this call
    n_past     tokens in the KV cache, fed by earlier calls
    n_total    n_past + n
    n_embd     width of the residual stream x; n_embd = n_head * head_dim
    n_inner    width of the MLP's hidden layer, usually 4 * n_embd
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.config import GPT2Config

Array: TypeAlias = NDArray[Any]  # float32 or float64
# The KV cache: the keys and values of each block, [n_head, n_past, head_dim].
Past: TypeAlias = list[tuple[Array, Array]]
# Called with the name and the value of each activation; may edit the value in place.
Visit: TypeAlias = Callable[[str, Array], None]


def relu(x: Array) -> Array:
    return np.where(x < 0, x.dtype.type(0), x)


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # where exp(-x) overflows, the sigmoid is 0
        return 1 / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    """GPT-2's GELU: the tanh approximation of Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_erf(x: Array) -> Array:
    """The exact GELU."""
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": gelu_erf,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": relu,
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}


def softmax(x: Array) -> Array:
    """Softmax over the last axis; subtracting the max keeps exp from overflowing."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """Normalise each token to mean 0 and variance 1 over n_embd, then scale and shift."""
    mean = x.mean(axis=-1, keepdims=True)  # [n, 1]
    variance = np.square(x - mean).mean(axis=-1, keepdims=True)  # [n, 1]
    return (x - mean) / np.sqrt(variance + x.dtype.type(epsilon)) * weight + bias  # [n, n_embd]


def linear(x: Array, w: Mapping[str, Array], name: str) -> Array:
    return x @ w[name + ".weight"] + w[name + ".bias"]  # [n, in] @ [in, out] -> [n, out]


def split_heads(x: Array, n_head: int) -> Array:
    n, n_embd = x.shape
    return x.reshape(n, n_head, n_embd // n_head).swapaxes(0, 1)  # [n_head, n, head_dim]


def attention(
    x: Array, w: Mapping[str, Array], config: GPT2Config, block: int, past: Past, visit: Visit
) -> Array:
    """Causal multi-head attention: each token attends to itself and to all tokens before it."""
    h = f"h.{block}."
    q, k, v = np.split(linear(x, w, h + "attn.c_attn"), 3, axis=-1)  # each [n, n_embd]
    q, k, v = (split_heads(part, config.n_head) for part in (q, k, v))  # [n_head, n, head_dim]
    for name, part in (("q", q), ("k", k), ("v", v)):
        visit(h + name, part)
    if block < len(past):
        k = np.concatenate([past[block][0], k], axis=1)  # [n_head, n_total, head_dim]
        v = np.concatenate([past[block][1], v], axis=1)  # [n_head, n_total, head_dim]
        past[block] = k, v
    else:
        past.append((k, v))

    scores = q @ k.swapaxes(1, 2)  # [n_head, n, n_total]
    if config.scale_attn_weights:
        scores = scores / math.sqrt(q.shape[-1])
    if config.scale_attn_by_inverse_layer_idx:
        scores = scores / (block + 1)
    n, n_total = scores.shape[1:]
    causal = np.tri(n, n_total, n_total - n, dtype=bool)  # [n, n_total]; False: a later token
    scores = np.where(causal, scores, scores.dtype.type(-np.inf))
    visit(h + "scores", scores)
    probs = softmax(scores)  # [n_head, n, n_total]
    visit(h + "probs", probs)
    mixed = (probs @ v).swapaxes(0, 1).reshape(x.shape)  # [n, n_embd]
    visit(h + "mixed", mixed)
    return linear(mixed, w, h + "attn.c_proj")  # [n, n_embd]


def mlp(x: Array, w: Mapping[str, Array], config: GPT2Config, block: int, visit: Visit) -> Array:
    h = f"h.{block}."
    hidden = linear(x, w, h + "mlp.c_fc")  # [n, n_inner]
    visit(h + "mlp_pre", hidden)
    activated = ACTIVATIONS[config.activation](hidden)  # [n, n_inner]
    visit(h + "mlp_act", activated)
    return linear(activated, w, h + "mlp.c_proj")  # [n, n_embd]


def transformer_block(
    x: Array, w: Mapping[str, Array], config: GPT2Config, block: int, past: Past, visit: Visit
) -> Array:
    """Add attention(ln_1(x)) to the residual stream x, then mlp(ln_2(x))."""
    h, epsilon = f"h.{block}.", config.layer_norm_epsilon
    visit(h + "resid_pre", x)
    normed = layer_norm(x, w[h + "ln_1.weight"], w[h + "ln_1.bias"], epsilon)  # [n, n_embd]
    visit(h + "ln_1", normed)
    attn_out = attention(normed, w, config, block, past, visit)  # [n, n_embd]
    visit(h + "attn_out", attn_out)
    x = x + attn_out
    visit(h + "resid_mid", x)
    normed = layer_norm(x, w[h + "ln_2.weight"], w[h + "ln_2.bias"], epsilon)  # [n, n_embd]
    visit(h + "ln_2", normed)
    mlp_out = mlp(normed, w, config, block, visit)  # [n, n_embd]
    visit(h + "mlp_out", mlp_out)
    x = x + mlp_out
    visit(h + "resid_post", x)
    return x


def gpt2(
    ids: Array,
    w: Mapping[str, Array],
    config: GPT2Config,
    n_past: int = 0,
    past: Past | None = None,
    visit: Visit = lambda name, value: None,
) -> Array:
    """Return logits [n, n_vocab] for ids, int [n]: row i predicts the token after ids[i].

    A sequence may be fed in parts: `past` is the KV cache of the n_past tokens fed before, and each
    call extends it in place. Feeding the whole sequence in one call gives the same logits. `visit`
    is called with the name and the value of every activation, and may edit the value in place.
    """
    past = [] if past is None else past
    positions = np.arange(n_past, n_past + len(ids))
    x = w["wte.weight"][ids] + w["wpe.weight"][positions]  # [n, n_embd]
    visit("embed", x)
    for block in range(config.n_layer):
        x = transformer_block(x, w, config, block, past, visit)  # [n, n_embd]
    x = layer_norm(x, w["ln_f.weight"], w["ln_f.bias"], config.layer_norm_epsilon)  # [n, n_embd]
    visit("ln_f", x)
    head = w["wte.weight"] if config.tie_word_embeddings else w["lm_head.weight"]
    logits: Array = x @ head.T  # [n, n_embd] @ [n_embd, n_vocab] -> [n, n_vocab]
    visit("logits", logits)
    return logits
