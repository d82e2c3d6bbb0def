"""Quantised rows, weights and models: the defined arithmetic, and equal bits everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from conftest import ISAS, cases, config_of, model_on, needs_engine, random_weights
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_engine import configs, ids_of

from gpt2c import GPT2, OptionError
from gpt2c.cli.main import main
from gpt2c.errors import CheckpointError
from gpt2c.oracle.reference import gpt2
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights import loading
from gpt2c.weights.checkpoint import from_arrays
from gpt2c.weights.checkpoint.quantized import metadata

if ISAS:
    from gpt2c.engine import _engine

pytestmark = needs_engine

GROUP, PANEL = 32, 32
DTYPES = ["int8", "int4"]
MAGNITUDES = [0.0, 1e-45, 1e-39, 1e-20, 0.02, 1.0, 1e20, 3e38]


def uint32_of(x):
    return np.asarray(x, dtype=np.float32).view(np.uint32)


def bfloat16(x):
    """Round to the nearest bfloat16, ties to even."""
    bits = uint32_of(x).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


# ---- rows ----


@settings(max_examples=cases(150))
@given(
    n_rows=st.integers(1, 5),
    k=st.integers(1, 100),
    magnitude=st.sampled_from(MAGNITUDES),
    bad=st.sampled_from([None, np.inf, -np.inf, np.nan]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_quantised_as_defined(n_rows, k, magnitude, bad, seed):
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-1, 1, (n_rows, k)) * magnitude).astype(np.float32)
    if bad is not None:
        x[seed % n_rows, seed % k] = bad
    n_groups = -(-k // GROUP)
    padded = np.zeros((n_rows, n_groups * GROUP), dtype=np.float32)
    padded[:, :k] = x
    groups = padded.reshape(n_rows, n_groups, GROUP).transpose(1, 0, 2)
    with np.errstate(all="ignore"):
        scales = np.abs(groups).max(axis=-1) / np.float32(127)
        is_number = np.isfinite(groups).all(axis=-1)
        is_used = is_number & (scales >= np.finfo(np.float32).tiny)
        factor = np.float32(1) / np.where(is_used, scales, np.float32(1))
        values = np.where(is_used[..., None], np.rint(groups * factor[..., None]), 0)
    scales = np.where(is_number, np.where(is_used, scales, 0), np.nan)
    for isa in ISAS:
        ours = _engine.quantize_rows(isa, x)
        np.testing.assert_array_equal(ours[0], values)
        np.testing.assert_array_equal(ours[1], scales)
        np.testing.assert_array_equal(ours[2], -values.sum(axis=-1))


# ---- weights ----


def int8_of(block):
    """Unpack a block: values [GROUP, PANEL], zero points [PANEL] and scales [PANEL]."""
    values = block[: GROUP * PANEL].reshape(GROUP // 4, PANEL, 4).transpose(0, 2, 1)
    words = block[GROUP * PANEL :].view("<u2").astype(np.uint32)
    zero = np.full(PANEL, 128)
    return values.reshape(GROUP, PANEL).astype(int), zero, (words << 16).view(np.float32)


def int4_of(block):
    packed = block[: GROUP // 2 * PANEL].reshape(GROUP // 8, PANEL, 4).transpose(0, 2, 1)
    packed = packed.reshape(GROUP // 2, PANEL)
    words = block[GROUP // 2 * PANEL :].view("<u2").astype(np.uint32)
    scale = (((words & 0xFFF0) << 14) + (32 << 23)).astype(np.uint32).view(np.float32)
    return np.concatenate([packed & 15, packed >> 4]).astype(int), (words & 15).astype(int), scale


def dequantized_block(block):
    values, zero, scale = (int8_of if len(block) > 1000 else int4_of)(block)
    return ((values - zero) * scale.astype(np.float64)).astype(np.float32)


def weights_of(seed, magnitude=0.1):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((GROUP, PANEL)) * magnitude
    weights[:, seed % PANEL] = 0
    return np.clip(weights, -3e38, 3e38).astype(np.float32)


@settings(max_examples=cases(100))
@given(seed=st.integers(0, 2**32 - 1), magnitude=st.sampled_from(MAGNITUDES))
@example(seed=4532, magnitude=0.02)  # 65.49999 + 128 is 193.5 in float32
def test_int8_blocks_are_as_defined(seed, magnitude):
    weights = weights_of(seed, magnitude)
    with np.errstate(all="ignore"):
        scale = bfloat16(np.abs(weights).max(axis=0) / np.float32(127))
        ratio = np.where(scale > 0, weights / np.where(scale > 0, scale, 1), 0)
        values = np.rint(np.clip(ratio, -127, 127).astype(np.float32) + np.float32(128))
    for isa in ISAS:
        ours, _, ours_scale = int8_of(_engine.quantize_block(isa, 8, weights))
        np.testing.assert_array_equal(ours_scale, scale)
        np.testing.assert_array_equal(ours, values)


@settings(max_examples=cases(100))
@given(
    seed=st.integers(0, 2**32 - 1),
    magnitude=st.sampled_from(MAGNITUDES),
    candidates=st.sampled_from([1, 2, 16]),
)
def test_int4_blocks_are_the_same_everywhere(seed, magnitude, candidates):
    weights = weights_of(seed, magnitude)
    blocks = [_engine.quantize_block(isa, 4, weights, candidates) for isa in ISAS]
    for block in blocks[1:]:
        np.testing.assert_array_equal(block, blocks[0])
    values, zero, scale = int4_of(blocks[0])
    assert (values[:, seed % PANEL] == zero[seed % PANEL]).all()  # a zero weight stays exactly zero
    assert np.isfinite(scale).all()


def squared_error(weights, block):
    return ((weights - dequantized_block(block)).astype(np.float64) ** 2).sum(axis=0)


def test_int4_scales_are_searched():
    found, plain, unrounded = 0.0, 0.0, 0.0
    for seed in range(50):
        weights = weights_of(seed)
        best = squared_error(weights, _engine.quantize_block(ISAS[-1], 4, weights, 16))
        first = squared_error(weights, _engine.quantize_block(ISAS[-1], 4, weights, 1))
        found, plain = found + best.sum(), plain + first.sum()
        # Compare with scale = range / 15, which is not rounded to a scale that a block can store.
        low, high = np.minimum(weights.min(axis=0), 0), np.maximum(weights.max(axis=0), 0)
        scale = np.where(high > low, (high - low) / 15, 1)
        zero = np.rint(-low / scale)
        values = np.clip(np.rint(weights / scale) + zero, 0, 15)
        unrounded += ((weights - (values - zero) * scale) ** 2).sum()
    assert found < 0.97 * plain
    assert found < 0.97 * unrounded


def test_int4_weights_are_not_shrunk():
    """Least squares alone would shrink weights: error . weights would equal error . error."""
    square = error = along = 0.0
    for seed in range(50):
        weights = weights_of(seed).astype(np.float64)
        block = _engine.quantize_block(ISAS[-1], 4, weights.astype(np.float32), 16)
        values = dequantized_block(block)
        square += (weights**2).sum()
        error += ((weights - values) ** 2).sum()
        along += (weights * (weights - values)).sum()
    assert abs(along / square) < 0.5 * error / square


def test_int4_keeps_representable_weights():
    """Weights (q - zero) * scale are kept exactly: q in 0..15, scale with a 5-bit mantissa."""
    rng = np.random.default_rng(0)
    zero = rng.integers(0, 16, PANEL)
    values = rng.integers(0, 16, (GROUP, PANEL))
    values[0], values[1] = 0, 15
    scale = (1 + rng.integers(0, 32, PANEL) / 32) * 2.0 ** rng.integers(-20, 5, PANEL)
    weights = ((values - zero) * scale).astype(np.float32)
    for candidates in (1, 16):
        block = _engine.quantize_block(ISAS[0], 4, weights, candidates)
        np.testing.assert_array_equal(dequantized_block(block), weights)


# ---- products ----


def few_bits(rng, shape):
    """Return scales whose products and sums are exact in float64, so only float32 rounds."""
    return (rng.integers(1, 64, shape) / 1024).astype(np.float32)


@settings(max_examples=cases(60))
@given(
    n_rows=st.sampled_from([1, 2, 7, 31, 32, 129]),
    n_groups=st.integers(1, 4),
    n=st.sampled_from([1, 31, 32, 33, 70]),
    bits=st.sampled_from([8, 4]),
    extremes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_integer_products_follow_the_defined_arithmetic(n_rows, n_groups, n, bits, extremes, seed):
    rng = np.random.default_rng(seed)
    n_panels = -(-n // PANEL)
    levels = np.array([-127, 127]) if extremes else np.arange(-127, 128)
    values = rng.choice(levels, (n_groups, n_rows, GROUP)).astype(np.int8)
    scales = few_bits(rng, (n_groups, n_rows))
    rows = values, scales, -values.sum(axis=-1, dtype=np.int32)
    size = GROUP * PANEL if bits == 8 else GROUP * PANEL // 2
    kinds = [0, 1, 255] if extremes else np.arange(256)
    panels = np.empty((n_panels, n_groups, size + 2 * PANEL), dtype=np.uint8)
    panels[..., :size] = rng.choice(kinds, (n_panels, n_groups, size))
    if bits == 8:
        words = uint32_of(bfloat16(few_bits(rng, (n_panels, n_groups, PANEL)))) >> 16
    else:
        exponents = rng.integers(85, 95, (n_panels, n_groups, PANEL))
        words = exponents << 9 | rng.integers(0, 512, exponents.shape)
    panels[..., size:] = words.astype("<u2").view(np.uint8)
    expected = np.zeros((n_rows, n_panels * PANEL), dtype=np.float32)
    for panel in range(n_panels):
        columns = slice(panel * PANEL, (panel + 1) * PANEL)
        for group in range(n_groups):
            weights, zero, scale = (int8_of if bits == 8 else int4_of)(panels[panel, group])
            sums = values[group].astype(int) @ (weights - zero)
            scale_product = scales[group][:, None] * scale  # rounded to float32
            added = expected[:, columns] + sums * scale_product.astype(np.float64)
            expected[:, columns] = added.astype(np.float32)
    for isa in ISAS:
        ours = _engine.integer_matmul(isa, bits, rows, panels, n)
        np.testing.assert_array_equal(ours, expected[:, :n])
        for activation in (None, "gelu_tanh"):
            floats = _engine.integer_matmul(isa, bits, rows, panels, n, activation)
            separate = _engine.quantize_rows(isa, floats)
            fused = _engine.integer_matmul(isa, bits, rows, panels, n, activation, True)
            for found, wanted in zip(fused, separate, strict=True):
                np.testing.assert_array_equal(found, wanted)


@settings(max_examples=cases(60))
@given(
    n=st.integers(1, 5) | st.integers(1, 64),
    head_dim=st.integers(1, 70),
    is_bfloat16=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_keys_and_values_are_stored_in_the_page_layout(n, head_dim, is_bfloat16, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((2, n, head_dim), dtype=np.float32)
    rows[rng.random(rows.shape) < 0.2] = np.float32(1 + 2**-8)  # a bfloat16 tie
    rows[rng.random(rows.shape) < 0.05] = np.nan
    rows[rng.random(rows.shape) < 0.05] = np.inf
    for isa in ISAS:
        keys, values = _engine.store(isa, *rows, is_bfloat16)
        assert not keys[:, n:].any()
        assert not values[n:].any()
        for stored, row in ((keys[:, :n].T, rows[0]), (values[:n], rows[1])):
            if is_bfloat16:
                stored = (stored.astype(np.uint32) << 16).view(np.float32)
                row = bfloat16(row)
            np.testing.assert_array_equal(stored, row)


# ---- models ----


def dequantized(model, config):
    """Read the dequantised weights from a quantised model."""
    sources = loading.loaded_checkpoint(model._engine, config).tensors
    return {name: source.read(0, source.shape[0]) for name, source in sources.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_read_back_equal_their_blocks(dtype):
    config = config_of(n_embd=72, n_inner=50, tie_word_embeddings=False)
    weights = random_weights(config)
    model = model_on(ISAS[-1], config, weights, dtype=dtype)
    read = dequantized(model, config)
    for name, weight in weights.items():
        if weight.ndim == 1 or name == "wpe.weight":
            np.testing.assert_array_equal(read[name], weight)
            continue
        is_embedding = name in ("wte.weight", "lm_head.weight")
        bits = 8 if dtype == "int8" or is_embedding else 4
        columns = weight.T if is_embedding else weight  # [k, n]
        k, n = columns.shape
        tile = np.zeros((-(-k // GROUP) * GROUP, -(-n // PANEL) * PANEL), dtype=np.float32)
        tile[:k, :n] = columns
        expected = np.empty_like(tile)
        for i in range(0, tile.shape[0], GROUP):
            for j in range(0, tile.shape[1], PANEL):
                part = np.ascontiguousarray(tile[i : i + GROUP, j : j + PANEL])
                block = _engine.quantize_block(ISAS[0], bits, part)
                expected[i : i + GROUP, j : j + PANEL] = dequantized_block(block)
        expected = expected[:k, :n]
        np.testing.assert_array_equal(read[name], expected.T if is_embedding else expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"n_inner": 50}, {"tie_word_embeddings": False}])
def test_logits_are_close_to_those_of_dequantised_weights(dtype, options):
    """Only 8-bit rows and the bfloat16 cache add errors; the oracle has the dequantised weights."""
    config = config_of(n_embd=96, n_positions=130, vocab_size=100, **options)
    ids = ids_of(config, config.n_positions, 0)
    model = model_on(ISAS[-1], config, random_weights(config), dtype=dtype)
    double = {n: w.astype(np.float64) for n, w in dequantized(model, config).items()}
    oracle = gpt2(ids, double, config)
    error = model.logits(ids) - oracle
    # Rounding a row adds an error of at most 1/254 of the maximum of 32 values, about 0.5 %. The
    # bfloat16 cache adds as much. Through the ten products of two blocks the total is below 10 %.
    assert np.sqrt((error**2).mean()) < 0.1 * np.sqrt((oracle**2).mean())


@settings(max_examples=cases(40))
@given(
    config=configs, seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES), data=st.data()
)
def test_same_bits_whole_in_chunks_token_by_token_and_on_every_isa(config, seed, dtype, data):
    weights = random_weights(config, seed)
    ids = ids_of(config, config.n_positions, seed)
    whole = model_on(ISAS[0], config, weights, dtype=dtype).logits(ids)
    for isa in ISAS:
        model = model_on(isa, config, weights, dtype=dtype, threads=data.draw(st.integers(1, 3)))
        np.testing.assert_array_equal(whole, model.logits(ids))
        session, at = model.session(), 0
        while at < len(ids):
            n = data.draw(st.integers(1, len(ids) - at))
            logits = session.feed(ids[at : at + n], all=True)
            np.testing.assert_array_equal(logits, whole[at : at + n])
            at += n
        session = model.session()
        steps = np.stack([session.feed(int(token)) for token in ids])
        np.testing.assert_array_equal(whole, steps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_in_any_batch(any_isa, dtype):
    config = config_of(n_positions=150)
    model = model_on(any_isa, config, random_weights(config), dtype=dtype)
    prompts = [ids_of(config, n, n).tolist() for n in (1, 70, 3, 64, 65, 2, 128, 9, 30)]
    options = {"max_new_tokens": 20, "temperature": 1.5, "seed": 3, "logprobs": 2}
    alone = [model.complete(p, **options) for p in prompts]
    for batch_size in (2, 5, 64):
        together = model.complete(prompts, batch_size=batch_size, **options)
        assert [(c.ids, c.logprobs) for c in together] == [(c.ids, c.logprobs) for c in alone]


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_gives_nan_logits(any_isa, dtype):
    config = config_of()
    weights = random_weights(config)
    # The sum of these two overflows at position 1.
    weights["wpe.weight"][1, 3] = weights["h.0.attn.c_proj.bias"][3] = 3e38
    logits = model_on(any_isa, config, weights, dtype=dtype).logits([1, 2, 3])
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_weights_are_not_quantised(dtype):
    config = config_of()
    weights = random_weights(config)
    weights["h.0.mlp.c_fc.weight"][5, 7] = np.nan
    with pytest.raises(CheckpointError, match=r"h\.0\.mlp\.c_fc\.weight.*nan in row 5"):
        model_on(ISAS[-1], config, weights, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_refuses_quantised_dtypes(dtype):
    config = config_of()
    checkpoint = from_arrays(config, random_weights(config))
    with pytest.raises(OptionError, match=rf"dtype is '{dtype}'.*compiled engine"):
        GPT2(checkpoint, MissingTokenizer("a test"), dtype=dtype, backend="numpy")


# ---- files ----


@pytest.fixture
def folder(tmp_path):
    """A random model in Hugging Face's format."""
    config = config_of(n_embd=72, n_inner=50, tie_word_embeddings=False)
    model_on(ISAS[-1], config, random_weights(config)).save_pretrained(tmp_path / "float32")
    return tmp_path


