"""Beam search: it finds the best completions, in any batch, and its beams share caches."""

from __future__ import annotations

import gc
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import FIXTURES, config_of, model_on, needs_engine, on_backend, random_weights

import gpt2c
from gpt2c import GPT2
from gpt2c.engine.protocol import Plan
from gpt2c.schedule import searching
from gpt2c.schedule.searching import Search

CONFIG = config_of(n_positions=100, eos_token_id=7)
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


def prompts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, rng.integers(1, 60)).tolist() for _ in range(n)]


def assert_same(backend, completions, others):
    """Compare ids exactly, and scores bit for bit; NumPy's matrix products may differ in bits."""
    assert [c.ids for c in completions] == [c.ids for c in others]
    scores = ([c.sequence_score for c in each] for each in (completions, others))
    np.testing.assert_allclose(*scores, rtol=1e-5 if backend == "numpy" else 0)


# ---- the search itself ----


def brute_force(model, prompt, n, eos, length_penalty):
    """Return every completion of up to n ids with its score, best first.

    The score is the sum of its log-probabilities, divided by its length ** length_penalty.
    """
    scored = []
    for length in range(1, n + 1):
        for ids in itertools.product(range(model.config.vocab_size), repeat=length):
            if eos in ids[:-1] or (length < n and ids[-1] != eos):
                continue
            log_probs = model.score(prompt + list(ids)).logprobs[len(prompt) :]
            score = float(np.sum(log_probs, dtype=np.float64)) / length**length_penalty
            scored.append((score, list(ids[:-1] if ids[-1] == eos else ids)))
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5, 2.0])
def test_enough_beams_find_the_best_completions(backend, length_penalty):
    config = config_of(vocab_size=4, n_positions=20, eos_token_id=2)
    model = model_on(backend, config, random_weights(config, 3))
    for prompt in ([1], [0, 3, 1]):
        best = brute_force(model, prompt, 4, 2, length_penalty)
        found = model.complete(
            prompt, max_new_tokens=4, num_beams=81, num_return_sequences=20,
            length_penalty=length_penalty, early_stopping="never",
        )  # fmt: skip
        assert [c.ids for c in found] == [ids for _, ids in best[:20]]
        # Each score sums at most four float32 log-probabilities from the same kernels.
        scores = [c.sequence_score for c in found]
        np.testing.assert_allclose(scores, [score for score, _ in best[:20]], rtol=1e-6)


def test_fewer_completions_may_exist_than_requested(backend):
    config = config_of(vocab_size=3, eos_token_id=None)
    model = model_on(backend, config, random_weights(config))
    found = model.generate([1], max_new_tokens=1, num_beams=5, num_return_sequences=5)
    assert sorted(found) == [[0], [1], [2]]


def test_beams_score_at_least_as_well_as_greedy(model):
    for prompt in prompts(5):
        found = model.complete(prompt, max_new_tokens=8, num_beams=8, num_return_sequences=8)
        scores = [c.sequence_score for c in found]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(c.ids) for c in found}) == 8
        assert [c.sample for c in found] == list(range(8))
        greedy = model.score(prompt + model.generate(prompt, max_new_tokens=8, stop_token_ids=[]))
        assert scores[0] >= float(greedy.logprobs[len(prompt) :].mean()) - 1e-5


def test_options_apply_to_every_beam(model):
    for prompt in prompts(4):
        found = model.complete(
            prompt, max_new_tokens=12, num_beams=4, num_return_sequences=4, suppress_tokens=[3, 4],
            no_repeat_ngram_size=1, min_new_tokens=5, bad_words=[[9]],
        )  # fmt: skip
        for done in found:
            assert len(done.ids) >= 5
            assert len({*prompt, *done.ids} - {*prompt}) == len(done.ids)
            assert not {3, 4, 7, 9} & set(done.ids)


BANS = [
    {"suppress_tokens": list(range(0, 50, 2))},
    {"min_new_tokens": 6},
    {"num_beam_groups": 2, "diversity_penalty": 1.0, "suppress_tokens": [5], "min_new_tokens": 3},
]


@pytest.mark.parametrize("options", BANS)
def test_listed_likeliest_ids_give_the_same_beams_as_all_ids(backend, model, options):
    """The engine's list of likeliest ids and all log-probabilities lead to the same beams."""
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, **options}
    # This processor changes nothing, but makes the search read all log-probabilities.
    slow = {**options, "logits_processor": lambda ids, log_probs: log_probs}
    for prompt in prompts(4):
        assert_same(backend, model.complete(prompt, **options), model.complete(prompt, **slow))


