"""The compiled engine: it is close to the oracle, and every way to call it gives the same bits."""

from __future__ import annotations

import ctypes
import json
import mmap
import platform

import numpy as np
import pytest
from conftest import FIXTURES, ISAS, cases, config_of, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import GPT2Config
from gpt2c.config import tensor_shapes
from gpt2c.errors import OptionError
from gpt2c.oracle.reference import gpt2
from gpt2c.weights import loading

pytestmark = needs_engine

# Shapes at, just below and just above multiples of vector widths, panels, blocks and pages.
configs = st.builds(
    lambda head_dim, n_head, **options: config_of(
        n_embd=head_dim * n_head, n_head=n_head, **options
    ),
    head_dim=st.sampled_from([1, 2, 3, 8, 15, 16, 17, 33]),
    n_head=st.integers(1, 5),
    vocab_size=st.sampled_from([1, 3, 16, 63, 64, 65, 130]),
    n_positions=st.sampled_from([1, 2, 63, 64, 65, 130]),
    n_layer=st.integers(0, 3),
    n_inner=st.one_of(st.none(), st.integers(1, 140)),
    activation_function=st.sampled_from(["gelu_new", "gelu", "relu", "silu", "quick_gelu", "tanh"]),
    scale_attn_weights=st.booleans(),
    scale_attn_by_inverse_layer_idx=st.booleans(),
    tie_word_embeddings=st.booleans(),
    layer_norm_epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
)


def ids_of(config: GPT2Config, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n)


@settings(max_examples=cases(150))
@given(config=configs, seed=st.integers(0, 2**32 - 1), isa=st.sampled_from(ISAS))
def test_logits_are_within_float32_error_of_the_oracle(config, seed, isa):
    weights = random_weights(config, seed)
    ids = ids_of(config, config.n_positions, seed)
    ours = model_on(isa, config, weights).logits(ids)
    double = {name: w.astype(np.float64) for name, w in weights.items()}
    steps = {}
    oracle = gpt2(ids, double, config, visit=steps.__setitem__)
    single = gpt2(ids, weights, config)
    # Allow 4 times the error of NumPy's own float32, plus 4 ULP for models so small that NumPy
    # happens to be exact. The ULP is that of the largest sum of magnitudes in a logit, because the
    # logit itself may be small when its terms cancel.
    head = double["wte.weight" if config.tie_word_embeddings else "lm_head.weight"]
    ulp = np.finfo(np.float32).eps * (np.abs(steps["ln_f"]) @ np.abs(head).T).max()
    allowed = 4 * np.abs(single - oracle).max() + 4 * ulp
    assert np.abs(ours - oracle).max() <= allowed


