"""Sampling: the random generator, the noise, the distribution, and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import BACKENDS, ISAS, cases, config_of, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c.engine.protocol import Plan, Stage
from gpt2c.generate.sampling import Vocabulary, check_sampling
from gpt2c.oracle.filters import top_k
from gpt2c.oracle.reference import softmax
from gpt2c.oracle.sampling import Sampler, gumbel_noise, philox4x32

if ISAS:
    from gpt2c.engine import _engine


def test_philox_gives_the_published_values():
    """The values are the known answers of Salmon et al.'s Random123 library (kat_vectors)."""
    ones = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    cases = [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, (ones, ones), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]
    for counter, key, words in cases:
        assert philox4x32(np.array([counter], dtype=np.uint32), key)[0].tolist() == words


@needs_engine
@given(
    seed=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**20),
)
def test_compiled_noise_equals_the_reference(seed, sample, position):
    ids = np.arange(67, dtype=np.int32)
    zero = np.zeros(1, dtype=np.float32)
    noise = [
        [_engine.draw(isa, zero, ids[i : i + 1], seed, sample, position)[1] for i in range(67)]
        for isa in ISAS
    ]
    assert all(other == noise[0] for other in noise)
    # The two float32 logarithms have errors of a few ULP of values up to 23, and of -log u.
    exact = gumbel_noise(seed, sample, position, ids)
    np.testing.assert_allclose(noise[0], exact, rtol=2e-6, atol=1e-6)


@needs_engine
def test_noise_of_extreme_words():
    """Random words close to 0 and to 2^32, found by search, keep their resolution."""
    exact = gumbel_noise(7, 0, 0, np.arange(400_000))
    extreme = np.argsort(exact)[[*range(200), *range(-200, 0)]].astype(np.int32)
    zero = np.zeros(1, dtype=np.float32)
    ours = [_engine.draw(ISAS[0], zero, extreme[i : i + 1], 7, 0, 0)[1] for i in range(400)]
    assert exact.max() > 11
    assert exact.min() < -2.4
    np.testing.assert_allclose(ours, exact[extreme], rtol=2e-6, atol=1e-6)


@needs_engine
@settings(max_examples=cases(150))
@given(
    n=st.integers(1, 400),
    seed=st.integers(0, 2**64 - 1),
    spread=st.sampled_from([0.0, 1.0, 20.0, 300.0]),
    special=st.lists(st.sampled_from([-np.inf, 1e30, -1e30, 1e-42]), max_size=3),
)
def test_draw_kernel_returns_the_best_id(n, seed, spread, special):
    """Ids in any order, remainders of every length, blocks that cannot contain the best id."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[:n].astype(np.int32)
    logits = (spread * rng.standard_normal(n)).astype(np.float32)
    logits[rng.integers(0, n, len(special))] = special
    if np.isinf(logits.max()):
        logits[0] = 0
    draws = [_engine.draw(isa, logits, ids, seed, 1, 2) for isa in ISAS]
    assert all(draw == draws[0] for draw in draws)
    singles = [
        _engine.draw(ISAS[0], logits[i : i + 1], ids[i : i + 1], seed, 1, 2)[1]
        if logits[i] > -np.inf
        else -np.inf
        for i in range(n)
    ]
    best = max(singles)
    assert draws[0] == (
        min(id for id, score in zip(ids, singles, strict=True) if score == best),
        best,
    )


def chi_square(draws: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Return Pearson's statistic and its degrees of freedom.

    Ids that are expected less than 5 times are pooled; ids of zero probability must not occur.
    """
    expected = probabilities * len(draws)
    counts = np.bincount(draws, minlength=len(probabilities)).astype(float)
    rare = expected < 5
    if expected[rare].sum() == 0:
        assert counts[rare].sum() == 0
        expected, counts = expected[~rare], counts[~rare]
    else:
        expected = np.append(expected[~rare], expected[rare].sum())
        counts = np.append(counts[~rare], counts[rare].sum())
    return float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1