def test_many_beams(model):
    """The search needs more candidates than the engine lists."""
    found = model.complete([1, 2], num_beams=80, num_return_sequences=80, max_new_tokens=5)
    few = model.complete([1, 2], num_beams=60, num_return_sequences=1, max_new_tokens=5)
    assert len(found) == 80
    assert found[0].sequence_score >= few[0].sequence_score


def test_a_logits_processor_sees_log_probabilities(model):
    seen = []

    def only_even(ids, log_probs):
        seen.append((ids, float(np.exp(log_probs.astype(np.float64)).sum())))
        log_probs[1::2] = -np.inf
        return log_probs

    found = model.generate(
        [1, 2], num_beams=3, num_return_sequences=3, max_new_tokens=4, logits_processor=only_even
    )
    assert all(id % 2 == 0 for ids in found for id in ids)
    assert seen[0][0] == [1, 2]
    assert {len(ids) for ids, _ in seen} == {2, 3, 4, 5}
    np.testing.assert_allclose([total for _, total in seen], 1, rtol=1e-5)


def test_logprobs_are_the_models_own(backend, model):
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 6}
    for changed in ({}, {"repetition_penalty": 1.5}, {"stop_token_ids": list(range(0, 50, 3))}):
        for prompt in ([3, 9, 4], [8]):
            plain = model.complete(prompt, **options, **changed)
            found = model.complete(prompt, logprobs=2, echo=True, **options, **changed)
            assert_same(backend, found, plain)
            for done in found:
                ids = [*prompt, *done.ids]
                logprobs = [*done.prompt_logprobs, *done.logprobs]
                atol = 1e-5 if backend == "numpy" else 0
                np.testing.assert_allclose(logprobs, model.score(ids).logprobs, rtol=0, atol=atol)
                tops = [*done.prompt_top_logprobs, *done.top_logprobs][1:]
                likeliest = np.argsort(-model.logits(ids), axis=1, kind="stable")[:-1, :2]
                assert [list(top) for top in tops] == likeliest.tolist()
    late = model.complete([1], max_time=0, logprobs=1, **options)
    assert late[0].logprobs == []


# ---- what ends a search ----


def test_a_full_context_ends_all_beams(backend):
    config = config_of(n_positions=12)
    model = model_on(backend, config, random_weights(config))
    for options in (
        {},
        {"num_beam_groups": 3, "diversity_penalty": 1.0},
        {"repetition_penalty": 2},
    ):
        for n_prompt in (12, 9):
            found = model.complete(
                list(range(n_prompt)), num_beams=3, num_return_sequences=3, **options
            )
            assert [len(c.ids) for c in found] == [13 - n_prompt] * 3
            assert {c.finish_reason for c in found} == {"context"}
    assert model.complete([1], num_beams=2, max_new_tokens=12).finish_reason == "length"


def test_stop_token_ids_end_beams(model):
    free = model.complete([1, 2, 3], num_beams=3, max_new_tokens=8)
    stop = free.ids[3]
    found = model.complete(
        [1, 2, 3], num_beams=3, num_return_sequences=3, max_new_tokens=8, stop_token_ids=[stop]
    )
    assert any(c.finish_reason == "stop" for c in found)
    assert not any({stop, 7} & set(c.ids) for c in found)


def test_stop_strings_end_beams(backend):
    model = on_backend(backend, lambda b: GPT2.from_pretrained(backend=b))
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}
    found = model.complete("Once upon a time", stop_strings=["e", "."], **options)
    assert any(c.finish_reason == "stop" for c in found)
    for done in found:
        assert "e" not in done.text
        assert "." not in done.text
        length = len(done.ids) + (1 if done.finish_reason == "stop" else 0)
        assert length <= 12
    # The score includes the token that completes the stop string, as it includes EOS.
    first = next(c for c in found if c.finish_reason == "stop")
    assert first.sequence_score < 0


