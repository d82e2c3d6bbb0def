"""Single kernels: accuracy against float64, and equal bits on every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import ISAS, cases, needs_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c.oracle import reference

if ISAS:
    from gpt2c.engine import _engine

pytestmark = needs_engine

EPS = float(np.finfo(np.float32).eps)
FUNCTIONS = ["exp", "gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu", "tanh"]
floats = st.floats(width=32)


def test_exp_is_within_one_ulp():
    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 100_001)])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(_engine.elementwise(ISAS[0], "exp", x) / exact - 1).max() <= EPS


def test_exp_of_extreme_values():
    ends = [-np.inf, -200, -104, -100, -90, 0.0, 88.7, 88.8, 200, np.inf, np.nan]
    x = np.array(ends, dtype=np.float32)
    ours = _engine.elementwise(ISAS[0], "exp", x)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(x.astype(np.float64)).astype(np.float32)
    # Subnormal results are rounded once, to within their spacing of 2^-149.
    np.testing.assert_allclose(ours, exact, rtol=EPS, atol=2.0**-149)
    assert ours[5] == 1.0


def test_log_is_within_two_ulp():
    x = np.exp(np.linspace(-80, 80, 200_001)).astype(np.float32)
    x = np.concatenate([x, np.linspace(0.5, 2, 100_001).astype(np.float32)])
    exact = np.log(x.astype(np.float64))
    error = np.abs(_engine.elementwise(ISAS[0], "log", x) - exact)
    assert (error <= 2 * EPS * np.abs(exact)).all()


@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_activations_are_within_four_ulp(function):
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    exact = reference.ACTIVATIONS[function](x.astype(np.float64))
    ours = _engine.elementwise(ISAS[0], function, x)
    # The result is x times a factor that is accurate to 4 ULP; tanh is at most 1.
    assert (np.abs(ours - exact) <= 4 * EPS * np.maximum(np.abs(x), 2.0**-126)).all()
    ends = _engine.elementwise(ISAS[0], function, [np.inf, -np.inf, np.nan, 1e30, -1e30])
    lower = -1.0 if function == "tanh" else 0.0
    upper = 1.0 if function == "tanh" else np.inf
    assert ends[0] == upper
    assert ends[1] == lower
    assert math.isnan(ends[2])
    assert ends[3] == (1.0 if function == "tanh" else np.float32(1e30))
    assert ends[4] == lower


@given(x=st.lists(floats, max_size=70), function=st.sampled_from(FUNCTIONS))
def test_elementwise_bits_equal_the_scalar_kernels(x, function):
    bits = [_engine.elementwise(isa, function, x) for isa in ISAS]
    for other in bits[1:]:
        np.testing.assert_array_equal(bits[0], other)
        np.testing.assert_array_equal(np.signbit(bits[0]), np.signbit(other))


@given(
    row=st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=70),
    epsilon=st.sampled_from([0.0, 1e-5]),
)
def test_layer_norm_bits_equal_the_scalar_kernels(row, epsilon):
    x, weight, bias = np.array(row, dtype=np.float32).T.copy()
    bits = [_engine.layer_norm(isa, x, weight, bias, epsilon) for isa in ISAS]
    for other in bits[1:]:
        np.testing.assert_array_equal(bits[0], other)


def test_layer_norm_is_close_to_float64(isa):
    rng = np.random.default_rng(0)
    for n in (1, 2, 15, 16, 17, 100, 768):
        x, weight, bias = rng.standard_normal((3, n)).astype(np.float32)
        x += 3
        exact = reference.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), 1e-5)
        ours = _engine.layer_norm(isa, x, weight, bias, 1e-5)
        # The mean, near 3, has an error of a few ULP of 3, and so has each difference from it.
        np.testing.assert_allclose(ours, exact, rtol=8 * EPS, atol=64 * EPS)


def assert_same_bits(results):
    """Compare bits; all NaNs are equal, but zeros of different signs are not equal."""
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
        np.testing.assert_array_equal(
            np.signbit(np.nan_to_num(results[0])), np.signbit(np.nan_to_num(other))
        )


def values(seed, *shape, extremes=True):
    """Return random floats, among them zeros, denormals, huge values, infinities and NaNs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    if extremes:
        special = [0.0, -0.0, 1e-45, -3e-39, 1e30, -1e30, 3e38, np.inf, -np.inf, np.nan]
        where = rng.random(shape) < 0.02
        x[where] = rng.choice(np.array(special, dtype=np.float32), where.sum())
    return x


