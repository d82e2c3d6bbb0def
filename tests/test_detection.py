"""The statistics of detectors of generated text equal those of the papers' programs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import FIXTURES, TALES, arrays_of, config_of, load, model_on, random_weights

import gpt2c
from gpt2c import GPT2, Score
from gpt2c.config import GPT2Config

FIXTURE = json.loads((FIXTURES / "detection.json").read_text(encoding="utf-8"))
STATISTICS = ("mean_logprob", "mean_log_rank", "mean_entropy", "lrr", "curvature", "binoculars")


def performer_on(backend: str) -> GPT2:
    """Return tales with the performer's weights."""
    weights = arrays_of(TALES)
    for name, factor in FIXTURE["performer"].items():
        weights[name.removeprefix("transformer.")] *= factor
    config = json.loads((TALES / "config.json").read_text())
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return model_on(backend, GPT2Config(**{name: config[name] for name in names}), weights)


def test_the_statistics_are_those_of_the_papers_programs(backend):
    observer, performer = load(TALES, backend), performer_on(backend)
    texts = [case["text"] for case in FIXTURE["texts"]]
    scores = observer.score(texts, second_moments=True, other=performer)
    for case, score in zip(FIXTURE["texts"], scores, strict=True):
        assert score.ids.tolist() == case["ids"]
        for name in STATISTICS:
            # The fixture is in float64. Float32 has an error of some 1e-6 in a log-probability.
            # The curvature's numerator is a difference of sums that are some 50 times as large.
            tolerance = 1e-4 if name == "curvature" else 1e-5
            found = getattr(score, name)
            assert found == pytest.approx(case["values"][name], rel=tolerance), (case["text"], name)


def score_of(logprobs, ranks, **fields) -> Score:
    n = len(logprobs)
    nothing = np.empty((n, 0))
    entropies = fields.pop("entropies", np.zeros(n))
    return Score(
        np.zeros(n, dtype=np.int32), np.array(logprobs, dtype=np.float32),
        np.array(ranks, dtype=np.int32), np.array(entropies, dtype=np.float32),
        nothing.astype(np.int32), nothing, **fields,
    )  # fmt: skip


def test_the_first_token_counts_only_if_it_was_scored():
    score = score_of([math.nan, -1, -3], [0, 1, 8], entropies=[math.nan, 2, 4])
    assert score.mean_logprob == -2
    assert score.mean_log_rank == pytest.approx(math.log(8) / 2)
    assert score.mean_entropy == 3
    assert score.lrr == pytest.approx(4 / math.log(8))
    bos = score_of([-5, -1, -3], [64, 1, 8], entropies=[6, 2, 4])
    assert bos.mean_logprob == -3
    assert bos.lrr == pytest.approx(9 / math.log(512))
    assert bos.mean_entropy == 4


def test_the_curvature_divides_by_the_deviation_of_the_sum():
    """Means -2 and -4, variances 5 and 20; log-probabilities -1 and -3."""
    moments = np.array([math.nan, 9, 36], dtype=np.float32)
    score = score_of(
        [math.nan, -1, -3], [0, 1, 2], entropies=[math.nan, 2, 4], second_moments=moments
    )
    assert score.curvature == pytest.approx((-4 + 6) / 5)


def test_binoculars_counts_the_end():
    arrays = np.array([[math.nan, 2, 3], [math.nan, -4, -6]], dtype=np.float32)
    score = score_of(
        [math.nan, -1, -3], [0, 1, 2], cross_entropies=arrays[0], other_logprobs=arrays[1],
        end_cross_entropy=7.0,
    )  # fmt: skip
    assert score.binoculars == pytest.approx(5 / 4)


def test_certain_predictions_give_infinite_or_undefined_ratios():
    zeros = np.zeros(2, dtype=np.float32)
    certain = score_of([0, 0], [1, 1], second_moments=-zeros)
    assert math.isnan(certain.lrr)
    assert math.isnan(certain.curvature)
    assert score_of([-1, -1], [1, 1]).lrr == math.inf
    impossible = score_of([-math.inf, -1], [9, 1], second_moments=zeros)
    assert impossible.curvature == -math.inf
    # Rounding made the variance negative.
    rounded = score_of([-1, -1], [1, 1], entropies=[1, 1], second_moments=zeros + 0.9999999)
    assert math.isnan(rounded.curvature)


def test_a_text_without_a_scored_token_has_no_statistics(backend):
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    score = model.score([3], second_moments=True, other=model)
    assert all(math.isnan(getattr(score, name)) for name in STATISTICS)


@pytest.mark.parametrize(
    ("name", "argument"), [("curvature", "second_moments=True"), ("binoculars", "other=model")]
)
def test_what_was_not_measured_is_named(name, argument):
    score = score_of([-1.0], [1])
    with pytest.raises(gpt2c.OptionError, match=argument):
        getattr(score, name)
