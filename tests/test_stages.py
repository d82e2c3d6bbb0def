"""Every sampling stage of the compiled engine, compared with its NumPy reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import ISAS, cases, config_of, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import GPT2
from gpt2c.engine.protocol import ALLOWED_IDS, Plan, Stage
from gpt2c.generate.sampling import PENALTIES, SAMPLER_ORDER, SAMPLING_STAGES
from gpt2c.oracle import filters, penalties
from gpt2c.oracle.sampling import Sampler, uniform

pytestmark = needs_engine
if ISAS:
    from gpt2c.engine import _engine

N_VOCAB = 300
CONFIG = config_of(vocab_size=N_VOCAB, n_positions=200, n_layer=0)
WEIGHTS = random_weights(CONFIG)
NO_STOPS = np.empty(0, dtype=np.int32)


@pytest.fixture(scope="module")
def models():
    return {isa: model_on(isa, CONFIG, WEIGHTS) for isa in ISAS}


def ids_of(*ids):
    return np.array(ids, dtype=np.int32)


def some_logits(seed, spread=3.0, n=N_VOCAB):
    return (spread * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def processed(models, plan, logits, history, seed=0, sample=0):
    """Process logits on every instruction set, check equal bits, and return the result."""
    results = [
        model._engine.apply_stages(plan, logits, ids_of(*history), ids_of(), seed, sample)
        for model in models.values()
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    return results[0]


def reference_of(plan, logits, history, seed=0, sample=0):
    sampler = Sampler(plan, seed, sample, len(history))
    return sampler.apply(logits.astype(np.float64), list(history))


def assert_same(ours, exact, logits):
    """Compare the kept ids and their logits; one id at a threshold may differ by rounding.

    Thresholds are compared with float32 weights summed in float64. Their relative error is about
    4 ULP, so among 300 random probabilities at most one is that close to a threshold.
    """
    kept, expected = ours > -np.inf, exact > -np.inf
    assert (kept != expected).sum() <= 1
    both = kept & expected
    assert both.any()
    np.testing.assert_allclose(ours[both], exact[both], rtol=1e-5, atol=1e-5)


# For each filter, the parameter values to test.
STAGES = {
    "temperature": st.builds(lambda v: {"value": v}, st.floats(0.01, 10)),
    "top_k": st.builds(lambda n: {"count": n}, st.integers(1, 400)),
    "top_p": st.builds(lambda v: {"value": v}, st.floats(0, 0.999)),
    "min_p": st.builds(lambda v: {"value": v}, st.floats(0, 1)),
    "typical_p": st.builds(lambda v: {"value": v}, st.floats(0.01, 0.99)),
    "top_n_sigma": st.builds(lambda v: {"value": v}, st.floats(0, 5)),
    "epsilon_cutoff": st.builds(lambda v: {"value": v}, st.floats(1e-5, 0.3)),
    "eta_cutoff": st.builds(lambda v: {"value": v}, st.floats(1e-5, 0.3)),
    "xtc": st.builds(lambda v: {"value": 1.0, "other": v}, st.floats(0.001, 0.4)),
    "mirostat": st.builds(lambda v: {"value": v, "other": 0.1}, st.floats(0.5, 5)),
}


def test_every_filter_is_tested():
    assert set(STAGES) == set(SAMPLING_STAGES)


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=cases(60))
@given(data=st.data())
def test_a_filter_equals_its_reference(models, name, data):
    logits = some_logits(data.draw(st.integers(0, 10**6)), data.draw(st.floats(0.1, 8)))
    stage = Stage(name, **data.draw(STAGES[name]))
    plan = Plan((stage,), draws=True)
    assert_same(processed(models, plan, logits, [1]), reference_of(plan, logits, [1]), logits)


@settings(max_examples=cases(100))
@given(data=st.data())
def test_filters_in_any_order(models, data):
    """Each filter sees the renormalised distribution that the previous ones left."""
    logits = some_logits(data.draw(st.integers(0, 10**6)))
    names = data.draw(st.permutations(list(STAGES)))[: data.draw(st.integers(2, 5))]
    stages = tuple(Stage(name, **data.draw(STAGES[name])) for name in names)
    ours = processed(models, Plan(stages, draws=True), logits, [1])
    exact = reference_of(Plan(stages, draws=True), logits, [1])
    # If rounding keeps or drops an id, later stages renormalise by a different sum and may do so
    # again. So up to two ids may differ, but ids that both keep must have equal logits.
    kept, expected = ours > -np.inf, exact > -np.inf
    assert (kept != expected).sum() <= 2
    np.testing.assert_allclose(ours[kept & expected], exact[kept & expected], rtol=1e-5, atol=1e-5)


HISTORY = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@settings(max_examples=cases(150))
@given(
    history=HISTORY,
    n_new=st.integers(0, 20),
    seed=st.integers(0, 1000),
    value=st.floats(0.1, 5),
)
@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_count_the_right_tokens(models, name, history, n_new, seed, value):
    """presence_penalty and frequency_penalty count only the new tokens."""
    logits = some_logits(seed)
    model = next(iter(models.values()))
    plan = Plan((Stage(name, value=value),))
    new = np.random.default_rng(seed).integers(0, 6, n_new).tolist()
    ours = model._engine.apply_stages(plan, logits, ids_of(*history), ids_of(*new))
    exact = logits.astype(np.float64)
    counted = [*history, *new] if name == "repetition_penalty" else new
    getattr(penalties, name)(exact, counted, value)
    np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-6)


@settings(max_examples=cases(300))
@given(
    history=HISTORY,
    allowed=st.integers(1, 4),
    span=st.sampled_from([0, 1, 2, 7, 30, 1000]),
    breakers=st.sets(st.integers(0, 6), max_size=3),
    base=st.floats(1, 4),
)
def test_dry_finds_every_repetition(models, history, allowed, span, breakers, base):
    logits = some_logits(len(history))
    ids = ids_of(*sorted(breakers))
    stage = Stage("dry", value=0.8, other=base, count=allowed, span=span, ids=ids)
    exact = logits.astype(np.float64)
    penalties.dry(exact, history, 0.8, np.float32(base), allowed, span, breakers)
    ours = processed(models, Plan((stage,)), logits, history)
    # The power is a product of up to 60 rounded factors.
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


def test_dry_by_hand(models):
    """After 1 2 3 1 2, token 3 would extend a repeat of length 2.

    With allowed length 2, the logit of token 3 falls by the multiplier, 0.5.
    """
    zeros = np.zeros(N_VOCAB, dtype=np.float32)
    stage = {"value": 0.5, "other": 2.0, "span": 0}
    for allowed, loss in ((1, 1.0), (2, 0.5), (3, 0.0)):
        plan = Plan((Stage("dry", count=allowed, **stage),))
        ours = processed(models, plan, zeros, [1, 2, 3, 1, 2])
        assert ours[3] == -loss
        assert np.count_nonzero(ours) == (loss > 0)


@settings(max_examples=cases(200))
@given(history=HISTORY, n=st.integers(1, 5))
def test_no_ngram_is_repeated(models, history, n):
    logits = some_logits(n)
    exact = logits.copy()
    penalties.no_repeat_ngram(exact, history, n)
    ours = processed(models, Plan((Stage("no_repeat_ngram_size", count=n),)), logits, history)
    np.testing.assert_array_equal(ours, exact)


@settings(max_examples=cases(200))
@given(
    history=HISTORY,
    words=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_bad_words_are_not_completed(models, history, words):
    logits = some_logits(len(words))
    exact = logits.copy()
    penalties.bad_words(exact, history, words)
    packed = ids_of(*(n for word in words for n in (len(word), *word)))
    ours = processed(models, Plan((Stage("bad_words", ids=packed),)), logits, history)
    np.testing.assert_array_equal(ours, exact)


def test_biases_and_bans(models):
    logits = some_logits(1)
    bias = Stage("logit_bias", ids=ids_of(3, 5), values=np.array([2.5, -7], dtype=np.float32))
    ban = Stage("suppress_tokens", ids=ids_of(5, 9))
    late = Stage("min_new_tokens", count=2, ids=ids_of(4))
    expected = logits.copy()
    expected[3] += np.float32(2.5)
    expected[[5, 9, 4]] = -np.inf
    np.testing.assert_array_equal(processed(models, Plan((bias, ban, late)), logits, [1]), expected)


@settings(max_examples=cases(150))
@given(data=st.data())
def test_allowed_ids_at_any_place(models, data):
    """Stages before the mask may sort and remove ids; those after it must work on what is left."""
    logits = some_logits(data.draw(st.integers(0, 10**6)))
    history = data.draw(st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=50))
    allowed = data.draw(st.sets(st.integers(0, N_VOCAB - 1), min_size=1))
    if data.draw(st.booleans()):
        allowed = set(range(N_VOCAB)) - set(sorted(allowed)[1:])
    mask = np.isin(np.arange(N_VOCAB), list(allowed))
    stages = [
        Stage("repetition_penalty", value=0.3),
        Stage("top_k", count=data.draw(st.integers(1, N_VOCAB))),
        Stage("logit_bias", ids=ids_of(*range(0, N_VOCAB, 3)), values=np.float32([30] * 100)),
        Stage("top_p", value=0.9),
        *Plan().with_allowed_ids(mask).stages,
    ]
    plan = Plan(tuple(data.draw(st.permutations(stages))), draws=True)
    ours, exact = processed(models, plan, logits, history), reference_of(plan, logits, history)
    assert not np.isfinite(ours[~mask]).any()
    if np.isfinite(exact.max()):
        assert_same(ours, exact, logits)
    else:
        assert not np.isfinite(ours.max())


@settings(max_examples=cases(60))
@given(data=st.data())
def test_penalties_after_filters(models, data):
    """A stage that changes single logits also works after ids were sorted and removed."""
    logits = some_logits(data.draw(st.integers(0, 10**6)))
    history = data.draw(st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=50))
    first = Stage("top_k", count=data.draw(st.integers(1, N_VOCAB)))
    second = Stage("repetition_penalty", value=1.7)
    third = Stage("suppress_tokens", ids=ids_of(*range(0, N_VOCAB, 7)))
    last = Stage("top_p", value=0.9)
    plan = Plan((first, second, third, last), draws=True)
    ours, exact = processed(models, plan, logits, history), reference_of(plan, logits, history)
    if np.isfinite(exact.max()):
        assert_same(ours, exact, logits)
    else:
        assert not np.isfinite(ours.max())


@pytest.mark.parametrize(
    ("name", "stage", "n_kept"),
    [
        ("top_p", {"value": 0.5}, 128),  # a sum of exactly top_p is enough
        ("top_p", {"value": 0.5 + 2**-9}, 129),
        ("min_p", {"value": 1.0}, 256),
        ("epsilon_cutoff", {"value": 1 / 256}, 256),
        ("epsilon_cutoff", {"value": 1 / 255}, 1),
        ("mirostat", {"value": 4.0, "other": 0.1}, 256),  # mu and every surprisal are 8 bits
        ("mirostat", {"value": 3.99, "other": 0.1}, 1),
        ("top_n_sigma", {"value": 0.0}, 256),
        ("xtc", {"value": 1.0, "other": 1 / 256}, 1),
        ("xtc", {"value": 1.0, "other": 1 / 255}, 256),
        ("xtc", {"value": 1.0, "other": 0.0}, 1),
    ],
)
def test_thresholds_are_exact(models, name, stage, n_kept):
    """With 256 equally likely ids and 44 of zero probability, no value is rounded."""
    logits = np.full(N_VOCAB, -np.inf, dtype=np.float32)
    logits[:256] = 3.5
    plan = Plan((Stage(name, **stage),), draws=True)
    for found in (processed(models, plan, logits, [1]), reference_of(plan, logits, [1])):
        # XTC keeps the last of equally likely ids.
        first = 255 if name == "xtc" and n_kept == 1 else 0
        assert np.flatnonzero(found > -np.inf).tolist() == list(range(first, first + n_kept))


def test_ties_are_broken_by_id(models):
    logits = np.zeros(N_VOCAB, dtype=np.float32)
    logits[::2] = -0.0  # equal to 0.0
    for name, stage in (("top_k", {"count": 5}), ("top_p", {"value": 4.5 / N_VOCAB})):
        ours = processed(models, Plan((Stage(name, **stage),), draws=True), logits, [1])
        assert np.flatnonzero(ours > -np.inf).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", [n for n in STAGES if n not in ("temperature", "top_n_sigma")])
def test_extreme_logits_keep_the_most_likely(models, name):
    """With infinities, 1e30 and denormals some ids are kept, among them the most likely."""
    stage = {"top_k": {"count": 3}}.get(name, {"value": 0.5, "other": 0.3})
    plan = Plan((Stage(name, **stage),), draws=True)
    for maximum in (1e30, 3e38, 1.0, 1e-42, math.inf):
        logits = np.full(N_VOCAB, -math.inf, dtype=np.float32)
        logits[:20] = some_logits(1, n=20) * np.float32(1e-43)
        logits[7] = maximum
        ours = processed(models, plan, logits, [1])
        assert np.argmax(ours) == 7 or name in ("xtc", "typical_p")
        assert ours.max() > -math.inf


def test_a_temperature_that_overflows_is_greedy(models):
    logits = some_logits(3)
    plan = Plan((Stage("temperature", value=2e-38),), draws=True)
    ours = processed(models, plan, logits, [1])
    assert np.flatnonzero(ours > -np.inf).tolist() == [int(np.argmax(logits))]


def test_chance_of_a_position():
    for seed in (0, 1, 2**64 - 1):
        for position in (0, 5, 2**20):
            exact = uniform(seed, 3, position)
            assert {_engine.uniform(isa, seed, 3, position) for isa in ISAS} == {exact}
    chances = [uniform(1, 0, n) for n in range(2000)]
    # The mean of 2,000 numbers from 0 to 1 is within 5 standard errors of 1/2.
    assert abs(np.mean(chances) - 0.5) < 5 * math.sqrt(1 / 12 / 2000)


def test_xtc_applies_with_its_probability(models):
    logits = np.zeros(N_VOCAB, dtype=np.float32)
    logits[:2] = 10, 9
    plan = Plan((Stage("xtc", value=0.3, other=0.1),), draws=True)
    happened = [
        processed(models, plan, logits, [1], seed=seed)[0] == -np.inf for seed in range(1000)
    ]
    assert abs(np.mean(happened) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 1000)
    assert happened[:50] == [uniform(seed, 0, 1) < np.float32(0.3) for seed in range(50)]


def test_mirostat_keeps_the_mean_surprise_near_tau():
    """The mean surprisal of 450 tokens of a trained model is close to tau."""
    model = GPT2.from_pretrained()
    means = {}
    for tau in (1.5, 3.0, 4.5):
        done = model.complete(
            "Once upon a time", max_new_tokens=450, mirostat_tau=tau, seed=1, logprobs=0,
            stop_token_ids=[], min_new_tokens=450,
        )  # fmt: skip
        means[tau] = -np.mean(done.logprobs) / math.log(2)
    # With eta 0.1, mu adapts within about 10 tokens. A surprisal has a standard deviation of
    # about 2 bits, so the mean of 450 has about 0.1.
    assert all(abs(mean - tau) < 0.5 for tau, mean in means.items()), means


@pytest.mark.parametrize("seed", range(4))
def test_mirostat_updates_mu_like_the_reference(backend, seed):
    config = config_of(vocab_size=200, n_positions=100, n_layer=1)
    model = model_on(backend, config, random_weights(config, seed))
    ids = [
        1,
        *model.generate([1], max_new_tokens=80, mirostat_tau=4.0, mirostat_eta=0.2, seed=seed),
    ]
    sampler = Sampler(
        Plan((Stage("mirostat", value=4.0, other=0.2),), draws=True), seed, 0, n_prompt=1
    )
    logits = model.logits(ids).astype(np.float64)
    for position in range(80):
        assert sampler.choose(logits[position], ids[: position + 1]) == ids[position + 1]


def test_sampler_order_has_every_stage():
    assert (*PENALTIES, *SAMPLING_STAGES) == SAMPLER_ORDER
    assert tuple(_engine.ENUMS["stages"]) == (ALLOWED_IDS, *SAMPLER_ORDER)
    assert filters.by_probability(np.array([1.0, 3.0, 3.0])).tolist() == [1, 2, 0]