CHI_SQUARE_CASES = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 10},
    {"top_k": 1},
    {"top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.05},
    {"typical_p": 0.7},
    {"temperature": 1.5, "top_n_sigma": 1.0},
    {"epsilon_cutoff": 0.02, "eta_cutoff": 0.01},
    {"xtc_probability": 1.0, "xtc_threshold": 0.1},
    {"mirostat_tau": 2.0},
    {"do_sample": True, "repetition_penalty": 2.0, "logit_bias": {3: 2.0}, "suppress_tokens": [4]},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.95, "min_p": 0.01, "presence_penalty": 1.0},
]


@pytest.mark.parametrize("options", CHI_SQUARE_CASES, ids=lambda o: "+".join(o))
def test_draws_follow_the_distribution(backend, options):
    """The distribution is the softmax of the logits that the reference stages leave."""
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    n = 20_000 if backend != "numpy" else 2_000
    draws = model.generate([[5]] * n, max_new_tokens=1, seed=range(n), batch_size=256, **options)
    vocabulary = Vocabulary(50, frozenset(), lambda: model.tokenizer)
    stages = Sampler(check_sampling(options, vocabulary), 0, 0, 1)
    probabilities = softmax(stages.apply(model.logits([5])[0].astype(np.float64), [5]))
    draws = np.array(draws).ravel()
    statistic, freedom = chi_square(draws, probabilities)
    # The limit is five standard deviations above the mean of chi-square; the seeds are fixed.
    assert statistic <= freedom + 5 * np.sqrt(2 * max(freedom, 1))


def test_compiled_choice_equals_the_reference(isa):
    config = config_of(n_positions=300)
    weights = random_weights(config)
    model = model_on(isa, config, weights)
    n_close = 0
    for seed in range(20):
        options = {"temperature": 0.7 + 0.1 * seed, "top_k": 5 * (seed % 4), "seed": seed}
        ids = [seed]
        for token in model.generate([seed], max_new_tokens=15, **options):
            logits = model.logits(ids)[-1].astype(np.float64)
            stages = [Stage("temperature", value=options["temperature"])]
            stages += [Stage("top_k", count=options["top_k"])] if options["top_k"] else []
            expected = Sampler(Plan(tuple(stages), draws=True), seed, 0, 1).choose(logits, ids)
            n_close += token != expected
            ids.append(token)
    # None of the 300 draws should depend on the last bits of the noise.
    assert n_close == 0


def test_every_backend_draws_the_same_ids():
    config = config_of()
    weights = random_weights(config)
    options = {"max_new_tokens": 30, "temperature": 1.0, "top_k": 20, "seed": 12345678901234567890}
    results = [model_on(b, config, weights).generate([1, 2, 3], **options) for b in BACKENDS]
    assert all(ids == results[0] for ids in results)


# All options that one call can combine.
ALL_OPTIONS = {
    "temperature": 1.4, "top_k": 40, "top_p": 0.98, "min_p": 0.001, "typical_p": 0.97,
    "top_n_sigma": 4.0, "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4, "xtc_probability": 0.3,
    "xtc_threshold": 0.2, "mirostat_tau": 4.0, "repetition_penalty": 1.1, "presence_penalty": 0.2,
    "frequency_penalty": 0.1, "dry_multiplier": 0.5, "no_repeat_ngram_size": 3,
    "bad_words": [[1, 2], [7]], "logit_bias": {5: 0.5}, "suppress_tokens": [9],
    "min_new_tokens": 5, "stop_token_ids": [11],
}  # fmt: skip