def test_max_time_ends_a_search_with_its_current_beams(model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gpt2c.schedule.stops.time.monotonic", lambda: now[0])
    engine, calls = model._engine, []

    class Engine:
        def __getattr__(self, name):
            return getattr(engine, name)

        def top_log_probs(self, *arguments):
            calls.append(1)
            now[0] += 1
            return engine.top_log_probs(*arguments)

    monkeypatch.setattr(model, "_engine", Engine())
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 30}
    found = model.complete([1, 2], max_time=4.5, stop_token_ids=[], **options)
    assert len(calls) == 5
    assert {c.finish_reason for c in found} <= {"time", "stop"}
    assert max(len(c.ids) for c in found) == 5
    late = model.complete([1, 2], max_time=0, **options)
    assert [(c.ids, c.finish_reason, c.sequence_score) for c in late] == [([], "time", None)]
    assert model.generate([1, 2], num_beams=3, max_new_tokens=0) == []


def test_banning_every_token_is_an_error(model):
    with pytest.raises(gpt2c.OptionError, match=r"prompt 0: .* leave no token to choose at pos"):
        model.generate([1], num_beams=3, suppress_tokens=range(50))


def test_a_nan_logit_is_an_error(backend):
    weights = dict(WEIGHTS)
    weights["wpe.weight"] = WEIGHTS["wpe.weight"].copy()
    weights["wpe.weight"][4] = np.nan
    model = model_on(backend, CONFIG, weights)
    for options in ({}, {"repetition_penalty": 1.5}):
        assert model.generate([1, 2], num_beams=3, max_new_tokens=3, **options)
        with pytest.raises(gpt2c.NumericalError, match="prompt 1: a logit at position 5"):
            model.generate([[1], [1, 2]], num_beams=3, stop_token_ids=[], **options)


def test_ties_go_to_the_lower_id_with_and_without_all_ids():
    """If a penalty makes two log-probabilities equal, the lower id is first in both rows."""
    log_probs = np.array([-9, -9, -9, -1.5, -9, -9, -9, -1], dtype=np.float32)
    few = searching._Row(log_probs[[7, 3]], np.array([7, 3], dtype=np.int32))
    for row in (searching._Row(log_probs), few):
        values, ids = row.penalised({7: 0.5}).most_likely(2)
        assert ids.tolist() == [3, 7]
        assert values.tolist() == [-1.5, -1.5]


# ---- batches and shared caches ----

BEAM_OPTIONS = [
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 4},
    {"num_beams": 4, "repetition_penalty": 1.3, "num_return_sequences": 2},
]


@pytest.mark.parametrize("options", BEAM_OPTIONS)
def test_results_do_not_depend_on_the_batch(backend, model, options):
    given = prompts(9)
    options = {"max_new_tokens": 12, **options}
    alone = [model.complete(prompt, **options) for prompt in given]
    together = model.complete(given, **options)
    for one, many in zip(alone, together, strict=True):
        assert_same(backend, one, many)
    if backend == "numpy":
        return
    assert together == alone
    assert model.complete(given[::-1], **options) == alone[::-1]
    assert list(model.complete(iter(given), batch_size=2, **options)) == alone


def test_instruction_sets_agree(backend):
    if backend == "numpy":
        pytest.skip("NumPy's bits may differ")
    scalar = model_on("scalar", CONFIG, WEIGHTS)
    model = model_on(backend, CONFIG, WEIGHTS)
    for options in BEAM_OPTIONS:
        for prompt in prompts(3):
            assert model.complete(prompt, **options) == scalar.complete(prompt, **options)


class CountingEngine:
    """An engine that records how many ids each call feeds."""

    def __init__(self, engine):
        self._engine = engine
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def top_log_probs(self, sequences, ids, n_top):
        self.calls.append([len(part) for part in ids])
        return self._engine.top_log_probs(sequences, ids, n_top)

    def log_probs(self, sequences, ids):
        self.calls.append([len(part) for part in ids])
        return self._engine.log_probs(sequences, ids)


def test_one_call_feeds_only_the_new_ids_of_all_beams(model):
    engine = model._engine = CountingEngine(model._engine)
    model.generate(
        [[5] * 30, [6] * 9], num_beams=4, max_new_tokens=6, suppress_tokens=[7], batch_size=2
    )
    assert engine.calls[0] == [30, 9]
    assert engine.calls[1:] == [[1] * 8] * 5
    engine.calls.clear()
    model.generate([5] * 30, num_beams=4, max_new_tokens=3, repetition_penalty=1.1)
    assert engine.calls == [[30], [1] * 4, [1] * 4]
    engine.calls.clear()
    # A shared prefix is computed once.
    model.generate([[5] * 30 + [1], [5] * 30 + [2]], num_beams=2, max_new_tokens=1)
    assert sum(map(sum, engine.calls)) <= 2