@settings(max_examples=cases(100))
@given(config=configs, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_same_bits_whole_in_chunks_token_by_token_and_on_every_isa(config, seed, data):
    weights = random_weights(config, seed)
    ids = ids_of(config, config.n_positions, seed)
    whole = model_on(ISAS[0], config, weights).logits(ids)
    for isa in ISAS:
        model = model_on(isa, config, weights)
        np.testing.assert_array_equal(whole, model.logits(ids))
        session, at = model.session(), 0
        while at < len(ids):
            n = data.draw(st.integers(1, len(ids) - at))
            every = data.draw(st.booleans())
            logits = session.feed(ids[at : at + n], all=every)
            at += n
            np.testing.assert_array_equal(logits, whole[at - n : at] if every else whole[at - 1])
        session = model.session()
        steps = np.stack([session.feed(int(token)) for token in ids])
        np.testing.assert_array_equal(whole, steps)


def test_same_bits_for_a_prompt_of_several_forward_calls():
    config = config_of(n_positions=600, n_embd=16, n_head=2)
    weights = random_weights(config)
    ids = ids_of(config, 600, 0)  # 600 rows are three calls of at most 256
    model = model_on(ISAS[-1], config, weights)
    session = model.session()
    steps = np.stack([session.feed(int(token)) for token in ids])
    np.testing.assert_array_equal(model.logits(ids), steps)


def test_same_bits_in_any_batch(isa):
    config = config_of(n_positions=150)
    model = model_on(isa, config, random_weights(config))
    prompts = [ids_of(config, n, n).tolist() for n in (1, 70, 3, 64, 65, 2, 128, 9, 30)]
    alone = [model.generate(p, max_new_tokens=20) for p in prompts]
    for batch_size in (1, 2, 5, 64):
        assert model.generate(prompts, max_new_tokens=20, batch_size=batch_size) == alone
    assert model.generate(prompts[::-1], max_new_tokens=20) == alone[::-1]
    # Generated ids are the argmax of logits recomputed without a cache.
    for prompt, new in zip(prompts, alone, strict=True):
        logits = model.logits([*prompt, *new])
        assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == new


@pytest.mark.parametrize("index", [0, 1])
def test_as_accurate_as_torch(index, isa):
    """The RMS error against float64 is at most that of torch's float32."""
    made = json.loads((FIXTURES / "transformers" / "precision.json").read_text())["models"][index]
    config = GPT2Config(**made["config"], eos_token_id=None, bos_token_id=None)
    rng = np.random.RandomState(made["seed"])
    weights = {}
    # The order and the legacy generator are those of tools/make_transformers_fixtures.py.
    names = {name: name for name in tensor_shapes(config)}
    for name in sorted(f"transformer.{name}" for name in names):
        name = name.removeprefix("transformer.")
        values = rng.standard_normal(tensor_shapes(config)[name]).astype(np.float32)
        scale = 0.2 if "ln_" in name else 0.08
        offset = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        weights[name] = (offset + np.float32(scale) * values).astype(np.float32)
    ids = rng.randint(0, config.vocab_size, config.n_positions)
    oracle = gpt2(ids, {name: w.astype(np.float64) for name, w in weights.items()}, config)
    # Check that this is the model that torch computed.
    assert np.sqrt(np.mean(oracle**2)) == pytest.approx(made["rms_of_logits"], rel=1e-6)
    error = model_on(isa, config, weights).logits(ids) - oracle
    assert len(ids) >= 1000
    assert np.sqrt(np.mean(error**2)) <= made["torch_rms_error"]


def test_nan_weights_give_nan_logits_and_not_a_crash(isa):
    config = config_of()
    weights = random_weights(config)
    weights["h.0.attn.c_attn.weight"][3, 5] = np.nan
    logits = model_on(isa, config, weights).logits([1, 2, 3])
    assert np.isnan(logits).all()


def test_huge_values_do_not_crash(isa):
    config = config_of()
    for value in (1e30, np.inf, -np.inf, 1e-42):
        weights = random_weights(config)
        weights["wpe.weight"][1] = value
        bits = [model_on(i, config, weights).logits([1, 2, 3]) for i in (ISAS[0], isa)]
        np.testing.assert_array_equal(*bits)


def test_the_core_and_python_agree_on_every_tensor():
    from gpt2c.engine import _engine

    for tied in (True, False):
        config = config_of(
            n_embd=6, n_head=2, vocab_size=5, n_positions=7, n_inner=11, tie_word_embeddings=tied
        )
        model = _engine.Model(config, ISAS[0], 1)
        shapes = tensor_shapes(config)
        for name, shape in shapes.items():
            n_rows, width = shape if len(shape) == 2 else (1, shape[0])
            model.load(name, np.zeros((n_rows, width), np.float32), 0)
            for wrong in ((n_rows + 1, width), (n_rows, width + 1)):
                with pytest.raises(OptionError, match=name):
                    model.load(name, np.zeros(wrong, np.float32), 0)
    model = _engine.Model(config_of(n_embd=6, n_head=2, tie_word_embeddings=True), ISAS[0], 1)
    with pytest.raises(OptionError, match="lm_head"):
        model.load("lm_head.weight", np.zeros((1, 6), np.float32), 0)


def test_same_bits_for_weights_loaded_in_any_chunks(isa, monkeypatch):
    """Chunks of rows begin and end within panels, so several chunks fill one panel."""
    config = config_of(vocab_size=200, tie_word_embeddings=False)
    weights = random_weights(config)
    expected = model_on(isa, config, weights).logits([1, 2, 3])
    for n_rows in (1, 7, 64, 100):
        monkeypatch.setattr(loading, "CHUNK_BYTES", n_rows * 4 * config.n_embd)
        np.testing.assert_array_equal(model_on(isa, config, weights).logits([1, 2, 3]), expected)


def panels_of(matrix: np.ndarray) -> np.ndarray:
    """A matrix [k, n] as panels of 32 columns, [ceil(n / 32), k, 32], with zeros beyond n."""
    k, n = matrix.shape
    padded = np.pad(matrix, [(0, 0), (0, -n % 32)])
    return np.moveaxis(padded.reshape(k, -1, 32), 0, 1)


@pytest.mark.parametrize("n_rows", [1, 31, 32, 45, 200])
def test_float32_weights_are_packed_into_panels(n_rows, isa, monkeypatch):
    """Chunks fill whole panels and parts of panels, on two threads."""
    config = config_of(vocab_size=150, n_embd=72, n_head=2, n_inner=67)
    weights = random_weights(config)
    monkeypatch.setattr(loading, "CHUNK_BYTES", n_rows * 4 * config.n_embd)
    model = model_on(isa, config, weights, threads=2)
    for name, weight in weights.items():
        if weight.ndim == 2 and name != "wpe.weight":
            panels = panels_of(weight.T if name == "wte.weight" else weight)
            packed = model._engine.packed(name).view(np.float32)
            np.testing.assert_array_equal(packed, panels.reshape(-1), name)


@pytest.fixture
def set_mxcsr():
    """A function that sets this thread's MXCSR register and returns its old value."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only x86 has MXCSR")
    # stmxcsr [rsi]; ldmxcsr [rdi]; ret
    code = bytes([0x0F, 0xAE, 0x1E, 0x0F, 0xAE, 0x17, 0xC3])
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    pointer = ctypes.POINTER(ctypes.c_uint32)
    function = ctypes.CFUNCTYPE(None, pointer, pointer)(address)

    def set_to(value: int) -> int:
        old = ctypes.c_uint32()
        function(ctypes.byref(ctypes.c_uint32(value)), ctypes.byref(old))
        return old.value

    before = set_to(0x1F80)
    set_to(before)
    yield set_to
    set_to(before)


def test_the_callers_floating_point_environment_has_no_effect(isa, set_mxcsr):
    config = config_of(n_layer=0, tie_word_embeddings=False)
    weights = random_weights(config)
    weights["ln_f.weight"] *= np.float32(1e-20)
    weights["ln_f.bias"] *= np.float32(1e-20)
    weights["lm_head.weight"] *= np.float32(1e-20)  # the logits, about 1e-41, are denormal
    model = model_on(isa, config, weights)
    expected = model.logits([1, 2, 3])
    min_normal = float(np.finfo(np.float32).tiny)
    bits = expected.view(np.uint32) & 0x7FFFFFFF  # compare bits: NumPy may flush denormals to zero
    assert (bits > 0).any()
    assert (bits < np.float32(min_normal).view(np.uint32)).all()
    flush_and_round_down = 0x1F80 | 0x8000 | 0x0040 | 0x2000
    before = set_mxcsr(flush_and_round_down)
    logits = model.logits([1, 2, 3])
    ids = model.generate([1, 2, 3], max_new_tokens=5)
    after = set_mxcsr(before)
    np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))
    assert ids == model.generate([1, 2, 3], max_new_tokens=5)
    # The caller's setting is restored; the low six bits are sticky exception flags.
    assert after & ~0x3F == flush_and_round_down


def test_the_floating_point_environment_left_by_an_edit_has_no_effect(isa, set_mxcsr):
    config = config_of(n_layer=0, tie_word_embeddings=False)
    weights = random_weights(config)
    weights["lm_head.weight"] *= np.float32(1e-39)
    model = model_on(isa, config, weights)

    def flush_to_zero(value):
        set_mxcsr(0x1F80 | 0x8000 | 0x0040)
        return value

    seen = model.forward([1, 2, 3], capture="logits", edit={"ln_f": flush_to_zero})["logits"]
    bits = seen.view(np.uint32)
    assert (bits & 0x7FFFFFFF > 0).all()
    np.testing.assert_array_equal(bits, model.logits([1, 2, 3]).view(np.uint32))


def test_pages_of_one_model_are_not_reused_for_a_wider_one(isa):
    narrow, wide = (config_of(n_embd=n_embd, n_head=2) for n_embd in (8, 512))
    wide_model = model_on(isa, wide, random_weights(wide))
    narrow_model = model_on(isa, narrow, random_weights(narrow))
    ids = list(range(30))
    expected = wide_model.logits(ids)
    model_on(isa, narrow, random_weights(narrow)).close()  # frees all kept pages
    narrow_model.logits(ids)  # its page, 1/64 as large, is free when the wide model needs one
    np.testing.assert_array_equal(wide_model.logits(ids), expected)
