"""State dicts under other names, picoGPT's pickles, and files that are named and refused."""

from __future__ import annotations

import base64
import json
import pickle
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import FIXTURES, assert_logits_close, load
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ConfigError, Error, OptionError
from gpt2c.weights.checkpoint import open_checkpoint

LAYOUTS = FIXTURES / "layouts"
N_HEAD = {
    "book": None, "book_heads": 3, "book_optimizer": 3, "book_fast": 3, "book_fast_unbiased": 3,
    "old_mingpt": 3, "lens": None, "lens_folded": None, "lens_config": None,
    "lens_trained_bias": None,
}  # fmt: skip


def expected_of(name: str) -> tuple[list[int], np.ndarray]:
    values = json.loads((LAYOUTS / name / "expected.json").read_text())
    logits = np.frombuffer(base64.b64decode(values["logits"]), "<f4")
    return values["ids"], logits.reshape(len(values["ids"]), -1)


def available(name: str) -> Path:
    path = LAYOUTS / name / "model.pth"
    if not path.exists():
        pytest.skip(f"{path} was not made")
    return path


@pytest.mark.parametrize("name", N_HEAD)
def test_logits_equal_those_of_the_tool(name: str, backend: str, tmp_path: Path) -> None:
    """Logits equal the tool's, and the saved model has the same bits."""
    ids, logits = expected_of(name) if available(name) else ([], np.empty(0))
    for path in (available(name), available(name).parent):
        with load(path, backend, n_head=N_HEAD[name]) as model:
            found = model.logits(ids)
            assert_logits_close(found, logits)
    with load(available(name), backend, n_head=N_HEAD[name]) as model:
        model.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved", backend).logits(ids), found)


def test_the_number_of_heads(tmp_path: Path, capsys: Any) -> None:
    book, mingpt = available("book_heads"), available("old_mingpt")
    with pytest.raises(ConfigError, match=r"width 12 is not a multiple of 64.*pass n_head="):
        open_checkpoint(book)
    with pytest.raises(ConfigError, match=r"minGPT before June 2022.*does not say it.*n_head="):
        open_checkpoint(mingpt)
    with pytest.raises(ConfigError, match="n_head"):
        open_checkpoint(mingpt, n_head=5)
    with pytest.raises(OptionError, match="n_head and hparams exclude each other"):
        open_checkpoint(mingpt, n_head=3, hparams={"n_head": 3})
    for path in (available("lens"), FIXTURES / "transformers" / "tiny"):
        with pytest.raises(OptionError, match="hparams and n_head are for checkpoints that do not"):
            open_checkpoint(path, n_head=4)
    beside = tmp_path / "model.pth"
    beside.write_bytes(mingpt.read_bytes())
    (tmp_path / "hparams.json").write_text('{"n_head": 3}')
    with open_checkpoint(beside) as checkpoint:
        assert checkpoint.config.n_head == 3
    assert main(["convert", str(book), str(tmp_path / "converted"), "--n-head", "3"]) == 0
    assert GPT2.from_pretrained(tmp_path / "converted").config.n_head == 3