def test_calls_stay_within_the_batch_size(model):
    engine = model._engine = CountingEngine(model._engine)
    given = [[1], [2], [3], [4]]
    list(model.generate(iter(given), num_beams=2, max_new_tokens=2, batch_size=2))
    assert all(len(call) <= 4 for call in engine.calls)
    engine.calls.clear()
    model.generate(given, num_beams=200, max_new_tokens=3)
    assert all(len(call) <= 256 for call in engine.calls)


@needs_engine
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer reserves more memory"
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
def test_beams_share_the_cache_pages_of_their_common_prefix():
    # 32 blocks of 128 dimensions: 2 MB per page, 32 MB for the prompt, so 1 GB for 32 copies.
    program = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from conftest import config_of, model_on, random_weights
config = config_of(n_embd=128, n_head=2, n_layer=32, n_positions=2000)
model = model_on("scalar", config, random_weights(config))
model.generate([1] * 300, max_new_tokens=2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 250_000_000, -1))
print(len(model.generate([1] * 1000, num_beams=32, num_return_sequences=32, max_new_tokens=3)))
"""
    command = [sys.executable, "-c", program, str(FIXTURES.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "32\n", done.stderr


@pytest.mark.parametrize("options", [{}, {"num_beam_groups": 2, "diversity_penalty": 1.0}])
def test_a_finished_search_is_freed_without_garbage_collection(model, options):
    gc.collect()
    gc.disable()
    try:
        model.generate([1, 2, 3], num_beams=4, max_new_tokens=5, **options)
        with pytest.raises(ZeroDivisionError):
            model.generate([1], num_beams=4, logits_processor=lambda ids, logits: 1 // 0, **options)
        next(model.generate(iter([[1]] * 9), num_beams=4, max_new_tokens=2, **options))
        assert not any(isinstance(each, Search) for each in gc.get_objects())
    finally:
        gc.enable()


# ---- log-probabilities of all ids ----


def test_log_probs_equal_scores_bit_for_bit(isa):
    """An option that needs all log-probabilities must change nothing else."""
    config = config_of(vocab_size=3000, n_positions=300)
    engine = model_on(isa, config, random_weights(config))._engine
    ids = np.random.default_rng(0).integers(0, 3000, 260).astype(np.int32)
    n_rows = len(ids)  # more than the 256 rows of one engine call
    rows = engine.log_probs([engine.sequence() for _ in ids], list(ids[:, None]))
    assert rows.shape == (n_rows, 3000)
    targets = [ids[i - 1 : i] if i else ids[-1:] for i in range(n_rows)]
    fed = [ids[i : i + 1] for i in range(n_rows)]
    scores, top = engine.score([engine.sequence() for _ in ids], fed, targets, 5)
    np.testing.assert_array_equal(rows[np.arange(n_rows), np.roll(ids, 1)], scores["log_prob"])
    np.testing.assert_array_equal(np.take_along_axis(rows, top["id"], axis=1), top["log_prob"])
    likeliest = engine.top_log_probs([engine.sequence() for _ in ids], fed, 5)
    np.testing.assert_array_equal(likeliest, top)


def test_one_call_feeds_sequences_different_numbers_of_ids(backend, model):
    """One sequence gets a prompt and another one id, as in the first step of two searches."""
    engine = model._engine
    ids = [np.array(part, dtype=np.int32) for part in ([3, 1, 4, 1, 5], [9])]
    rows = engine.log_probs([engine.sequence() for _ in ids], ids)
    top = engine.top_log_probs([engine.sequence() for _ in ids], ids, 4)
    for i, part in enumerate(ids):
        sequence = engine.sequence()
        for id in part[:-1]:
            sequence.feed(np.array([id], dtype=np.int32), 0)
        alone = engine.log_probs([sequence], [part[-1:]])
        if backend == "numpy":  # it adds in another order, so logits differ by roundings
            np.testing.assert_allclose(rows[i], alone[0], atol=1e-5)
        else:
            np.testing.assert_array_equal(rows[i], alone[0])
        np.testing.assert_array_equal(rows[i][top["id"][i]], top["log_prob"][i])


def test_log_probs_and_stages_refuse_invalid_input(isa):
    model, other = (model_on(isa, CONFIG, WEIGHTS)._engine for _ in range(2))
    ids = np.array([1], dtype=np.int32)
    sequence = model.sequence()
    for sequences, given in (
        ([], []), ([sequence], []), ([sequence], [ids[:0]]), ([other.sequence()], [ids]),
        ([sequence], [ids + 50]), ([sequence, sequence], [ids, ids + 1]), ([None], [ids]),
    ):  # fmt: skip
        with pytest.raises(gpt2c.OptionError):
            model.log_probs(sequences, given)
        with pytest.raises(gpt2c.OptionError):
            model.top_log_probs(sequences, given, 3)
    assert sequence.length == 0
    model.log_probs([sequence], [ids])
    row = np.zeros(CONFIG.vocab_size, dtype=np.float32)
    for given, new in (
        (ids, np.full(100, 1, dtype=np.int32)), (ids, np.array([50], dtype=np.int32)),
        (ids + 50, ids), (ids[:0], ids),
    ):  # fmt: skip
        with pytest.raises(gpt2c.OptionError):
            model.apply_stages(Plan(), row, given, new)
    with pytest.raises(gpt2c.OptionError):
        model.apply_stages(Plan(), row[1:], ids, ids)


# ---- errors ----


class RefusingEngine:
    """An engine that fails if any work is started."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        assert name not in ("score", "log_probs", "job", "sequence"), "work was started"
        return getattr(self._engine, name)