@settings(max_examples=cases(150))
@given(
    n_rows=st.integers(1, 60),
    k=st.one_of(st.integers(1, 200), st.sampled_from([63, 64, 65, 128])),
    n=st.one_of(st.integers(1, 140), st.sampled_from([31, 32, 33, 64])),
    parts=st.tuples(st.booleans(), st.booleans()),
    activation=st.sampled_from([None, "gelu_tanh", "relu"]),
    seed=st.integers(0, 2**32 - 1),
    extremes=st.booleans(),
)
def test_matmul_bits_equal_the_scalar_kernels(n_rows, k, n, parts, activation, seed, extremes):
    x, weight = values(seed, n_rows, k, extremes=extremes), values(seed + 1, k, n, extremes=False)
    if extremes:
        weight[seed % k, seed % n] = np.inf
    bias = values(seed + 2, n, extremes=extremes) if parts[0] else None
    residual = values(seed + 3, n_rows, n, extremes=extremes) if parts[1] else None
    assert_same_bits([_engine.matmul(isa, x, weight, bias, residual, activation) for isa in ISAS])


def fma_chain(x, w):
    """Compute an output as defined: one FMA chain per block of 64 steps, blocks added in order.

    A float32 FMA is emulated by a float64 product, which is exact, and a sum. The sum is rounded
    twice, to float64 and to float32, instead of once. That makes no difference here because the
    inputs have few bits.
    """
    total = None
    for block in range(0, len(x), 64):
        chain = np.float32(0)
        for a, b in zip(x[block : block + 64], w[block : block + 64], strict=True):
            chain = np.float32(np.float64(a) * np.float64(b) + np.float64(chain))
        total = chain if total is None else np.float32(total + chain)
    return total


def test_matmul_follows_the_defined_arithmetic(isa):
    rng = np.random.default_rng(0)
    x, weight = (
        np.round(rng.standard_normal(s), 1).astype(np.float16) for s in ((9, 150), (150, 40))
    )
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    ours = _engine.matmul(isa, x, weight, None, None, None)
    for row in range(9):
        for column in range(0, 40, 7):
            assert ours[row, column] == fma_chain(x[row], weight[:, column])


@settings(max_examples=cases(150))
@given(
    head_dim=st.one_of(st.integers(1, 100), st.sampled_from([32, 64, 80, 128])),
    n_before=st.integers(0, 200),
    n_rows=st.integers(1, 64),
    seed=st.integers(0, 2**32 - 1),
    extremes=st.booleans(),
)
def test_attention_bits_equal_the_scalar_kernels(head_dim, n_before, n_rows, seed, extremes):
    n_rows = min(n_rows, 64 - n_before % 64)
    q = values(seed, n_rows, head_dim, extremes=False)
    keys = values(seed + 1, n_before + n_rows, head_dim, extremes=extremes)
    v = values(seed + 2, n_before + n_rows, head_dim, extremes=extremes)
    results = [_engine.attention(isa, q, keys, v, 0.125) for isa in ISAS]
    assert_same_bits(results)
    # A row computed alone has the same bits: neither its tile nor later positions affect it.
    alone = [
        _engine.attention(ISAS[-1], q[r : r + 1], keys[:n], v[:n], 0.125)[0]
        for r, n in enumerate(range(n_before + 1, n_before + n_rows + 1))
    ]
    assert_same_bits([results[-1], np.array(alone)])
    # A bfloat16 cache equals a float32 cache whose lower 16 bits are zero.
    cut = [(x.view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (keys, v)]
    bfloat16 = [_engine.attention(isa, q, keys, v, 0.125, is_bfloat16=True) for isa in ISAS]
    assert_same_bits([_engine.attention(ISAS[0], q, *cut, 0.125), *bfloat16])


def test_attention_is_close_to_float64(isa):
    for head_dim, n_before, n_rows in ((64, 0, 64), (64, 500, 9), (20, 63, 1), (3, 130, 40)):
        q, (k, v) = (
            values(1, n_rows, head_dim, extremes=False),
            values(2, 2, n_before + n_rows, head_dim, extremes=False),
        )
        ours = _engine.attention(isa, q, k, v, 0.1)
        scores = 0.1 * q.astype(np.float64) @ k.T.astype(np.float64)
        scores[np.arange(len(k)) > n_before + np.arange(n_rows)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        exact = weights / weights.sum(axis=1, keepdims=True) @ v
        # The sums have up to 550 terms of about 1, which mostly cancel: errors are a few ULP of 1.
        np.testing.assert_allclose(ours, exact, rtol=0, atol=16 * EPS)


@settings(max_examples=cases(200))
@given(
    n=st.one_of(st.integers(1, 70), st.integers(1000, 3100)),
    n_values=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    nan_at=st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
)
def test_argmax_is_the_lowest_id_of_the_maximum(n, n_values, seed, nan_at):
    rng = np.random.default_rng(seed)
    few = np.array([-np.inf, -1e30, -0.0, 0.0, 2.0, np.inf], dtype=np.float32)
    logits = rng.choice(few[:n_values], n)  # few distinct values, so most are tied
    expected = int(logits.argmax())
    if nan_at is not None:
        logits[int(nan_at * n)] = np.nan
        expected = -1
    assert [_engine.arg_max(isa, logits) for isa in ISAS] == [expected] * len(ISAS)


@given(k=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_add(k, seed):
    row, added = values(seed, k), values(seed + 1, k)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = row + added
    assert_same_bits([expected, *(_engine.add(isa, row, added) for isa in ISAS)])
