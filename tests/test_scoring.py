"""Scores equal values computed by hand and by the oracle: alone, in batches and in windows."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ISAS, cases, config_of, logit_atol, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c import GPT2, Score
from gpt2c.measure.scores import json_fields
from gpt2c.measure.windows import windows_of
from gpt2c.oracle.reference import gpt2
from gpt2c.oracle.scoring import token_scores

CONFIG = config_of(n_positions=40)
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


def random_ids(n, seed=0, n_vocab=CONFIG.vocab_size):
    return np.random.default_rng(seed).integers(0, n_vocab, n).tolist()


def is_same(a: Score, b: Score) -> bool:
    def equal(name: str) -> bool:
        return np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name != "ids")

    return all(map(equal, ("ids", "logprobs", "ranks", "entropies")))


def test_a_case_by_hand(backend):
    """Without blocks the logits are wte . ln_f(wte[id] + wpe[position]).

    With ln_f's weight 0 and bias [1, 0] they are column 0 of wte for every token: log 5, log 3 and
    log 2. So the probabilities are 1/2, 3/10 and 1/5.
    """
    config = config_of(vocab_size=3, n_positions=9, n_embd=2, n_layer=0, n_head=1)
    weights = random_weights(config)
    weights["wte.weight"][:, 0] = np.log([5, 3, 2])
    weights["ln_f.weight"][:] = 0
    weights["ln_f.bias"][:] = [1, 0]
    model = model_on(backend, config, weights)
    score = model.score([0, 2, 1, 0])
    assert score.ids.tolist() == [0, 2, 1, 0]
    # Logits and their log-sum are at most 2.3, so errors are a few roundings of 1e-7.
    np.testing.assert_allclose(score.logprobs[1:], np.log([0.2, 0.3, 0.5]), atol=1e-6)
    assert math.isnan(score.logprobs[0])
    assert score.ranks.tolist() == [0, 3, 2, 1]
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    np.testing.assert_allclose(score.entropies[1:], [entropy] * 3, atol=1e-6)
    assert math.isnan(score.entropies[0])
    assert score.total == pytest.approx(math.log(0.03), abs=3e-6)
    assert score.perplexity == pytest.approx(0.03 ** (-1 / 3), rel=2e-6)
    assert model.perplexity([0, 2, 1, 0]) == score.perplexity
    assert model.perplexity([[0, 2], [0, 1]]) == [
        model.perplexity([0, 2]), model.perplexity([0, 1])
    ]  # fmt: skip


def test_scores_equal_the_oracle(model):
    ids = random_ids(40)
    logits = gpt2(np.array(ids), {n: w.astype(np.float64) for n, w in WEIGHTS.items()}, CONFIG)
    exact, _ = token_scores(logits[:-1], np.array(ids[1:]), 0)
    score = model.score(ids)
    atol = 2 * logit_atol(logits)
    np.testing.assert_allclose(score.logprobs[1:], exact["log_prob"], rtol=0, atol=atol)
    np.testing.assert_allclose(score.entropies[1:], exact["entropy"], rtol=0, atol=atol)
    np.testing.assert_array_equal(score.ranks[1:], exact["rank"])


def test_texts_too_short_to_score(model):
    for text in ([], [5]):
        score = model.score(np.array(text, dtype=int))
        assert score.total == 0.0
        assert math.isnan(score.perplexity)
        assert len(score.ids) == len(score.logprobs) == len(score.ranks) == len(text)
    assert model.score([]) == []
    assert [len(score.ids) for score in model.score([[], [1], [1, 2]])] == [0, 1, 2]


def test_bos_gives_the_first_token_its_probability(backend):
    config = config_of(n_positions=40, eos_token_id=49)
    model = model_on(backend, config, WEIGHTS)
    ids = random_ids(20)
    with_bos, after_eos = model.score(ids, bos=True), model.score([49, *ids])
    assert with_bos.ids.tolist() == ids
    np.testing.assert_array_equal(with_bos.logprobs, after_eos.logprobs[1:])
    np.testing.assert_array_equal(with_bos.ranks, after_eos.ranks[1:])
    assert with_bos.total == after_eos.total
    assert model.score(ids[:1], bos=True).n_scored == 1
    assert model.score(np.array([], dtype=int), bos=True).total == 0.0
    with pytest.raises(gpt2c.OptionError, match="bos=True: this model has no BOS token"):
        model_on(backend, CONFIG, WEIGHTS).score(ids, bos=True)


@settings(max_examples=cases(30))
@given(lengths=st.lists(st.integers(0, 130), max_size=12), seed=st.integers(0, 100))
def test_batched_scores_equal_single_scores(lengths, seed):
    """Ragged lists and many windows give the same bits as scoring each text alone."""
    model = model_on(ISAS[-1] if ISAS else "numpy", CONFIG, WEIGHTS)
    texts = [random_ids(n, seed + i) for i, n in enumerate(lengths)]
    alone = [model.score(np.array(text, dtype=int)) for text in texts]
    together = model.score([np.array(text, dtype=int) for text in texts])
    lazily = list(model.score(iter(texts)))
    for one, two, three in zip(alone, together, lazily, strict=True):
        assert is_same(one, two)
        assert is_same(one, three)


def test_same_bits_as_from_the_logits(isa):
    """log p = logit - (M + log S), with the logits of a session."""
    from gpt2c.engine import _engine

    model = model_on(isa, CONFIG, WEIGHTS)
    ids = random_ids(40)
    logits = model.logits(ids)
    score = model.score(ids)
    for i in range(1, len(ids)):
        total, entropy = _engine.log_sum_exp(isa, logits[i - 1])
        assert score.logprobs[i] == logits[i - 1][ids[i]] - np.float32(total)
        assert score.entropies[i] == np.float32(entropy)
        assert score.ranks[i] == _engine.rank(isa, logits[i - 1], ids[i])


def test_every_instruction_set_gives_the_same_scores():
    if len(ISAS) < 2:
        pytest.skip("only one instruction set runs here")
    texts = [random_ids(n, n) for n in (3, 90, 40)]
    scores = [model_on(isa, CONFIG, WEIGHTS).score(texts) for isa in ISAS]
    for others in scores[1:]:
        assert all(is_same(a, b) for a, b in zip(scores[0], others, strict=True))


@given(n=st.integers(0, 200), n_positions=st.integers(1, 40), data=st.data())
def test_windows_score_each_token_once(n, n_positions, data):
    stride = data.draw(st.integers(1, n_positions))
    n_given = data.draw(st.integers(1, 100))
    windows = windows_of(np.arange(n, dtype=np.int32), n_given, n_positions, stride)
    scored = [int(id) for window in windows for id in window.targets]
    assert scored == list(range(n_given, n))
    for window in windows:
        fed, targets = window
        assert 1 <= len(targets) <= len(fed) <= n_positions
        whole = [*fed.tolist(), int(targets[-1])]
        assert whole == list(range(whole[0], whole[0] + len(whole)))
        assert whole[-len(targets) :] == targets.tolist()  # the ids after those fed
        assert window.n_unscored == len(fed) - len(targets)
        first = whole[0] + (stride == n_positions and whole[0] > 0)  # see windows_of
        assert first % stride == 0


def test_windows_follow_transformers_recipe(model):
    """Compare with the loop in transformers' documentation, "Perplexity of fixed-length models"."""
    ids = random_ids(150)
    n_positions = 40
    for stride in (7, 20, 39):
        total, n_scored, previous = 0.0, 0, 0
        for begin in range(0, len(ids), stride):
            end = min(begin + n_positions, len(ids))
            n_new = end - previous
            window = ids[begin:end]
            logits = model.logits(window)
            scores, _ = token_scores(logits[:-1], np.array(window[1:]), 0)
            counted = scores["log_prob"][-n_new:]
            total, n_scored, previous = total + counted.sum(), n_scored + len(counted), end
            if end == len(ids):
                break
        ours = model.score(ids, stride=stride)
        assert n_scored == ours.n_scored == len(ids) - 1
        # The total is a float32 sum of 149 values of about 10.
        assert ours.total == pytest.approx(float(total), rel=1e-5)
        assert model.perplexity(ids, stride=stride) == ours.perplexity
    assert is_same(model.score(ids), model.score(ids, stride=20))