WRONG = [
    ({"num_beams": 0}, "num_beams is 0; it must be from 1 to 1024"),
    ({"num_beams": 2.0}, "num_beams is 2.0; it must be an integer"),
    ({"num_beams": True}, "num_beams is True"),
    ({"num_beams": 2000}, "num_beams is 2000"),
    ({"num_beams": 2, "length_penalty": "long"}, "length_penalty is 'long'"),
    ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty is nan"),
    ({"num_beams": 2, "length_penalty": 51}, "length_penalty is 51"),
    ({"num_beams": 2, "early_stopping": "always"}, "early_stopping is 'always'; it must be True"),
    ({"num_beams": 2, "early_stopping": 1}, "early_stopping is 1; it must be True, False or"),
    ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups is 3"),
    ({"num_beams": 4, "num_beam_groups": 8, "diversity_penalty": 1.0}, "num_beam_groups is 8"),
    ({"num_beams": 4, "num_beam_groups": 0}, "num_beam_groups is 0"),
    ({"num_beams": 4, "num_beam_groups": 2}, "without a diversity_penalty above 0"),
    ({"num_beams": 4, "diversity_penalty": 1.0}, "diversity_penalty is given without num_beam_gr"),
    ({"num_beams": 4, "diversity_penalty": -1.0}, "diversity_penalty is -1.0"),
    ({"length_penalty": 2.0}, "length_penalty is given without num_beams"),
    ({"early_stopping": True}, "early_stopping is given without num_beams"),
    ({"num_beam_groups": 2}, "num_beam_groups is given without num_beams"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, more than num_beams"),
    (
        {"num_beams": 2, "do_sample": True},
        "num_beams is 2, and beam search cannot be combined with do_s",
    ),
    ({"num_beams": 2, "temperature": 0.7}, "cannot be combined with temperature, which is"),
    ({"num_beams": 2, "callback": print}, "cannot be combined with a callback"),
    ({"num_beams": 2, "overflow": "slide"}, "cannot be combined with overflow='slide'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(model, monkeypatch, options, message):
    monkeypatch.setattr(model, "_engine", RefusingEngine(model._engine))
    for given in ([1], [[1], [2]], iter([[1]])):
        for method in (model.generate, model.complete):
            with pytest.raises(gpt2c.Error) as raised:
                method(given, **options)
            assert message in str(raised.value)
            assert isinstance(raised.value, ValueError | TypeError)


def test_stream_refuses_beams(model):
    with pytest.raises(gpt2c.OptionTypeError, match="stream has no option 'num_beams'"):
        model.stream([1], num_beams=2)


def test_neutral_values_are_accepted(model):
    neutral = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False,
               "num_beam_groups": 1, "diversity_penalty": 0.0}  # fmt: skip
    plain = model.complete([1, 2], max_new_tokens=5)
    assert model.complete([1, 2], max_new_tokens=5, **neutral) == plain
    assert plain.sequence_score is None
    beams = model.complete([1, 2], max_new_tokens=5, num_beams=3)
    changed = {**neutral, "num_beams": 3, "temperature": 0, "seed": 5, "draft": "auto"}
    assert model.complete([1, 2], max_new_tokens=5, **changed) == beams
    assert beams.seed is None
