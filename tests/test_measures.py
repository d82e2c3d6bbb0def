"""Measures of scored positions equal the oracle's, on every instruction set and in any company."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import FLOAT_ISAS, ISAS, config_of, in_threads, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c.engine.protocol import Measures
from gpt2c.measure.windows import Window, find_sources
from gpt2c.oracle.scoring import measured_values, token_scores

CONFIG = config_of(n_positions=80, bos_token_id=7)
WEIGHTS = random_weights(CONFIG)
OTHER_WEIGHTS = random_weights(CONFIG, seed=1)
N_VOCAB = CONFIG.vocab_size
OPTIONS = {
    "second_moments": True,
    "renyi_orders": (0.5, 2, math.inf),
    "id_sets": ([0, 3, 7], [], range(N_VOCAB)),
}
ARRAYS = (
    "ids", "logprobs", "ranks", "entropies", "top_ids", "top_logprobs", "second_moments",
    "renyi_entropies", "set_logprobs", "cross_entropies", "other_logprobs",
)  # fmt: skip


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


@pytest.fixture
def other(backend):
    return model_on(backend, CONFIG, OTHER_WEIGHTS)


def random_ids(n, seed=0):
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


def is_equal(a, b, backend=""):
    """Whether the bits are equal; on NumPy, whose products depend on shapes, nearly equal."""
    if backend == "numpy":
        return np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def is_same(a, b, backend=""):
    pairs = [(getattr(a, name), getattr(b, name)) for name in ARRAYS]
    return all(x is y is None or is_equal(x, y, backend) for x, y in pairs)


# ---- the values ----


def test_the_values_follow_their_definitions():
    """p is 1/2, 3/10 and 1/5, and q is 1/4, 1/4 and 1/2."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    sets = np.array([[0, -np.inf, 0]], dtype=np.float32)
    measures = Measures(True, (0.5, 2.0, math.inf), sets, object())
    found = measured_values(np.log(p)[None], measures, np.array([2]), np.log(q)[None])
    expected = [
        (p * np.log(p) ** 2).sum(),
        2 * math.log(np.sqrt(p).sum()),
        -math.log((p**2).sum()),
        math.log(2),
        math.log(0.7),
        -(p * np.log(q)).sum(),
        math.log(0.5),
    ]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)  # float32 rounds to 6e-8


def test_scores_have_the_oracles_values(model, other):
    ids = random_ids(60)
    score = model.score(ids, other=other, **OPTIONS)
    logits, other_logits = model.logits(ids[:-1]), other.logits(ids[:-1])
    sets = np.full((3, N_VOCAB), -np.inf, dtype=np.float32)
    sets[0, [0, 3, 7]] = sets[2] = 0
    measures = Measures(True, (0.5, 2.0, math.inf), sets, object())
    exact = measured_values(logits, measures, np.array(ids[1:]), other_logits)
    assert math.isnan(score.second_moments[0])
    # A value is a sum of 50 terms of one sign, or its log, or that divided by 1/2. The terms' exps
    # have arguments below 20 with an error of 2^-24 of them; sums add a few roundings.
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(score.second_moments[1:], exact[:, 0], **close)
    np.testing.assert_allclose(score.renyi_entropies[1:], exact[:, 1:4], **close)
    np.testing.assert_allclose(score.set_logprobs[1:], exact[:, 4:7], **close)
    np.testing.assert_allclose(score.cross_entropies[1:], exact[:, 7], **close)
    np.testing.assert_allclose(score.other_logprobs[1:], exact[:, 8], **close)
    assert np.all(np.isneginf(score.set_logprobs[1:, 1]))  # the empty set
    plain = model.score(ids)
    assert np.array_equal(plain.logprobs, score.logprobs, equal_nan=True)
    assert plain.second_moments is plain.other_logprobs is plain.end_cross_entropy is None


def test_the_cross_entropy_of_a_model_with_itself_is_its_entropy(model):
    score = model.score(random_ids(40), other=model)
    np.testing.assert_allclose(score.cross_entropies[1:], score.entropies[1:], rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 79, 80, 81, 160, 161, 200])
@pytest.mark.parametrize("stride", [None, 13, 80])
def test_the_end_of_a_text_is_measured(model, other, n, stride):
    """The cross-entropy after the last token is that before any token that could follow."""
    ids = random_ids(n)
    score = model.score(ids, other=other, stride=stride)
    assert len(score.logprobs) == len(score.other_logprobs) == len(score.cross_entropies) == n
    if n == 1:
        assert score.end_cross_entropy is None
        assert model.score(ids, bos=True, other=other).end_cross_entropy is not None
        return
    alone = other.score(ids, stride=stride)
    np.testing.assert_allclose(score.other_logprobs, alone.logprobs, rtol=1e-4, atol=1e-5)
    begin = 0
    while begin + 80 < n:
        begin += stride or 40
    # Windows that do not overlap begin one token earlier; a full one leaves no room for the end.
    begin -= stride == 80 and begin > 0
    window = ids[begin:] if n - begin <= 80 else ids[-1:]
    exact = measured_values(
        model.logits(window), Measures(other=object()), np.array(window), other.logits(window)
    )
    assert score.end_cross_entropy == pytest.approx(exact[-1, 0], rel=1e-5)