def load(folder, **options):
    return GPT2.from_pretrained(folder, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantized_file_gives_the_same_model(folder, dtype):
    model = load(folder / "float32", dtype=dtype)
    assert main(["quantize", "--dtype", dtype, *map(str, (folder / "float32", folder / "q"))]) == 0
    assert sorted(p.name for p in (folder / "q").iterdir()) == ["config.json", "gpt2c.safetensors"]
    for path in (folder / "q", folder / "q" / "gpt2c.safetensors"):
        again = load(path)
        assert again.dtype == model.dtype == dtype
        np.testing.assert_array_equal(again.logits([1, 2, 3]), model.logits([1, 2, 3]))
    again.save_pretrained(folder / "again")
    written = [(folder / f / "gpt2c.safetensors").read_bytes() for f in ("q", "again")]
    assert written[0] == written[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantized_file_in_other_dtypes(folder, dtype, monkeypatch):
    """The dequantised weights equal those of the quantised model on every backend."""
    model = load(folder / "float32", dtype=dtype)
    model.save_pretrained(folder / "q")
    expected = dequantized(model, model.config)
    wide = load(folder / "q", dtype="float32")
    for name, weight in dequantized(wide, model.config).items():
        np.testing.assert_array_equal(weight, expected[name])
    on_numpy = load(folder / "q", backend="numpy")
    assert (wide.dtype, on_numpy.dtype) == ("float32", "float32")
    np.testing.assert_allclose(on_numpy.logits([1, 2]), wide.logits([1, 2]), rtol=1e-4, atol=1e-4)
    other = "int4" if dtype == "int8" else "int8"
    assert load(folder / "q", dtype=other).dtype == other
    assert main(["convert", *map(str, (folder / "q", folder / "wide"))]) == 0
    np.testing.assert_array_equal(load(folder / "wide").logits([1, 2]), wide.logits([1, 2]))
    monkeypatch.setattr(loading, "CHUNK_BYTES", 1)  # reads one group or panel at a time
    again = load(folder / "q", dtype="float32")
    np.testing.assert_array_equal(again.logits([1, 2]), wide.logits([1, 2]))
    np.testing.assert_array_equal(load(folder / "q").logits([1, 2]), model.logits([1, 2]))


def test_a_quantized_file_is_not_saved_beside_other_weights(folder):
    model = load(folder / "float32", dtype="int8")
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors, which would be loaded"):
        model.save_pretrained(folder / "float32")
    assert not (folder / "float32" / "gpt2c.safetensors").exists()


def rewrite(folder, change):
    """Rewrite the file in `folder`; `change` edits its tensors and metadata."""
    path = folder / "gpt2c.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    values = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = {name: array.copy() for name, array in safetensors.numpy.load_file(path).items()}
    change(tensors, values)
    safetensors.numpy.save_file(tensors, path, metadata=values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.update(gpt2c=m["gpt2c"][:-1] + "2"), "found the layout.*expected"),
        (lambda t, m: m.update(metadata("int4")), "found U8 .*expected U8"),
        (lambda t, m: m.update(more="x"), "found the layout"),
        (lambda t, m: t.pop("wte.weight"), "missing tensors: 'wte.weight'"),
        (lambda t, m: t.update(x=np.zeros(3, dtype=np.uint8)), "unexpected tensors: 'x'"),
        (
            lambda t, m: t.update({"wte.weight": t["wte.weight"][:, :1].copy()}),
            r"'wte\.weight'.*found U8 \[2, 1, 1088\], expected U8 \[2, 3, 1088\]",
        ),
        (
            lambda t, m: t.update({"wte.weight": t["wte.weight"].view(np.int8)}),
            r"'wte\.weight'.*found I8",
        ),
        (
            lambda t, m: t.update({"ln_f.weight": t["ln_f.weight"].astype(np.uint8)}),
            r"'ln_f\.weight'.*found dtype U8",
        ),
        (
            lambda t, m: t["ln_f.weight"].__setitem__(3, np.nan),
            r"'ln_f\.weight': found nan in row 3",
        ),
        *[
            (
                lambda t, m, word=word: (
                    t["h.1.mlp.c_fc.weight"][0, 1, 1024:].view("<u2").fill(word)
                ),
                r"'h\.1\.mlp\.c_fc\.weight'.*not positive and finite",
            )
            for word in (0x7F80, 0x7FC0, 0x8000, 0xBF80)
        ],
    ],
)
def test_a_quantized_file_is_checked(folder, change, message):
    load(folder / "float32", dtype="int8").save_pretrained(folder / "q")
    rewrite(folder / "q", change)
    for options in ({}, {"dtype": "float32"}, {"backend": "numpy"}):
        with pytest.raises(CheckpointError, match=message) as error:
            load(folder / "q", **options)
        assert "gpt2c.safetensors" in str(error.value)


def test_a_truncated_quantized_file(folder):
    load(folder / "float32", dtype="int4").save_pretrained(folder / "q")
    path = folder / "q" / "gpt2c.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cut short"):
        load(folder / "q")
