"""Matrices whose weights all fit in 16 bits are stored in 16 bits, with the bits of float32."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import (
    BACKENDS,
    FLOAT_ISAS,
    ISAS,
    assert_arrays_equal,
    cases,
    config_of,
    model_on,
    needs_engine,
    random_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.config import tensor_shapes
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights import loading, sixteen_bits
from gpt2c.weights.checkpoint import Checkpoint, from_arrays
from gpt2c.weights.checkpoint.arrays import ArraySource
from gpt2c.weights.checkpoint.shared.views import transposed

if ISAS:
    from gpt2c.engine import _engine

NARROW = ["float16", "bfloat16"]
PANEL = 32
ALL_BITS = np.arange(2**16, dtype=np.uint16)


def widened(bits, dtype):
    """Return the values of float16 or bfloat16 bits, by NumPy."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        return bits.view(np.float16).astype(np.float32)


def rounded(x, dtype):
    """Return values near x that fit in a dtype."""
    if dtype == "bfloat16":
        return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return x.astype(np.float16).astype(np.float32)


def wide(monkeypatch, make):
    """Return make(), with all matrices of the model in float32."""
    with monkeypatch.context() as patch:
        patch.setattr(loading, "dtypes_to_try", lambda checkpoint: {})
        return make()


def same_bits(a, b):
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


# ---- kernels ----


@needs_engine
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("isa", FLOAT_ISAS)
def test_every_value_of_16_bits_is_widened_and_narrowed_exactly(isa, dtype):
    expected = widened(ALL_BITS, dtype)
    found = _engine.widen(isa, ALL_BITS, dtype)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    rows = np.where(np.isnan(expected), np.float32(0), expected).reshape(-1, PANEL)
    bits, fits = _engine.narrow(isa, rows, dtype)
    assert fits
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(bits.ravel()[~is_nan], ALL_BITS[~is_nan])


UNFIT = {
    "float16": [
        1 + 2**-11, -1 - 2**-12, 65520.0, 65536.0, 1e30, 2.0**-25, 3 * 2.0**-25, 1e-45, np.nan,
    ],
    "bfloat16": [1 + 2**-8, -1 - 2**-23, 1e-45, 3.0000002, float(np.float16(0.1))],
}  # fmt: skip


@needs_engine
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("isa", FLOAT_ISAS)
def test_a_value_that_does_not_fit_is_found_in_every_place(isa, dtype):
    for value in UNFIT[dtype]:
        for n_columns in (1, 5, 16, 31, 32):
            for column in {0, n_columns // 2, n_columns - 1}:
                rows = np.full((3, n_columns), 0.5, dtype=np.float32)
                assert _engine.narrow(isa, rows, dtype)[1]
                rows[2, column] = value
                assert not _engine.narrow(isa, rows, dtype)[1]


@needs_engine
@settings(max_examples=cases(150))
@given(
    n_rows=st.integers(1, 60),
    k=st.one_of(st.integers(1, 200), st.sampled_from([63, 64, 65, 128])),
    n=st.one_of(st.integers(1, 140), st.sampled_from([31, 32, 33, 64])),
    dtype=st.sampled_from(NARROW),
    scale=st.sampled_from([1.0, 1e-5, 1e4]),  # 1e-5: among float16's subnormals
    seed=st.integers(0, 2**32 - 1),
)
def test_products_have_the_bits_of_float32_weights(n_rows, k, n, dtype, scale, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, k)).astype(np.float32)
    weight = rounded((scale * rng.standard_normal((k, n))).astype(np.float32), dtype)
    bias = rng.standard_normal(n).astype(np.float32)
    expected = _engine.matmul(ISAS[0], x, weight, bias, None, "gelu_tanh")
    for isa in FLOAT_ISAS:
        same_bits(_engine.matmul(isa, x, weight, bias, None, "gelu_tanh", dtype), expected)


# ---- models ----