def test_the_end_of_each_of_many_texts_is_measured(model, other, backend):
    """Texts that begin alike, one of which goes on where another one ends."""
    ids = random_ids(70)
    texts = [ids, ids[:40], [*ids[:40], 1, 2, 3], ids[:39], ids, ids[:1], []]
    found = model.score(texts, other=other)
    for text, score in zip(texts, found, strict=True):
        (alone,) = model.score([text], other=other)
        assert is_same(score, alone, backend)
        ends = np.array([score.end_cross_entropy, alone.end_cross_entropy], dtype=np.float32)
        assert is_equal(ends[:1], ends[1:], backend)


@needs_engine
@pytest.mark.parametrize("n_vocab", [1, 2, 15, 16, 17, 1023, 1024, 1025, 3000])
def test_kernels_give_the_same_bits_on_every_instruction_set(n_vocab):
    from gpt2c.engine import _engine

    rng = np.random.default_rng(n_vocab)
    for scale in (1, 10, 60):
        logits, other = (scale * rng.standard_normal((2, n_vocab))).astype(np.float32)
        logits[rng.random(n_vocab) < 0.1] = -np.inf
        logits[0] = 1
        added = np.where(rng.random(n_vocab) < 0.3, 0, -np.inf).astype(np.float32)
        results = [_engine.measures(isa, logits, 0.5, added, other) for isa in ISAS]
        assert len(set(map(str, results))) == 1
        measures = Measures(True, (0.5,), added[None], object())
        *exact, _ = measured_values(logits[None], measures, np.array([0]), other[None])[0]
        # Up to 60 * 4 = 240 is multiplied by roundings of 2^-24, and 64 + 4 + 3 terms are added.
        np.testing.assert_allclose(results[0], exact, rtol=5e-5, atol=5e-5)


def test_a_nan_makes_all_values_nan():
    logits = np.array([[1, np.nan, 2], [1, np.inf, 2], [0, 0, 0]], dtype=np.float32)
    measures = Measures(True, (2.0, math.inf), np.zeros((1, 3), dtype=np.float32))
    found = measured_values(logits, measures, np.zeros(3, dtype=int))
    assert np.isnan(found[:2]).all()
    assert not np.isnan(found[2]).any()
    assert np.isnan(token_scores(logits, np.zeros(3, dtype=int), 0)[0]["log_prob"][:2]).all()


# ---- beginnings that are shared ----


@settings(max_examples=100)
@given(data=st.data())
def test_sources_share_what_is_equal(data):
    stems = [np.arange(n, dtype=np.int32) for n in (0, 20, 40)]
    windows = []
    for _ in range(data.draw(st.integers(0, 12))):
        tail = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
        fed = np.concatenate([data.draw(st.sampled_from(stems)), np.array(tail, dtype=np.int32)])
        n_targets = data.draw(st.integers(1, len(fed)))
        last = np.array([data.draw(st.integers(0, 2))], dtype=np.int32)
        windows.append(Window(fed, np.concatenate([fed, last])[-n_targets:]))
    sources = find_sources(windows)
    for window, source in zip(windows, sources, strict=True):
        depth = 0
        while source is not None:  # ends, because sources form no circle
            donor = windows[source.donor]
            n = source.n_shared
            assert 16 <= n < len(window.fed)
            assert n <= len(donor.fed)
            assert np.array_equal(window.fed[:n], donor.fed[:n])
            if window.n_unscored < n:  # these targets' scores are copied
                assert donor.n_unscored <= window.n_unscored
                shared = n - window.n_unscored
                begin = window.n_unscored - donor.n_unscored
                copied = donor.targets[begin : begin + shared]
                assert np.array_equal(window.targets[:shared], copied)
            window, source = donor, sources[source.donor]
            depth += 1
            assert depth <= len(windows)


def pairs_with_common_contexts():
    contexts = [random_ids(n, seed=n) for n in (0, 1, 30, 50)]
    contexts += [contexts[2] + [1, 2], contexts[2][:20] + random_ids(9, 5), contexts[3]]
    pairs = [(c, random_ids(n, seed=n)) for c in contexts for n in (1, 2, 7)]
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


@pytest.mark.parametrize("bos", [False, True])
def test_continuations_have_the_scores_of_the_whole_text(model, other, bos):
    pairs = pairs_with_common_contexts()
    options = {"bos": bos, "top_logprobs": 3, "other": other, **OPTIONS}
    found = model.score([c for c, _ in pairs], [k for _, k in pairs], **options)
    for (context, continuation), score in zip(pairs, found, strict=True):
        whole = model.score(context + continuation, **options)
        assert score.ids.tolist() == continuation
        n = len(continuation)
        for name in ARRAYS[1:]:
            expected = getattr(whole, name)[-n:]
            assert is_equal(getattr(score, name), expected, model.backend), name
        one = model.score(np.array(context, dtype=int), continuation, **options)
        assert is_same(one, score, model.backend)