def arrays_in(name: str) -> dict[str, np.ndarray]:
    """Return a fixture's tensors, read by gpt2c's reader of torch files."""
    from gpt2c.weights.checkpoint.shared.state_dict import StateDictFile

    file = StateDictFile(available(name))
    try:
        wanted = [key for key in file.tensors if not key.endswith(("mask", "IGNORE"))]
        sources = {key: file.named_source(key, key) for key in wanted}
        return {key: source.read(0, source.shape[0]) for key, source in sources.items()}
    finally:
        file.close()


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("old_mingpt", "blocks.1.attn.key.weight", None, "missing tensors.*attn.key"),
        ("old_mingpt", "blocks.1.mlp.0.weight", None, r"missing tensors: 'h\.1\.mlp\.c_fc"),
        ("old_mingpt", "blocks.0.attn.value.weight", (12, 13), "which does not fit the model's"),
        ("old_mingpt", "tok_emb.weight", (3,), "found shape"),
        ("old_mingpt", "blocks.0.gate.weight", (12, 12), "other tensors: 'blocks.0.gate.weight'"),
        ("old_mingpt", "blocks.999999.ln1.weight", (12,), "missing tensors"),
        ("book_heads", "out_head.weight", (2, 12), "may be a classifier"),
        ("book_heads", "trf_blocks.0.att.W_query.bias", None, "missing tensors.*att.W_query"),
        ("lens", "unembed.b_U", (3,), "b_U.*expected"),
        ("lens", "blocks.0.attn.W_K", (4, 16, 5), "expected heads whose width is d_model 16"),
        ("lens", "blocks.0.attn.W_O", None, "block 0: missing tensors: 'attn.W_O'"),
        ("lens", "blocks.0.ln1.w", None, r"missing tensors: 'h\.0\.ln_1\.weight'"),
        ("lens", "blocks.0.mlp.W_gate", (16, 64), "another architecture"),
        ("lens", "unembed.W_U", None, "unembed.W_U"),
    ],
)  # fmt: skip
def test_damaged_layouts(
    name: str, key: str, change: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    """A safetensors file in another layout loads, and a damaged one says what is wrong."""
    arrays = arrays_in(name)
    n_head = N_HEAD[name]
    safetensors.numpy.save_file(arrays, tmp_path / "good.safetensors")
    ids, logits = expected_of(name)
    good = GPT2.from_pretrained(tmp_path / "good.safetensors", n_head=n_head)
    assert_logits_close(good.logits(ids), logits)
    arrays.pop(key, None)
    if change is not None:
        arrays[key] = np.zeros(change, dtype=np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "bad.safetensors")
    with pytest.raises(Error, match=message):
        open_checkpoint(tmp_path / "bad.safetensors", n_head=n_head)


def test_folded_norms_are_loaded_with_a_warning(caplog: Any) -> None:
    open_checkpoint(available("lens_folded")).close()
    assert "layer norms were folded" in caplog.text
    caplog.clear()
    open_checkpoint(available("lens")).close()
    assert not caplog.text


# ---- picoGPT's pickles ----


def picogpt_params(dtype: Any = np.float32, order: Any = "C", width: int = 8) -> dict[str, Any]:
    random = np.random.default_rng(9)

    def array(*shape: int) -> np.ndarray:
        return np.asarray(random.normal(size=shape), dtype=dtype, order=order)

    def norm() -> dict[str, Any]:
        return {"g": array(width), "b": array(width)}

    def linear(n_in: int, n_out: int) -> dict[str, Any]:
        return {"w": array(n_in, n_out), "b": array(n_out)}

    def block() -> dict[str, Any]:
        attention = {"c_attn": linear(width, 3 * width), "c_proj": linear(width, width)}
        mlp = {"c_fc": linear(width, 4 * width), "c_proj": linear(4 * width, width)}
        return {"ln_1": norm(), "attn": attention, "ln_2": norm(), "mlp": mlp}

    blocks = [block(), block()]
    return {"wte": array(61, width), "wpe": array(12, width), "blocks": blocks, "ln_f": norm()}


HPARAMS = {"n_vocab": 61, "n_ctx": 12, "n_embd": 8, "n_head": 2, "n_layer": 2}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(("dtype", "order"), [("f4", "C"), ("f4", "F"), ("f8", "C"), ("f2", "F")])
def test_pickled_params(protocol: int, dtype: str, order: str, tmp_path: Path) -> None:
    """Logits of pickles in every form have the bits of the arrays in memory."""
    params = picogpt_params(dtype, order)
    ids = list(range(12))
    expected = GPT2.from_picogpt(HPARAMS, params).logits(ids)
    path = tmp_path / "params.pkl"
    saved: tuple[tuple[object, dict[str, Any]], ...] = (
        (params, {"n_head": 2}),
        (params, {"hparams": HPARAMS}),
        ((HPARAMS, params), {}),
        ({"hparams": HPARAMS, "params": params}, {}),
    )
    for value, options in saved:
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        np.testing.assert_array_equal(GPT2.from_pretrained(path, **options).logits(ids), expected)
    path.write_bytes(pickle.dumps(params))
    with pytest.raises(CheckpointError, match=r"n_head is missing.*pass n_head="):
        open_checkpoint(path)
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    np.testing.assert_array_equal(GPT2.from_pretrained(path).logits(ids), expected)


def test_rejected_pickles(tmp_path: Path) -> None:
    path = tmp_path / "params.pkl"

    def rejected(value: object, message: str, **options: Any) -> None:
        path.write_bytes(pickle.dumps(value, **options))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path, n_head=2)

    params = picogpt_params()
    rejected(params, "pickle it with protocol 3 or later", protocol=2)
    rejected([1, 2], r"params\.pkl: found a pickle of a list")
    rejected({**params, "wte": params["wte"].astype(">f4")}, "little-endian")
    rejected({**params, "wte": params["wte"].astype("i8")}, "dtype 'i8'")
    rejected({**params, "wte": [1.0]}, "found a list, expected a NumPy array")
    rejected({**params, "ln_f": {}}, "missing keys: 'b', 'g'")
    rejected({**params, "blocks": [params["blocks"][0]] * 1001}, "more than 1000 blocks")
    # Arrays that share bytes: a small file must not claim a large model.
    rejected({**params, "blocks": [params["blocks"][0]] * 900}, "together exceed the file's size")
    nested: list[Any] = []
    for _ in range(60):  # 2**60 items, written once each
        nested = [nested, nested]
    begin = time.monotonic()
    rejected({**params, "blocks": [nested]}, "found a list, expected a dict")
    rejected({**params, "ln_f": nested}, "found a list, expected a dict")
    assert time.monotonic() - begin < 60


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_pickles(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A pickle with changed bytes loads or raises one of gpt2c's errors."""
    raw = bytearray(pickle.dumps((HPARAMS, picogpt_params(width=2))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(2, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))])
    with suppress(Error), open_checkpoint(path) as checkpoint:
        checkpoint.read_all()