CONFIG = config_of(
    vocab_size=70, n_positions=60, n_embd=36, n_layer=3, n_head=3, tie_word_embeddings=False
)
# How the matrices of `mixed_weights` are stored; the others are float32.
EXPECTED = {
    "wte.weight": "float16",
    "lm_head.weight": "bfloat16",
    "h.0.attn.c_attn.weight": "float16",
    "h.0.mlp.c_fc.weight": "bfloat16",
    "h.1.attn.c_proj.weight": "bfloat16",
    "h.1.mlp.c_proj.weight": "float16",
    **{f"h.2.{name}.weight": "float16" for name in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")},
}


def mixed_weights():
    weights = random_weights(CONFIG)
    for name, dtype in EXPECTED.items():
        weights[name] = rounded(weights[name], dtype)
    # Subnormals of float16, and its largest value.
    weights["h.2.mlp.c_fc.weight"] = rounded(3e-4 * weights["h.2.mlp.c_fc.weight"], "float16")
    weights["h.2.mlp.c_proj.weight"][3, 5] = 65504
    return weights


def is_matrix(name, shape):
    return len(shape) == 2 and name != "wpe.weight"


@needs_engine
@pytest.mark.parametrize("isa", FLOAT_ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_mixed_model_has_the_bits_of_float32(monkeypatch, isa, threads):
    weights = mixed_weights()
    ours = model_on(isa, CONFIG, weights, threads=threads)
    plain = wide(monkeypatch, lambda: model_on("scalar", CONFIG, weights))
    for name, shape in tensor_shapes(CONFIG).items():
        assert ours.stored_dtype(name) == EXPECTED.get(name, "float32"), name
        assert plain.stored_dtype(name) == "float32"
        same_bits(ours.weight(name), plain.weight(name))
        assert ours.weight(name).shape == shape
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, CONFIG.n_positions)
    expected = plain.logits(ids)
    same_bits(ours.logits(ids), expected)
    session = ours.session()
    at = 0
    for n in (1, 1, 2, 3, 7, 8, 9, 15, 14):  # rows of one pass
        same_bits(session.feed(ids[at : at + n], all=True), expected[at : at + n])
        at += n
    assert at == len(ids)


@needs_engine
@pytest.mark.parametrize("isa", FLOAT_ISAS)
def test_drafts_have_the_same_source(monkeypatch, isa):
    """The 4-bit copy of a narrow model is that of a wide one, so it accepts as many drafts."""
    config = config_of(vocab_size=300, n_embd=64, n_head=2, n_positions=200)
    weights = {name: rounded(w, "float16") for name, w in random_weights(config).items()}
    narrow = model_on(isa, config, weights)
    plain = wide(monkeypatch, lambda: model_on(isa, config, weights))
    options = {"max_new_tokens": 150, "draft": "packing", "num_assistant_tokens": 4, "seed": 2}
    for do_sample in (False, True):
        a = narrow.complete([1, 2, 3], do_sample=do_sample, **options)
        b = plain.complete([1, 2, 3], do_sample=do_sample, **options)
        assert (a.ids, a.drafted, a.accepted) == (b.ids, b.drafted, b.accepted)
        assert a.drafted


@needs_engine
@pytest.mark.parametrize("name", ["wte.weight", "h.1.mlp.c_proj.weight"])
@pytest.mark.parametrize("dtype", NARROW)
def test_one_last_weight_decides(monkeypatch, name, dtype):
    """One weight that does not fit makes its matrix float32, in dtype and in memory."""
    config = config_of(n_embd=64, n_head=2, vocab_size=70)  # chunks below make several pieces
    monkeypatch.setattr(loading, "CHUNK_BYTES", 4 * 64 * 8)
    weights = {n: rounded(w, dtype) for n, w in random_weights(config).items()}
    all_narrow = model_on(ISAS[-1], config, weights, threads=3)
    weights[name][-1, -1] = 1 + 2**-20
    ours = model_on(ISAS[-1], config, weights, threads=3)
    plain = wide(monkeypatch, lambda: model_on(ISAS[-1], config, weights))
    stored = {n: ours.stored_dtype(n) for n, s in tensor_shapes(config).items() if is_matrix(n, s)}
    assert stored.pop(name) == "float32"
    assert set(stored.values()) == {dtype}
    n_padded = -(-70 // PANEL) * PANEL if name == "wte.weight" else 64
    k = 64 if name == "wte.weight" else 256
    assert ours.n_bytes == all_narrow.n_bytes + 2 * k * n_padded
    ids = list(range(40))
    same_bits(ours.logits(ids), plain.logits(ids))
    for n in tensor_shapes(config):
        same_bits(ours.weight(n), plain.weight(n))
    ours.close()
    assert ours.n_bytes == 0


@needs_engine
@needs_engine
def test_a_source_that_reads_whole_keeps_no_array_of_an_unfit_matrix(monkeypatch):
    monkeypatch.setattr(loading, "CHUNK_BYTES", 4096)  # several pieces for a matrix
    config = config_of(n_embd=64, n_head=4)
    tensors = dict(from_arrays(config, random_weights(config)).tensors)
    values = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    values[0] = 0  # the sample fits
    made = []

    class Counted(ArraySource):
        def read(self, begin, end):
            made.append((begin, end))
            return super().read(begin, end)

    source = transposed(Counted("h.0.mlp.c_fc.weight", values))
    tensors["h.0.mlp.c_fc.weight"] = source
    for threads in (1, 3):
        model = loading.load_engine(Checkpoint(config, tensors), "float32", "c", threads)
        assert model.stored_dtype("h.0.mlp.c_fc.weight") == "float32"
        assert made
        assert source._array is None


def test_a_matrix_that_begins_with_zeros_gets_another_try():
    weights = random_weights(CONFIG)
    name = "h.0.attn.c_attn.weight"
    weights[name] = rounded(weights[name], "float16")
    weights[name][0] = 0  # which fits in bfloat16 too
    model = model_on(ISAS[-1], CONFIG, weights)
    assert model.stored_dtype(name) == "float16"
    same_bits(model.weight(name), weights[name])


@needs_engine
@pytest.mark.parametrize("dtype", NARROW)
def test_half_the_memory(monkeypatch, dtype):
    config = config_of(n_embd=128, n_head=2, vocab_size=500)
    weights = {n: rounded(w, dtype) for n, w in random_weights(config).items()}
    narrow = model_on(ISAS[-1], config, weights)
    plain = wide(monkeypatch, lambda: model_on(ISAS[-1], config, weights))
    matrices = (
        sum(
            4 * w.shape[0] * w.shape[1]
            for n, w in weights.items()
            if is_matrix(n, w.shape) and n != "wte.weight"
        )
        + 4 * 128 * 512
    )  # wte's panels are padded to 512 columns
    assert plain.n_bytes - narrow.n_bytes == matrices // 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_in_memory_stay_what_they_are(backend):
    weights = mixed_weights()
    weights["h.0.attn.c_attn.weight"][1, 2] = np.nan
    weights["h.1.mlp.c_proj.weight"][1, 2] = np.inf
    model = model_on(backend, CONFIG, weights)
    for name in ("h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight"):
        np.testing.assert_array_equal(model.weight(name), weights[name])


def test_numpy_stores_one_dtype():
    weights = mixed_weights()
    for dtype in ("float32", "float64"):
        model = model_on("numpy", CONFIG, weights, dtype=dtype)
        assert {model.stored_dtype(name) for name in tensor_shapes(CONFIG)} == {dtype}


# ---- files ----


@needs_engine
@pytest.mark.parametrize("dtype", NARROW)
def test_files_round_trip(tmp_path, dtype):
    """A float32 file of weights that fit in 16 bits is stored in 16 bits too."""
    safetensors = pytest.importorskip("safetensors.numpy")
    weights = {n: rounded(w, dtype) for n, w in random_weights(CONFIG).items()}
    first = GPT2(from_arrays(CONFIG, weights), MissingTokenizer("a test"))
    first.save_pretrained(tmp_path / "float32")
    if dtype == "float16":
        (tmp_path / "narrow").mkdir()
        halves = {n: w.astype(np.float16) for n, w in weights.items()}
        safetensors.save_file(halves, tmp_path / "narrow" / "model.safetensors")
        (tmp_path / "narrow" / "config.json").write_bytes(
            (tmp_path / "float32" / "config.json").read_bytes()
        )
    for folder in tmp_path.iterdir():
        model = GPT2.from_pretrained(folder)
        assert_arrays_equal({n: model.weight(n) for n in weights}, weights)
        stored = {model.stored_dtype(n) for n, w in weights.items() if is_matrix(n, w.shape)}
        assert stored == {dtype}


def test_only_float_files_that_may_fit_are_tried():
    class Source:
        name = "h.0.mlp.c_fc.weight"

        def __init__(self, dtype, value):
            self.dtype, self.shape, self.value, self.rows_read = dtype, (8, 4), value, 0

        def read(self, begin, end):
            self.rows_read += end - begin
            return np.full((end - begin, 4), self.value, dtype=np.float32)

    def tried(source):
        found = sixteen_bits.dtypes_to_try(Checkpoint(CONFIG, {source.name: source}))
        return found.get(source.name)

    third = Source("F32", 1 / 3)
    assert tried(third) is None
    assert third.rows_read == 1
    assert tried(Source("F32", 0.5)) == ["bfloat16", "float16", "float32"]
    assert tried(Source("F32", float(np.float16(1 / 3)))) == ["float16", "float32"]
    assert tried(Source("F32", 1e30)) is None
    for dtype, expected in (("F16", "float16"), ("BF16", "bfloat16")):
        source = Source(dtype, 1 / 3)
        assert tried(source) == [expected, "float32"]
        assert source.rows_read == 0
    stored = Source("F32", 0.5)
    assert tried(transposed(stored)) == ["bfloat16", "float16", "float32"]
    assert stored.rows_read == 1


@needs_engine
def test_info_says_how_matrices_are_stored(tmp_path, capsys):
    weights = mixed_weights()
    GPT2(from_arrays(CONFIG, weights), MissingTokenizer("a test")).save_pretrained(tmp_path / "m")
    assert main(["info", "--model", str(tmp_path / "m")]) in (0, None)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("matrices")]
    n = {dtype: list(EXPECTED.values()).count(dtype) for dtype in NARROW}
    assert f"{n['float16']} as float16" in line
    assert f"{n['bfloat16']} as bfloat16 (h.0.mlp.c_fc.weight, " in line
    assert f"{14 - len(EXPECTED)} as float32" in line
