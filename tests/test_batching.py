"""Lists and iterators of prompts: order, laziness, shared prefixes, and unchanged results."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from conftest import ISAS, config_of, model_on, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c.schedule import batching

CONFIG = config_of(n_positions=100)
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


def prompts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, rng.integers(1, 50)).tolist() for _ in range(n)]


def test_an_iterator_yields_results_in_order(model):
    given_prompts = prompts(30)
    options = {"max_new_tokens": 7, "temperature": 0.9, "seed": 3, "batch_size": 4}
    answers = model.generate(iter(given_prompts), **options)
    assert not isinstance(answers, list)
    assert list(answers) == [model.generate(p, **options) for p in given_prompts]
    arrays = (np.array(prompt) for prompt in given_prompts)
    assert list(model.generate(arrays, **options)) == model.generate(given_prompts, **options)
    completions = list(model.complete(iter(given_prompts), **options))
    assert completions == model.complete(given_prompts, **options)


def test_empty_prompts_of_ids(backend):
    config = config_of(eos_token_id=49)
    model = model_on(backend, config, random_weights(config))
    results = model.generate([[], [1], []], max_new_tokens=3)
    assert list(model.generate(iter([[], [1], []]), max_new_tokens=3)) == results
    assert results[0] == results[2] == model.generate([49], max_new_tokens=3)
    lazily = model.generate(iter([[1], [2]]), max_new_tokens=3)
    next(lazily)
    lazily.close()  # a generator has close()


def test_prompts_are_read_lazily(model):
    taken = 0

    def source():
        nonlocal taken
        for prompt in prompts(60):
            taken += 1
            yield prompt

    answers = model.generate(source(), max_new_tokens=3, batch_size=5)
    assert taken == 0
    for n_answered in range(1, 61):
        next(answers)
        # Five prompts run together and end together, so at most five are read ahead.
        assert taken <= n_answered + 5
    assert next(answers, None) is None


def test_results_waiting_for_a_slow_prompt_are_bounded(backend):
    # Token 1 is EOS. The model generates it after every token except 0.
    model = model_on(
        backend, config_of(n_positions=2000, n_layer=0, eos_token_id=1), _weights_generating_one()
    )
    taken = 0

    def source():
        nonlocal taken
        yield [0]  # generates 1,900 tokens
        while True:
            taken += 1
            yield [2]

    answers = model.generate(source(), max_new_tokens=1900, batch_size=3)
    assert len(next(answers)) == 1900
    assert taken <= 4 * 3


def _weights_generating_one():
    config = config_of(n_positions=2000, n_layer=0, eos_token_id=1)
    weights = {name: np.zeros_like(w) for name, w in random_weights(config).items()}
    weights["ln_f.weight"][:] = 1
    wte = weights["wte.weight"]
    wte[0, :2], wte[2, :2], wte[1, :2] = [1, -1], [-1, 1], [-2, 2]
    return weights


def test_an_error_is_raised_after_the_results_before_it(model):
    def source():
        yield from prompts(7)
        yield [3, CONFIG.vocab_size]
        yield [1]

    answers = model.generate(source(), max_new_tokens=2, batch_size=4)
    assert len(list(itertools.islice(answers, 7))) == 7
    with pytest.raises(gpt2c.OptionError, match=r"prompt 7: token 1 is 50"):
        next(answers)

    def broken():
        yield [1]
        raise RuntimeError("the disk is gone")

    answers = model.generate(broken(), max_new_tokens=2)
    next(answers)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(answers)


def test_a_failed_list_gives_its_pages_back_at_once(backend):
    """A NaN ends the call after the source of prompts has failed too."""
    weights = {**WEIGHTS, "wte.weight": np.full_like(WEIGHTS["wte.weight"], np.nan)}
    model = model_on(backend, CONFIG, weights)

    def source():
        yield [1, 2, 3]
        raise RuntimeError("the disk is gone")

    gc.collect()
    gc.disable()  # a reference cycle would keep the pages
    try:
        with pytest.raises(gpt2c.NumericalError) as caught:
            list(model.generate(source(), max_new_tokens=5))
        assert model.kv_cache_bytes > 0  # the error's traceback refers to the call
        del caught
        assert model.kv_cache_bytes == 0
    finally:
        gc.enable()


def test_invalid_prompts_are_refused(model):
    for wrong in (range(3), {1: 2}, {1, 2}, b"abc", memoryview(b"abc"), None, 5, np.float32(1)):
        with pytest.raises(TypeError, match=r"a prompt is of type|dimensions"):
            model.generate(wrong)
    with pytest.raises(ValueError, match="top_k is -1"):
        model.generate(iter([[1]]), top_k=-1)
    with pytest.raises(TypeError, match="prompt 1 of the iterator is a list of prompts"):
        list(model.generate(iter([[1], [[2], [3]]])))
    with pytest.raises(ValueError, match=r"seed is a list of 2; .* prompt 2 has none"):
        list(model.generate(iter([[1], [2], [3]]), temperature=1.0, seed=[1, 2]))


def test_dropping_an_iterator_leaves_the_model_usable(model):
    answers = model.generate(iter(prompts(20)), max_new_tokens=5)
    next(answers)
    del answers
    assert len(model.generate([1, 2], max_new_tokens=3)) == 3


def test_a_closed_model_ends_an_iterator(model):
    answers = model.generate(iter(prompts(20)), max_new_tokens=5, batch_size=2)
    next(answers)
    model.close()
    with pytest.raises(gpt2c.ClosedError):
        list(answers)


def test_ten_thousand_short_prompts(model):
    n = 200 if model.backend == "numpy" else 10_000
    source = ([i % 50, i // 50 % 50] for i in range(n))
    answers = model.generate(source, max_new_tokens=2, batch_size=64)
    assert sum(len(ids) for ids in answers) == 2 * n


@pytest.fixture
def shared_lengths(monkeypatch):
    """Record how many tokens of each request were already in a shared cache."""
    lengths = []
    create = batching.Continuation.__init__

    def spy(self, engine, prefixes, request, sequence=None):
        lengths.append(sequence.length if sequence else 0)
        create(self, engine, prefixes, request, sequence)

    monkeypatch.setattr(batching.Continuation, "__init__", spy)
    return lengths


def test_equal_prefixes_are_computed_once(model, shared_lengths):
    header = list(range(40))
    together = [[*header, 1, 2], [*header, 3], header, [*header, 1, 4], [7] * 20]
    results = model.generate(together, max_new_tokens=6)
    assert shared_lengths == [0, 40, 39, 41, 0]
    assert results == [model.generate(p, max_new_tokens=6) for p in together]


def test_a_shared_prefix_outlives_its_first_prompt(model, shared_lengths):
    header = list(range(30))
    answers = model.generate(([*header, i] for i in range(5)), max_new_tokens=1, batch_size=1)
    assert len(list(answers)) == 5
    assert shared_lengths == [0, 30, 30, 30, 30]


def test_short_prefixes_are_not_shared(model, shared_lengths):
    header = list(range(batching.MIN_SHARED_PREFIX - 1))
    model.generate([[*header, 40], [*header, 41]], max_new_tokens=2)
    assert shared_lengths == [0, 0]


@settings(max_examples=25)
@given(data=st.data())
def test_sharing_and_batching_do_not_change_results(data):
    """Prompts that share all, some or none of their tokens, in any order and batch size."""
    model = model_on("numpy" if not ISAS else ISAS[-1], CONFIG, WEIGHTS)
    stem = np.random.default_rng(1).integers(0, 50, 90).tolist()
    together = [
        stem[:n] + tail
        for n, tail in data.draw(
            st.lists(
                st.tuples(st.integers(1, 80), st.lists(st.integers(0, 49), max_size=5)),
                min_size=1,
                max_size=10,
            )
        )
    ]
    options = {"max_new_tokens": 9, "temperature": data.draw(st.sampled_from([0, 0.8])), "seed": 5}
    expected = [model.generate(p, **options) for p in together]
    size = data.draw(st.integers(1, 6))
    assert model.generate(together, batch_size=size, **options) == expected
    assert list(model.generate(iter(together), batch_size=size, **options)) == expected