def test_a_seed_gives_the_same_ids_everywhere():
    """Ids are equal alone, in batches, streamed, on any number of threads and on every backend."""
    config = config_of(n_positions=60)
    weights = random_weights(config)
    options = {"max_new_tokens": 40, "seed": 99, **ALL_OPTIONS}
    prompts = [[1, 2, 3], [4], [1] * 18, [1] * 18 + [2], [3, 1]]
    results = None
    for backend in BACKENDS:
        for threads in (1, 2, 3, 7) if backend != "numpy" else (1,):
            model = model_on(backend, config, weights, threads=threads)
            alone = [model.generate(prompt, **options) for prompt in prompts]
            results = results or alone
            assert alone == results
            assert model.generate(prompts, **options) == results
            assert model.generate(prompts, batch_size=2, **options) == results
            assert [list(model.stream(prompt, **options)) for prompt in prompts] == results
    assert len({tuple(ids) for ids in results}) == len(results)


def test_a_draw_does_not_depend_on_the_batch(backend):
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    options = {"max_new_tokens": 10, "temperature": 1.0}
    alone = model.generate([1, 2, 3], seed=9, **options)
    batch = [[4], [1, 2, 3], [5, 6, 7, 8], [1, 2, 3]]
    many = model.generate(batch, seed=9, **options)
    assert many[1] == many[3] == alone
    assert model.generate(batch, seed=[1, 9, 3, 4], batch_size=2, **options)[1] == alone
    assert list(model.stream([1, 2, 3], seed=9, **options)) == alone
    # A draw depends on the position, so a longer prompt continues like the shorter one.
    longer = model.generate([1, 2, 3, *alone[:4]], seed=9, max_new_tokens=6, temperature=1.0)
    assert longer == alone[4:]
    assert model.generate([1, 2, 3], seed=10, **options) != alone


def test_when_sampling_is_on(backend):
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    greedy = model.generate([1, 2], max_new_tokens=8)
    assert model.complete([1, 2], max_new_tokens=8).seed is None
    assert model.generate([1, 2], max_new_tokens=8, seed=3) == greedy
    assert model.generate([1, 2], max_new_tokens=8, temperature=0) == greedy
    assert model.generate([1, 2], max_new_tokens=8, temperature=0.0, top_k=3) == greedy
    assert model.generate([1, 2], max_new_tokens=8, top_k=1, seed=3) == greedy
    assert model.generate([1, 2], max_new_tokens=8, temperature=1e-30, seed=3) == greedy
    assert model.generate([1, 2], max_new_tokens=8, do_sample=False) == greedy
    ones = [
        model.generate([1, 2], max_new_tokens=8, seed=3, **on)
        for on in ({"do_sample": True}, {"temperature": 1.0}, {"top_k": 0}, {"top_k": 1000})
    ]
    assert all(one == ones[0] for one in ones)
    assert ones[0] != greedy


def test_without_a_seed_one_is_drawn_and_reported(backend):
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    # draft=None, because a Completion counts drafts, and their number depends on measured times.
    done = model.complete([1, 2], max_new_tokens=20, temperature=1.5, draft=None)
    again = model.complete([1, 2], max_new_tokens=20, temperature=1.5, seed=done.seed, draft=None)
    assert again == done
    two = model.complete([[1, 2]] * 2, max_new_tokens=20, temperature=1.5)
    assert two[0].seed != two[1].seed


def test_ties_go_to_the_lowest_id(isa):
    config = config_of(n_layer=0)
    weights = random_weights(config)
    weights["wte.weight"][:] = weights["wte.weight"][7]
    model = model_on(isa, config, weights)
    assert model.generate([3], max_new_tokens=3) == [0, 0, 0]
    assert model.generate([3], max_new_tokens=3, top_k=1, seed=1) == [0, 0, 0]


def test_reference_choice_breaks_ties_by_id():
    logits = np.array([1.0, 3.0, 3.0, 2.0, 3.0])
    assert Sampler(Plan(), 0, 0, 1).choose(logits, [0]) == 1
    assert np.flatnonzero(top_k(logits, 2) > -np.inf).tolist() == [1, 2]
    assert np.flatnonzero(top_k(logits, 9) > -np.inf).tolist() == [0, 1, 2, 3, 4]
