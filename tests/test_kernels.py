"""Single kernels: accuracy against float64, and the scalar twin's bits on every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import ISAS
from hypothesis import given
from hypothesis import strategies as st

from gpt2c import reference

if ISAS:
    from gpt2c import _engine

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not compiled")

EPS = float(np.finfo(np.float32).eps)
FUNCTIONS = ["exp", "gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu", "tanh"]
floats = st.floats(width=32)


def test_exp_is_within_one_ulp():
    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 100_001)])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(_engine.elementwise(ISAS[0], "exp", x) / exact - 1).max() <= EPS


def test_exp_at_its_ends():
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
def test_activations_are_within_rounding(function):
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    exact = reference.ACTIVATIONS[function](x.astype(np.float64))
    ours = _engine.elementwise(ISAS[0], function, x)
    # A product of x with a factor that is good to 4 ULP, or, for tanh, a value up to 1.
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
def test_elementwise_bits_equal_the_scalar_twins(x, function):
    bits = [_engine.elementwise(isa, function, x) for isa in ISAS]
    for other in bits[1:]:
        np.testing.assert_array_equal(bits[0], other)
        np.testing.assert_array_equal(np.signbit(bits[0]), np.signbit(other))


@given(
    row=st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=70),
    epsilon=st.sampled_from([0.0, 1e-5]),
)
def test_layer_norm_bits_equal_the_scalar_twins(row, epsilon):
    x, weight, bias = np.array(row, dtype=np.float32).T.copy()
    bits = [_engine.layer_norm(isa, x, weight, bias, epsilon) for isa in ISAS]
    for other in bits[1:]:
        np.testing.assert_array_equal(bits[0], other)


def test_layer_norm_is_right(isa):
    rng = np.random.default_rng(0)
    for n in (1, 2, 15, 16, 17, 100, 768):
        x, weight, bias = rng.standard_normal((3, n)).astype(np.float32)
        x += 3
        exact = reference.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), 1e-5)
        ours = _engine.layer_norm(isa, x, weight, bias, 1e-5)
        # The mean of values near 3 is good to some ULP of 3, and is subtracted from them.
        np.testing.assert_allclose(ours, exact, rtol=8 * EPS, atol=64 * EPS)
