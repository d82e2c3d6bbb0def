"""Processed logits and log-probabilities, compared with transformers' in stored fixtures."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from conftest import FIXTURES, config_of, load, logit_atol, model_on, random_weights

from gpt2c.generate.sampling import Vocabulary, check_sampling
from gpt2c.text.tokenizer import MissingTokenizer

SAMPLING = json.loads((FIXTURES / "transformers_sampling.json").read_text())
SCORES = json.loads((FIXTURES / "transformers_scores.json").read_text())
N_VOCAB = 120


def decoded(text):
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


@pytest.fixture(scope="module")
def weights():
    return random_weights(config_of(vocab_size=N_VOCAB, n_layer=0))


@pytest.mark.parametrize("number", range(len(SAMPLING["cases"])))
def test_processed_logits_equal_transformers(backend, weights, number):
    case = SAMPLING["cases"][number]
    options = dict(case["options"])
    if "logit_bias" in options:
        options["logit_bias"] = {int(id): bias for id, bias in options["logit_bias"].items()}
    eos = SAMPLING["eos_token_id"]
    vocabulary = Vocabulary(N_VOCAB, frozenset([eos]), lambda: MissingTokenizer("a test"))
    plan = check_sampling({"do_sample": True, **options}, vocabulary)
    model = model_on(backend, config_of(vocab_size=N_VOCAB, n_layer=0), weights)
    # Only min_new_tokens depends on which ids are new. No id is new here, so it always applies.
    ids, none = np.array(case["ids"], dtype=np.int32), np.empty(0, dtype=np.int32)
    ours = model._engine.apply_stages(plan, decoded(case["logits"]), ids, none)
    theirs = decoded(case["processed"])
    np.testing.assert_array_equal(ours > -np.inf, theirs > -np.inf)
    kept = ours > -np.inf
    # Each side rounds one division or product once.
    np.testing.assert_allclose(ours[kept], theirs[kept], rtol=3e-7)


@pytest.mark.parametrize("name", SCORES["models"])
def test_log_probabilities_equal_transformers(backend, name):
    expected = SCORES["models"][name]
    folder = FIXTURES / "transformers" / name
    model = load(folder, backend)
    for text, exact, score in zip(
        expected["texts"], expected["logprobs"], model.score(expected["texts"]), strict=True
    ):
        assert score.ids.tolist() == text
        assert np.isnan(score.logprobs[0])
        # A log-probability is logit - logsumexp; each of the two may be off by logit_atol.
        atol = 2 * logit_atol(model.logits(text))
        np.testing.assert_allclose(score.logprobs[1:], exact, rtol=0, atol=atol)
        assert score.total == pytest.approx(sum(exact), abs=atol * len(text))