# ---- formats that are named and refused ----


@pytest.mark.parametrize(
    ("name", "head", "what"),
    [
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "a file of Keras.*load_tf2_model_in_pytorch_model"),
        ("flax_model.msgpack", b"\x81\xabtransformer", "a file of Flax.*load_flax_weights_in"),
        ("model.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
        ("ggml-model-f16.bin", b"lmgg" + bytes(8), "a ggml file from before GGUF.*convert_hf_to"),
        ("ggml-model-q4.bin", b"tjgg" + bytes(8), "a ggml file.*ggjt"),
        ("rust_model.ot", b"PK\x03\x04", "a file of rust-bert.*torch.jit.load"),
    ],
)
def test_foreign_files_are_named(name: str, head: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(head + bytes(64))
    with pytest.raises(CheckpointError, match=rf"{name}: is {what}"):
        open_checkpoint(tmp_path / name)
    with pytest.raises((CheckpointError, CheckpointNotFoundError), match=what):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("format", "name", "what"),
    [
        ("tf", "transformer/h_._0/attn/c_attn/weight:0", "weights of TensorFlow.*load_tf2_model"),
        ("flax", "transformer.h.0.attn.c_attn.kernel", "weights of Flax.*load_flax_weights"),
    ],
)
def test_safetensors_of_other_frameworks(format: str, name: str, what: str, tmp_path: Path) -> None:
    header = json.dumps({
        "__metadata__": {"format": format},
        name: {
            "dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4],
        },
    }).encode()  # fmt: skip
    raw = struct.pack("<Q", len(header)) + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(raw)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match=what):
            open_checkpoint(path)
