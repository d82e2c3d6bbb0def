"""Measures each sampling option's cost as a share of the time to decode a token in float32.

    python benchmarks/samplers.py CHECKPOINT [--threads 2] [--spread 3]

The logits are random, with the standard deviation of a trained model's (about 3). --spread 0 uses
the checkpoint's own logits; with random weights these are nearly flat, the worst case for filters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from overhead import token_seconds

import gpt2c
from gpt2c.engine.protocol import Plan
from gpt2c.generate.sampling import Vocabulary, check_sampling

HISTORY = 200  # tokens that penalties see
CHOICES = 40
REPEATS = 5
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "epsilon_cutoff": {"epsilon_cutoff": 1e-4},
    "eta_cutoff": {"eta_cutoff": 1e-3},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "mirostat": {"mirostat_tau": 5.0},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "presence_penalty": {"presence_penalty": 1.0},
    "frequency_penalty": {"frequency_penalty": 1.0},
    "dry": {"dry_multiplier": 0.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "logit_bias": {"logit_bias": {5: 1.0}},
    "common options: temperature, top_k, top_p, min_p, repetition and frequency penalties": {
        "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
    },
    "common options without top_k": {
        "temperature": 0.8, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
    },
}  # fmt: skip


def choice_seconds(model: gpt2c.GPT2, plan: Plan, ids: Any, logits: Any) -> float:
    """Return the time of one choice, the min of several repeats."""
    no_stops, times = np.empty(0, dtype=np.int32), []
    for _ in range(REPEATS):
        job = model._engine.job(ids, CHOICES + 1, plan, 1, 0, no_stops)
        begin = time.perf_counter()
        for _ in range(CHOICES):
            job.advance(logits, logits)
        times.append((time.perf_counter() - begin) / CHOICES)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--spread", type=float, default=3.0)
    options = parser.parse_args()
    model = gpt2c.GPT2.from_pretrained(options.checkpoint, threads=options.threads)
    n_vocab = model.config.vocab_size
    rng = np.random.default_rng(0)
    ids = rng.integers(0, n_vocab, HISTORY).astype(np.int32)
    logits = (options.spread * rng.standard_normal(n_vocab)).astype(np.float32)
    if not options.spread:
        logits = model.logits(ids.tolist())[-1]
    vocabulary = Vocabulary(n_vocab, frozenset(), lambda: model.tokenizer)
    tokens, costs = [], {}
    for name, given in CASES.items():
        tokens.append(token_seconds(model, ids, CHOICES))
        costs[name] = choice_seconds(model, check_sampling(given, vocabulary), ids, logits)
    token = statistics.median(tokens)
    print(f"{n_vocab} ids, spread {logits.std():.2f}; a token takes {1e3 * token:.2f} ms")
    for name, cost in costs.items():
        print(f"{1e6 * cost:8.0f} us {(cost - costs['greedy']) / token:7.2%}  {name}")


if __name__ == "__main__":
    main()