def test_an_iterator_is_read_lazily_and_in_order(model):
    taken = []

    def texts():
        for n in range(2000):
            taken.append(n)
            yield [n % 50, 1, 2]

    scores = model.score(texts())
    for n, score in zip(range(300), scores, strict=False):
        assert score.ids.tolist() == [n % 50, 1, 2]
    # At most 256 rows run together, two per text. One more text is read, which did not fit.
    assert len(taken) <= 300 + 256


def test_an_error_is_raised_after_the_scores_before_it(model):
    def texts():
        yield [1, 2]
        yield [3]
        yield [50]
        yield [4]

    scores = model.score(texts())
    assert [next(scores).ids.tolist(), next(scores).ids.tolist()] == [[1, 2], [3]]
    with pytest.raises(gpt2c.OptionError, match=r"text 2: token 0 is 50"):
        next(scores)


def test_special_tokens_are_scored_as_characters():
    model = GPT2.from_pretrained()
    text = "The end.<|endoftext|>"
    score = model.score(text)
    assert score.ids.tolist() == model.tokenizer.encode(text, special=False)
    assert model.tokenizer.eot_id not in score.ids
    assert model.tokenizer.decode(score.ids) == text


def test_a_nan_names_text_and_position(backend):
    weights = random_weights(CONFIG)
    weights["wte.weight"][7, 0] = np.nan
    weights["wte.weight"][7, 1:] = 0
    model = model_on(backend, CONFIG, weights)
    with pytest.raises(gpt2c.NumericalError, match="text 1: a logit at position"):
        model.score([[3], [1, 2]])


