"""Embeddings: hidden states of many texts in shared passes, pooled to vectors."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import (
    ISAS,
    TINY,
    cases,
    config_of,
    model_on,
    needs_engine,
    on_backend,
    random_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c import GPT2
from gpt2c.oracle.reference import gpt2

CONFIG = config_of(n_positions=300, n_layer=3)
WEIGHTS = random_weights(CONFIG)
LENGTHS = [1, 7, 300, 2, 64, 257, 65, 40]


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


def assert_near(found, wanted):
    """Compare within float32's rounding, relative to the largest activation (see test_probing)."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * max(np.abs(wanted).max(), 1))


def texts_of(lengths):
    random = np.random.default_rng(0)
    return [random.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths]


def oracle_states(ids, n_blocks):
    """The hidden states in float64, by transformers' indices."""
    name = {0: "embed", CONFIG.n_layer: "ln_f"}.get(n_blocks, f"h.{n_blocks - 1}.resid_post")
    found = {}
    weights = {key: value.astype(np.float64) for key, value in WEIGHTS.items()}
    gpt2(ids, weights, CONFIG, visit=lambda key, value: found.update({key: value.copy()}))
    return found[name]


@pytest.mark.parametrize("layer", range(-4, 4))
def test_embeddings_equal_the_oracle(model, layer):
    texts = texts_of(LENGTHS)
    states = [oracle_states(ids, layer % 4) for ids in texts]
    for pooling, pool in (
        ("mean", lambda rows: rows.mean(axis=0)),
        ("last", lambda rows: rows[-1]),
        (lambda rows: rows.max(axis=0), lambda rows: rows.max(axis=0)),
    ):
        found = model.embed(texts, layer=layer, pooling=pooling)
        assert found.dtype == np.float32
        assert_near(found, np.stack([pool(rows) for rows in states]))


def test_hidden_states_have_the_bits_of_forward(model):
    texts = texts_of(LENGTHS)
    points = ["embed", "h.0.resid_post", "h.1.resid_post", "ln_f"]
    exact = model.backend != "numpy"  # whose matrix products depend on their number of rows
    for layer, point in enumerate(points):
        rows = []
        model.embed(texts, layer=layer, pooling=lambda x, rows=rows: rows.append(x) or x[0])
        for ids, seen in zip(texts, rows, strict=True):
            expected = model.forward(ids, capture=point)[point]
            if exact:
                np.testing.assert_array_equal(seen, expected)
            else:
                assert_near(seen, expected)


@needs_engine
@settings(max_examples=cases(40))
@given(
    lengths=st.lists(st.sampled_from([1, 2, 5, 63, 64, 65, 200, 300, 301, 700]), max_size=12),
    layer=st.integers(0, 3),
    pooling=st.sampled_from(["mean", "last"]),
    isa=st.sampled_from(ISAS),
    dtype=st.sampled_from(["float32", "int8", "int4"]),
    threads=st.integers(1, 3),
    stride=st.sampled_from([50, 150, 300]),
)
def test_same_bits_in_any_company(lengths, layer, pooling, isa, dtype, threads, stride):
    config = config_of(n_positions=300, n_layer=3)
    model = model_on(isa, config, WEIGHTS, dtype=dtype, threads=threads)
    texts = texts_of(lengths)
    options = {"layer": layer, "pooling": pooling, "stride": stride}
    found = model.embed(texts, **options)
    assert found.shape == (len(texts), CONFIG.n_embd)
    for ids, vector in zip(texts, found, strict=True):
        np.testing.assert_array_equal(model.embed(ids, **options), vector)


@pytest.mark.parametrize("stride", [1, 7, 20, 40])
def test_windows_embed_each_token_once(backend, stride):
    """By the definition: a token's state is that of the first window that holds the token."""
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    (ids,) = texts_of([97])
    rows = [model.forward(ids[:40], capture="ln_f")["ln_f"]]
    begin = 0
    while begin + 40 < len(ids):
        begin += stride
        n_seen = sum(map(len, rows))
        window = model.forward(ids[begin : begin + 40], capture="ln_f")["ln_f"]
        rows.append(window[n_seen - begin :])
    states = np.concatenate(rows)
    assert len(states) == 97
    assert_near(model.embed(ids, stride=stride), states.astype(np.float64).mean(axis=0))
    assert_near(model.embed(ids, stride=stride, pooling="last"), states[-1])
    assert_near(model.embed(ids, stride=stride, pooling=np.ravel), states.ravel())


def test_texts_ids_and_bos():
    model = GPT2.from_pretrained()
    text = "Once upon a <|endoftext|> time"
    ids = model.tokenizer.encode(text, special=False)
    assert model.embed(text).shape == (model.config.n_embd,)
    np.testing.assert_array_equal(model.embed([text, "x"])[0], model.embed(ids))
    np.testing.assert_array_equal(
        model.embed(text, special_tokens=True), model.embed(model.tokenizer.encode(text))
    )
    bos = model.config.bos_token_id
    np.testing.assert_array_equal(model.embed(text, bos=True), model.embed([bos, *ids]))
    np.testing.assert_array_equal(model.embed("", bos=True), model.embed([bos]))


