"""Answers to the exercises of docs/learn.md, one for each part.

tests/test_learn.py compares them with gpt2c's oracle and with its engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from learn import (
    Array,
    Model,
    Weights,
    count_blocks,
    embed,
    gelu,
    gpt2,
    softmax,
    transformer_block,
)


def difference(w: Weights, i: int, j: int) -> Array:
    """1. Return row i minus row j of embed(ids, w). Both tokens are the same, so wte cancels."""
    return w["wpe.weight"][i] - w["wpe.weight"][j]  # [n_embd]


def wrong_norm_of_one_token(w: Weights, name: str) -> Array:
    """2. Return what wrong_norm returns for any text of one token: the bias.

    A single token is its own mean, so subtracting the mean leaves zeros. Every prompt of one token
    then gets the same logits.
    """
    return w[name + ".bias"][None]  # [1, n_embd]


def probs_masked_last(q: Array, k: Array) -> Array:
    """3. Return the probabilities of attention, with the mask after the softmax.

    The probabilities of later tokens are missing from each row, so each row is divided by its sum.
    """
    n_seq, n_total = q.shape[1], k.shape[1]
    probs = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]))  # [n_head, n_seq, n_total]
    probs = probs * np.tri(n_seq, n_total, n_total - n_seq)
    return probs / probs.sum(axis=-1, keepdims=True)


def mlp_by_neurons(x: Array, w: Weights, name: str) -> Array:
    """4. Return the MLP's output for one token x [n_embd], a neuron at a time.

    A neuron compares x with its column of c_fc. The more alike the two are, the more it adds of its
    row of c_proj.
    """
    total = w[name + ".c_proj.bias"].copy()  # [n_embd]
    for neuron in range(w[name + ".c_fc.bias"].size):
        match = x @ w[name + ".c_fc.weight"][:, neuron] + w[name + ".c_fc.bias"][neuron]
        total += gelu(match) * w[name + ".c_proj.weight"][neuron]
    return total


def stream_without(ids: list[int], w: Weights, n_head: int, skipped: int) -> Array:
    """5. Return the stream [n_seq, n_embd] after all blocks but one, which adds nothing.

    Without block 0 the model gives the prompt the lowest probability.
    """
    x = embed(ids, w)  # [n_seq, n_embd]
    for block in range(count_blocks(w)):
        if block != skipped:
            x = transformer_block(x, w, f"h.{block}", n_head)
    return x


def log_probability(ids: list[int], w: Weights, n_head: int) -> float:
    """6. Return the log-probability of ids[1:] after ids[0].

    Row i of the logits predicts token i + 1.
    """
    log_probs = np.log(softmax(gpt2(ids, w, n_head)))  # [n_seq, n_vocab]
    return float(log_probs[np.arange(len(ids) - 1), ids[1:]].sum())


def best_pair(ids: list[int], w: Weights, n_head: int) -> list[int]:
    """7. Return the most likely pair of tokens after ids, which greedy decoding may miss.

    A pair is at most as likely as its first token, so the search ends at the first token that is
    less likely than the best pair so far.
    """
    firsts = softmax(gpt2(ids, w, n_head)[-1])  # [n_vocab]
    best, pair = 0.0, [-1, -1]
    for first in np.argsort(-firsts):
        if firsts[first] <= best:
            break
        seconds = softmax(gpt2([*ids, int(first)], w, n_head)[-1])  # [n_vocab]
        second = seconds.argmax()
        if firsts[first] * seconds[second] > best:
            best, pair = firsts[first] * seconds[second], [int(first), int(second)]
    return pair


def cache_size(n_total: int, n_layer: int, n_embd: int) -> int:
    """8. Return how many numbers a cache of n_total tokens holds.

    Each block keeps a key and a value for each token.

    GPT-2 124M with its 1,024 positions: 2 * 12 * 1024 * 768 numbers, 72 MiB in float32.
    """
    return 2 * n_layer * n_total * n_embd


def top_p_ids(logits: Array, p: float) -> list[int]:
    """9. Return the smallest set of most likely ids that have a total probability of at least p."""
    probs = softmax(logits)  # [n_vocab]
    order = np.argsort(-probs, kind="stable")
    n_kept = np.searchsorted(np.cumsum(probs[order]), p) + 1
    return [int(id) for id in order[:n_kept]]


def from_picogpt(encoder: Any, hparams: dict[str, int], params: dict[str, Any]) -> Model:
    """10. Return the Model of picoGPT's three parts. Nested names become GPT-2's."""
    w = {"wte.weight": params["wte"], "wpe.weight": params["wpe"]}
    layers = {"ln_f": params["ln_f"]}
    for i, block in enumerate(params["blocks"]):
        layers |= {f"h.{i}.ln_1": block["ln_1"], f"h.{i}.ln_2": block["ln_2"]}
        layers |= {f"h.{i}.attn.{name}": layer for name, layer in block["attn"].items()}
        layers |= {f"h.{i}.mlp.{name}": layer for name, layer in block["mlp"].items()}
    for name, layer in layers.items():
        weight, bias = ("g", "b") if "ln_" in name else ("w", "b")
        w |= {name + ".weight": layer[weight], name + ".bias": layer[bias]}
    return Model(encoder, w, hparams["n_head"], eos_id=None)