def test_json_has_no_nan(model):
    text = json.dumps(json_fields(model.score(random_ids(3))), allow_nan=False)
    assert json.loads(text)["logprobs"][0] is None
    assert json.loads(json.dumps(json_fields(model.score([[5]])[0]), allow_nan=False)) == {
        "ids": [5], "logprobs": [None], "ranks": [0], "entropies": [None], "total": 0.0,
        "perplexity": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0; it must be from 1 to 40"),
        ({"stride": 41}, "stride is 41"),
        ({"stride": 2.5}, "stride is 2.5"),
        ({"bos": 1}, "bos is 1"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises((gpt2c.OptionError, gpt2c.OptionTypeError), match=message):
        model.score([1, 2], **options)


def test_bad_texts(model):
    for bad in (None, 5, [[1], "a"], [[[1]]], {"a": 1}, [1.5]):
        with pytest.raises((gpt2c.OptionError, gpt2c.OptionTypeError)):
            list(model.score(bad))
    with pytest.raises(gpt2c.OptionTypeError, match="not an iterator; pass a list"):
        model.perplexity(iter([[1, 2]]))


SPECIAL = [0.0, -0.0, 1e-42, 1e30, -1e30, 88.0, -200.0]


@needs_engine
@settings(max_examples=cases(200))
@given(
    n=st.integers(1, 2500),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.01, 1.0, 5.0, 50.0]),
    special=st.lists(st.sampled_from(SPECIAL), max_size=4),
)
def test_log_total_and_rank_kernels(n, seed, spread, special):
    from gpt2c.engine import _engine

    rng = np.random.default_rng(seed)
    logits = (spread * rng.standard_normal(n)).astype(np.float32)
    logits[rng.integers(0, n, len(special))] = special
    id = int(rng.integers(0, n))
    results = [(*_engine.log_sum_exp(isa, logits), _engine.rank(isa, logits, id)) for isa in ISAS]
    assert all(result == results[0] for result in results)
    total, entropy, rank = results[0]
    (exact,), ((top,),) = token_scores(logits[None], np.array([id]), 1)
    # The total is the maximum logit plus the log of a sum of up to 2,500 terms. Each term is within
    # 4 ULP, and 16 lanes add them, so the log is within 2e-6; the total is rounded once more.
    assert total == pytest.approx(float(logits[top["id"]]) - top["log_prob"], rel=1e-6, abs=4e-6)
    assert entropy == pytest.approx(float(exact["entropy"]), rel=1e-5, abs=2e-5 * max(1, np.log(n)))
    assert rank == exact["rank"]