def test_no_texts(model):
    assert model.embed([]).shape == (0, CONFIG.n_embd)
    assert list(model.embed(iter([]))) == []


def test_an_iterator_is_read_lazily_and_in_order(model):
    read = []

    def texts():
        for index in range(10_000):
            read.append(index)
            yield [index % CONFIG.vocab_size] * 8

    vectors = model.embed(texts())
    first = next(vectors)
    assert len(read) <= 256 // 8  # what fills a pass
    np.testing.assert_array_equal(first, model.embed([0] * 8))
    np.testing.assert_array_equal(next(vectors), model.embed([1] * 8))


def test_an_error_is_raised_after_the_vectors_before_it(model):
    vectors = model.embed(iter([[1, 2], [3], "four"]))
    assert len([next(vectors), next(vectors)]) == 2
    with pytest.raises(gpt2c.TokenizerError, match="text 2"):
        next(vectors)


def test_the_kv_cache_limit_holds(backend):
    config = config_of(n_positions=300, n_layer=3)
    model = model_on(backend, config, WEIGHTS)
    expected = model.embed(texts_of(LENGTHS))
    page = 64 * 2 * config.n_layer * config.n_embd * 4
    model._engine.cache_limit = 5 * page  # one context
    assert_near(model.embed(texts_of(LENGTHS)), expected)
    assert model.kv_cache_bytes == 0


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([[1], []], {}, gpt2c.OptionError, "text 1 is empty; pass bos=True"),
        ([[1], [1] * 301], {}, gpt2c.ContextError, "text 1 has 301 tokens"),
        ([1], {"layer": 4}, gpt2c.OptionError, "layer is 4; it must be from -4 to 3"),
        ([1], {"layer": 1.0}, gpt2c.OptionTypeError, "layer is 1.0"),
        ([1], {"pooling": "means"}, gpt2c.OptionError, "did you mean mean?"),
        ([1], {"pooling": 3}, gpt2c.OptionTypeError, "pooling is 3"),
        ([1], {"stride": 0}, gpt2c.OptionError, "stride is 0"),
        ([1], {"pooling": lambda x: x}, gpt2c.OptionError, r"shape [1, 24] for text 0"),
        ([1], {"pooling": lambda x: "no"}, gpt2c.OptionError, "vector of real numbers"),
        ([[1], [1, 2]], {"pooling": np.ravel}, gpt2c.OptionError, "returned 48 numbers for text 1"),
        ({"a": 1}, {}, gpt2c.OptionTypeError, "a prompt is of type dict"),
    ],
)
def test_errors_say_what_is_wrong(model, texts, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        model.embed(texts, **options)


def test_a_nan_names_the_text(backend):
    weights = {name: value.copy() for name, value in WEIGHTS.items()}
    weights["wte.weight"][7] = np.nan
    model = model_on(backend, CONFIG, weights)
    with pytest.raises(gpt2c.NumericalError, match="text 1: a hidden state is NaN"):
        model.embed([[1, 2], [3, 7]])


def test_a_closed_model_raises(backend):
    model = model_on(backend, CONFIG, WEIGHTS)
    vectors = model.embed(iter(texts_of([300, 300])))
    next(vectors)
    model.close()
    with pytest.raises(gpt2c.ClosedError):
        next(vectors)
    with pytest.raises(gpt2c.ClosedError):
        model.embed([1])


# ---- transformers ----


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_layers_are_counted_as_in_transformers(backend):
    """One text at a time, in float32; the same for every layer and for both poolings."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    model = on_backend(backend, lambda b: GPT2.from_pretrained(TINY, backend=b))
    theirs = transformers.GPT2Model.from_pretrained(TINY).eval()
    random = np.random.default_rng(1)
    c = model.config
    texts = [random.integers(0, c.vocab_size, n) for n in (1, c.n_positions, 5, 3)]
    with torch.no_grad():
        states = [
            [state[0].numpy() for state in output.hidden_states]
            for ids in texts
            for output in [theirs(torch.tensor(ids[None]), output_hidden_states=True)]
        ]
    assert len(states[0]) == c.n_layer + 1
    for layer in range(-c.n_layer - 1, c.n_layer + 1):
        for pooling in ("mean", "last"):
            found = model.embed([ids.tolist() for ids in texts], layer=layer, pooling=pooling)
            rows = [each[layer] for each in states]
            wanted = [x.mean(axis=0) if pooling == "mean" else x[-1] for x in rows]
            assert_near(found, np.stack(wanted))
