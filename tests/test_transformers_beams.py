"""Ids, scores and steps of beam search, compared with transformers' in stored fixtures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import FIXTURES, load, logit_atol

PLAIN = json.loads((FIXTURES / "transformers_beams.json").read_text())
GROUPS = json.loads((FIXTURES / "transformers_beam_groups.json").read_text())


def options_of(case):
    options = dict(case["options"])
    if "logit_bias" in options:
        options["logit_bias"] = {int(id): bias for id, bias in options["logit_bias"].items()}
    return {"num_return_sequences": 1, **options}


@pytest.mark.parametrize("fixture", [PLAIN, GROUPS], ids=["plain", "groups"])
@pytest.mark.parametrize("name", PLAIN["models"])
def test_ids_and_scores_equal_transformers(backend, fixture, name):
    folder = FIXTURES / "transformers" / name
    model = load(folder, backend)
    config = model.config
    for case in fixture["models"][name]:
        eos, options = case["eos"], options_of(case)
        model.config = replace(config, eos_token_id=tuple(eos) or None, pad_token_id=case["pad"])
        found = model.complete(case["ids"], **options)
        assert [c.ids for c in found] == [
            new[:-1] if new[-1] in eos else new for new in case["new"]
        ], case
        assert [c.finish_reason for c in found] == [
            "stop" if new[-1] in eos else "length" for new in case["new"]
        ]
        assert {c.passes for c in found} == {case["steps"]}
        # Each token has the tolerance of log-probabilities (test_transformers_sampling);
        # transformers also sums them in float32.
        length = max(map(len, case["new"]))
        atol = 2 * logit_atol(model.logits(case["ids"])) * length
        scale = max(1.0, length ** -options.get("length_penalty", 1.0))
        np.testing.assert_allclose(
            [c.sequence_score for c in found], case["scores"], rtol=1e-6, atol=atol * scale
        )


def test_the_fixtures_cover_the_cases():
    for fixture in (PLAIN, GROUPS):
        cases = [case for cases in fixture["models"].values() for case in cases]
        ended = [[new[-1] in case["eos"] for new in case["new"]] for case in cases]
        assert sum(map(all, ended)) > len(cases) / 10
        assert sum(any(e) and not all(e) for e in ended) > len(cases) / 20
        assert sum(len(set(map(len, case["new"]))) > 1 for case in cases) > len(cases) / 5
        assert any(len(case["eos"]) > 1 for case in cases)
        assert all("transformers" in fixture["made_with"] for case in cases)