def test_log_total_of_nan_and_infinite_logits(isa):
    from gpt2c.engine import _engine

    for bad in (np.nan, np.inf):
        for place in (0, 5, 1030, 2000):
            logits = np.zeros(2001, dtype=np.float32)
            logits[place] = bad
            assert all(np.isnan(_engine.log_sum_exp(isa, logits)))
    assert all(np.isnan(_engine.log_sum_exp(isa, np.full(2000, -np.inf, dtype=np.float32))))
    logits = np.full(2001, -np.inf, dtype=np.float32)
    logits[1500] = 3.0
    assert _engine.log_sum_exp(isa, logits) == (3.0, 0.0)


def test_rank_counts_ties_by_id(isa):
    from gpt2c.engine import _engine

    logits = np.zeros(100, dtype=np.float32)
    assert [_engine.rank(isa, logits, id) for id in (0, 1, 50, 99)] == [1, 2, 51, 100]


def test_top_logprobs_equal_the_oracle(model):
    ids = random_ids(90)  # in several windows
    plain, score = model.score(ids), model.score(ids, top_logprobs=4)
    assert is_same(plain, score)
    assert plain.top_ids.shape == plain.top_logprobs.shape == (90, 0)
    assert score.top_ids[0].tolist() == [-1] * 4
    assert np.isnan(score.top_logprobs[0]).all()
    wide = {n: w.astype(np.float64) for n, w in WEIGHTS.items()}
    first = np.array(ids[: CONFIG.n_positions - 1])  # the ids that the first window feeds
    _, exact = token_scores(gpt2(first, wide, CONFIG), first, 4)
    n = len(first)
    np.testing.assert_array_equal(score.top_ids[1 : n + 1], exact["id"])
    atol = 1e-4  # float32 logits up to about 8
    np.testing.assert_allclose(score.top_logprobs[1 : n + 1], exact["log_prob"], rtol=0, atol=atol)
    likeliest = score.ranks == 1
    assert likeliest.any()
    np.testing.assert_array_equal(score.top_ids[likeliest, 0], score.ids[likeliest])
    np.testing.assert_array_equal(score.top_logprobs[likeliest, 0], score.logprobs[likeliest])
    together = model.score([ids[:9], [], ids], top_logprobs=4)
    np.testing.assert_array_equal(together[2].top_ids, score.top_ids)
    np.testing.assert_array_equal(together[0].top_ids, score.top_ids[:9])
    assert together[1].top_ids.shape == (0, 4)


def test_more_top_logprobs_than_the_vocabulary_has(model):
    score = model.score([1, 2], top_logprobs=60)
    assert sorted(score.top_ids[1].tolist()) == [-1] * 10 + list(range(50))
    assert np.isnan(score.top_logprobs[1, 50:]).all()
    assert np.exp(score.top_logprobs[1, :50].astype(float)).sum() == pytest.approx(1, abs=1e-5)
    line = json_fields(score)
    assert [len(row) for row in line["top_ids"]] == [0, 50]
    assert [len(row) for row in line["top_logprobs"]] == [0, 50]
    json.dumps(line, allow_nan=False)
    with pytest.raises(gpt2c.OptionError, match="top_logprobs is 129"):
        model.score([1], top_logprobs=129)


@needs_engine
def test_scores_of_threads_share_passes():
    """Calls of several threads that wait for a turn are scored in one pass, with the same bits."""
    config = config_of(n_positions=64)
    model = model_on(ISAS[-1], config, random_weights(config))
    rng = np.random.default_rng(5)
    texts = [rng.integers(config.vocab_size, size=n).tolist() for n in rng.integers(2, 40, 64)]
    n_tops = [int(n) for n in rng.integers(0, 4, len(texts))]

    def score(i):
        one = model.score(texts[i], top_logprobs=n_tops[i])
        arrays = (one.logprobs, one.ranks, one.entropies, one.top_ids, one.top_logprobs)
        return [array.tobytes() for array in arrays]

    alone = [score(i) for i in range(len(texts))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(score, range(len(texts)))) == alone