def test_texts_that_begin_alike_are_computed_once(model, monkeypatch):
    engine, rows = model._engine, []
    context = random_ids(60)
    pairs = [(context, [i, 1]) for i in range(10)]
    kind = type(engine)
    if model.backend != "numpy":
        pytest.skip("an extension's method cannot be replaced")
    measure = kind.measure
    monkeypatch.setattr(
        kind, "measure", lambda self, seqs, ids, *rest: (
            rows.extend(map(len, ids)), measure(self, seqs, ids, *rest))[1],
    )  # fmt: skip
    model.score(context, [k for _, k in pairs])
    assert sum(rows) == 61 + 9 * 2  # the context's last id and a continuation's first one
    rows.clear()
    texts = [random_ids(70)[:n] for n in (70, 40, 50, 70)]
    model.score(texts)
    # Two texts are beginnings of the first one, and one is equal to it: each feeds its last id.
    assert sum(rows) == 69 + 3


def test_long_contexts_are_cut_like_long_texts(model):
    context, continuation = random_ids(200), random_ids(50, seed=1)
    for stride in (1, 13, 80):
        score = model.score(context, continuation, stride=stride)
        whole = model.score(context + continuation, stride=stride)
        assert is_equal(score.logprobs, whole.logprobs[200:], model.backend)
        assert is_equal(score.entropies, whole.entropies[200:], model.backend)


@needs_engine
def test_a_small_kv_cache_gives_the_same_scores():
    contexts = [random_ids(60, seed=i) for i in range(6)]
    pairs = [(c, random_ids(n, seed=n)) for c in contexts for n in (3, 5, 9)]
    texts, ends = [c for c, _ in pairs], [k for _, k in pairs]
    expected = model_on(FLOAT_ISAS[0], CONFIG, WEIGHTS).score(texts, ends)
    page = model_on(FLOAT_ISAS[0], CONFIG, WEIGHTS)._engine.page_bytes
    for n_pages in (2, 3, 4, 7):
        model = model_on(FLOAT_ISAS[0], CONFIG, WEIGHTS, kv_cache_bytes=n_pages * page)
        found = model.score(texts, ends)
        assert all(is_same(a, b) for a, b in zip(found, expected, strict=True))
        assert model.kv_cache_bytes == 0


@needs_engine
def test_calls_that_measure_share_passes_with_others():
    model = model_on(FLOAT_ISAS[0], CONFIG, WEIGHTS)
    other = model_on(FLOAT_ISAS[0], CONFIG, OTHER_WEIGHTS)
    texts = [random_ids(n, seed=n) for n in (5, 20, 33, 60)]
    alone = [model.score(text, other=other, **OPTIONS) for text in texts]
    reversed_alone = [other.score(text, other=model) for text in texts]

    def check(i):
        for _ in range(20):
            k = i % 4
            assert is_same(model.score(texts[k], other=other, **OPTIONS), alone[k])
            assert is_same(other.score(texts[k], other=model), reversed_alone[k])

    in_threads(check, range(6))


# ---- options that are refused ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"renyi_orders": [1]}, gpt2c.OptionError, "Score.entropies"),
        ({"renyi_orders": [0]}, gpt2c.OptionError, "above 0"),
        ({"renyi_orders": [math.nan]}, gpt2c.OptionError, "above 0"),
        ({"renyi_orders": ["2"]}, gpt2c.OptionTypeError, "number above 0"),
        ({"renyi_orders": 2}, gpt2c.OptionTypeError, "list"),
        ({"id_sets": [[N_VOCAB]]}, gpt2c.OptionError, "from 0 to"),
        ({"id_sets": [3]}, gpt2c.OptionTypeError, "set of ids"),
        ({"id_sets": "abc"}, gpt2c.OptionTypeError, "list"),
        ({"second_moments": 1}, gpt2c.OptionTypeError, "second_moments"),
        ({"other": "gpt2"}, gpt2c.OptionTypeError, "GPT2 model"),
    ],
)
def test_wrong_options_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        model.score([1, 2, 3], **options)


def test_other_needs_the_same_vocabulary(backend, model):
    config = config_of(vocab_size=51)
    with pytest.raises(gpt2c.OptionError, match="vocabulary"):
        model.score([1, 2, 3], other=model_on(backend, config, random_weights(config)))


def test_lists_of_different_lengths_are_refused(model):
    with pytest.raises(gpt2c.OptionError, match="2 texts and 3 continuations"):
        model.score([[1], [2]], [[1], [2], [3]])
    assert model.score([[1, 2], [2]], [3])[1].ids.tolist() == [3]
    assert [s.ids.tolist() for s in model.score([1, 2], [[3], [4, 5]])] == [[3], [4, 5]]
    assert model.score([1, 2], []) == []
