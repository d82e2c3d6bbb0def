"""The oracle compared with published values and with transformers."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES, TINY, assert_logits_close, config_of, load, model_on, random_weights

from gpt2c.oracle.reference import gelu_erf, gelu_tanh, gpt2, layer_norm, softmax
from gpt2c.weights.checkpoint import open_checkpoint

SORT_NANO = FIXTURES / "sort-nano"
MODELS = sorted(p.parent.name for p in (FIXTURES / "transformers").glob("*/expected.json"))


def weights_of(folder: Path, dtype: str = "float32"):
    with open_checkpoint(folder) as checkpoint:
        weights = {
            name: source.read(0, source.shape[0]).astype(dtype)
            for name, source in checkpoint.tensors.items()
        }
        return checkpoint.config, weights


# The names that sort-nano's authors gave to the steps recorded here.
PUBLISHED = {
    "embed": "x",
    "h.0.ln_1": "ln1",
    "h.0.q": "q",
    "h.0.k": "k",
    "h.0.v": "v",
    "h.0.probs": "attSm",
    "h.0.mixed": "y",
    "h.0.attn_out": "yProj",
    "h.0.resid_mid": "attnResid",
    "h.0.ln_2": "ln2",
    "h.0.mlp_pre": "fc",
    "h.0.mlp_act": "gelu",
    "h.0.mlp_out": "mlp",
    "h.0.resid_post": "block0",
    "h.1.resid_post": "block1",
    "h.2.resid_post": "block2",
    "ln_f": "ln_f",
    "logits": "lm_head",
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sort_nanos_activations_equal_the_published_ones(dtype):
    config, weights = weights_of(SORT_NANO, dtype)
    published = np.load(SORT_NANO / "activations.npz")
    for row in range(3):
        seen = {}
        logits = gpt2(published["idx"][row].astype(int), weights, config, visit=seen.__setitem__)
        for ours, theirs in PUBLISHED.items():
            # The activations are float32 up to about 10, rounded in a different order.
            np.testing.assert_allclose(seen[ours], published[theirs][row], rtol=0, atol=1e-5)
        seen_scores = np.where(np.tri(11, dtype=bool), seen["h.0.scores"], 0)
        scores = np.where(np.tri(11, dtype=bool), published["att"][row], 0)
        np.testing.assert_allclose(seen_scores, scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(softmax(logits), published["probs"][row], rtol=0, atol=1e-5)


def test_sort_nanos_logits_equal_the_published_ones(backend):
    model = load(SORT_NANO, backend)
    published = np.load(SORT_NANO / "activations.npz")
    for row in range(3):
        logits = model.logits(published["idx"][row].astype(int))
        np.testing.assert_allclose(logits, published["lm_head"][row], rtol=0, atol=1e-5)


def test_sort_nano_sorts_every_input(backend):
    model = load(SORT_NANO, backend)
    inputs = [list(digits) for digits in itertools.product(range(3), repeat=6)]
    assert len(inputs) == 729
    assert model.generate(inputs, batch_size=64) == [sorted(digits) for digits in inputs]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_ids_equal_those_of_transformers(name, backend):
    folder = FIXTURES / "transformers" / name
    expected = json.loads((folder / "expected.json").read_text())
    model = load(folder, backend)
    for case in expected["cases"]:
        theirs = np.frombuffer(base64.b64decode(case["logits"]), dtype="<f4")
        assert_logits_close(model.logits(case["ids"]), theirs)
        if "greedy" in case:
            n = len(case["greedy"])
            assert model.generate(case["ids"], max_new_tokens=n) == case["greedy"]


VARIANTS = json.loads((FIXTURES / "transformers" / "variants.json").read_text())["variants"]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: str(variant["config"]))
def test_every_activation_and_switch_of_transformers(variant, backend, tmp_path):
    config = json.loads((TINY / "config.json").read_text()) | variant["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(TINY / "model.safetensors")
    model = load(tmp_path, backend)
    ids = [i % config["vocab_size"] for i in range(config["n_positions"])]
    theirs = np.frombuffer(base64.b64decode(variant["logits"]), dtype="<f4")
    assert_logits_close(model.logits(ids), theirs)


def test_parts_with_a_cache_equal_the_whole():
    config = config_of()
    weights = {n: w.astype(np.float64) for n, w in random_weights(config).items()}
    ids = np.arange(20) % 50
    past = []
    parts = [gpt2(ids[a:b], weights, config, a, past) for a, b in [(0, 7), (7, 8), (8, 20)]]
    # Even in float64, BLAS may sum in a different order for other shapes.
    np.testing.assert_allclose(np.concatenate(parts), gpt2(ids, weights, config), atol=1e-12)


def test_layer_norm_is_per_token():
    x = np.array([[1.0, 2.0, 3.0], [-4.0, 0.0, 4.0]])
    ones, zeros = np.ones(3), np.zeros(3)
    both = layer_norm(x, ones, zeros, 0.0)
    np.testing.assert_allclose(both.mean(axis=1), 0, atol=1e-15)
    np.testing.assert_allclose(both.std(axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(both[:1], layer_norm(x[:1], ones, zeros, 0.0))


def test_gelu_follows_its_definition():
    # x Phi(x): Phi(1) = 0.8413447460685429 (any table of the normal distribution).
    assert gelu_erf(np.array([1.0]))[0] == pytest.approx(0.8413447460685429, abs=1e-15)
    # The tanh approximation is within 5e-4 of it (Hendrycks and Gimpel 2016).
    x = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(gelu_tanh(x), gelu_erf(x), atol=5e-4)


def test_later_tokens_do_not_change_earlier_logits(backend):
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    a, b = list(range(12)), [*range(6), 40, 41, 42, 43, 44, 45]
    # BLAS gives the same sums for the same shapes, and both prompts have 12 tokens.
    np.testing.assert_array_equal(model.logits(a)[:6], model.logits(b)[:6])
    assert not np.array_equal(model.logits(a)[6:], model.logits(b)[6:])
