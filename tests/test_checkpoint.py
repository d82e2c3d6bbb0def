"""Checkpoints as a backend reads them: folders in HF format, arrays, picoGPT's dicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import shared_file
from numpy.typing import NDArray

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ConfigError, Error, OptionError
from gpt2c.weights.checkpoint import (
    Checkpoint,
    from_arrays,
    from_picogpt,
    open_checkpoint,
    tensor_shapes,
)
from gpt2c.weights.checkpoint import checkpoint as checkpoint_module
from gpt2c.weights.checkpoint.shared.views import WholeReadSource

Arrays = dict[str, NDArray[Any]]

TINY = GPT2Config(vocab_size=7, n_positions=5, n_embd=6, n_layer=2, n_head=3, n_inner=11)
UNTIED = GPT2Config(**{**TINY.__dict__, "tie_word_embeddings": False})


def random_arrays(config: GPT2Config = TINY, dtype: str = "float32") -> Arrays:
    rng = np.random.default_rng(5)
    shapes = tensor_shapes(config)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def save(folder: Path, arrays: Arrays, config: GPT2Config = TINY, prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **config.__dict__}))
    named = {k if k == "lm_head.weight" else prefix + k: v for k, v in arrays.items()}
    safetensors.numpy.save_file(named, folder / "model.safetensors")
    return folder


def read_all(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    with checkpoint:
        return {name: t.read(0, t.shape[0]) for name, t in checkpoint.tensors.items()}


def assert_same(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], array.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_a_folder(tmp_path: Path, prefix: str, dtype: str, config: GPT2Config) -> None:
    arrays = random_arrays(config, dtype)
    folder = save(tmp_path, arrays, config, prefix)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config == config
    assert checkpoint.folder == folder
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == tensor_shapes(
        config
    )
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"F" + dtype[5:]}
    assert all(name == tensor.name for name, tensor in checkpoint.tensors.items())
    assert_same(read_all(checkpoint), arrays)
    assert_same(read_all(from_arrays(config, arrays)), arrays)


def test_bfloat16(tmp_path: Path) -> None:
    folder = save(tmp_path, random_arrays())
    halves = {name: (a.view("<u4") >> 16).astype("<u2") for name, a in random_arrays().items()}
    header, data = {}, b""
    for name, half in halves.items():
        offsets = [len(data), len(data) + half.nbytes]
        header[name] = {"dtype": "BF16", "shape": half.shape, "data_offsets": offsets}
        data += half.tobytes()
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    expected = {name: (a.astype("<u4") << 16).view("<f4") for name, a in halves.items()}
    assert_same(read_all(open_checkpoint(folder)), expected)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=3, n_positions=1, n_embd=10, n_layer=0, n_head=12),
        GPT2Config(vocab_size=1, n_positions=1, n_embd=1, n_layer=1, n_head=1, n_inner=1),
    ],
)
def test_the_smallest_models(tmp_path: Path, config: GPT2Config) -> None:
    arrays = random_arrays(config)
    assert_same(read_all(open_checkpoint(save(tmp_path, arrays, config))), arrays)


def test_buffers_are_skipped_and_c_attn_bias_is_not(tmp_path: Path) -> None:
    arrays = random_arrays()
    stored = dict(arrays)
    for block in range(2):
        stored[f"h.{block}.attn.bias"] = np.tril(np.ones((1, 1, 5, 5), dtype=bool))
        stored[f"h.{block}.attn.masked_bias"] = np.array(-1e4, dtype=np.float32)
    for prefix in ("", "transformer."):
        assert_same(read_all(open_checkpoint(save(tmp_path, stored, prefix=prefix))), arrays)
    del stored["h.1.attn.c_attn.bias"]
    with pytest.raises(CheckpointError, match=r"missing tensors: 'h\.1\.attn\.c_attn\.bias'$"):
        open_checkpoint(save(tmp_path, stored))
    stored = arrays | {"h.2.attn.bias": np.ones((1, 1, 5, 5), dtype=bool)}  # there is no block 2
    with pytest.raises(CheckpointError, match=r"unexpected tensors: 'h\.2\.attn\.bias'$"):
        open_checkpoint(save(tmp_path, stored))


@pytest.mark.parametrize("name", ["h.0.attn.bias_k", "h.00.attn.bias", "h..attn.bias", "h.0.bias"])
def test_names_similar_to_buffers_are_unexpected(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"unexpected tensors: '{name}'$"):
        open_checkpoint(save(tmp_path, random_arrays() | {name: np.ones(1, dtype=bool)}))


def test_a_tied_head_that_is_stored_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_COMPARED_ELEMENTS", 13)  # two rows of six at a time
    arrays = random_arrays()
    arrays["wte.weight"][0, 0] = np.nan
    stored = arrays | {"lm_head.weight": arrays["wte.weight"].copy()}
    assert_same(read_all(open_checkpoint(save(tmp_path, stored))), arrays)
    for row in (0, 3, 6):
        stored["lm_head.weight"] = arrays["wte.weight"].copy()
        stored["lm_head.weight"][row, 5] += 1
        message = rf"'lm_head.weight' differs from 'wte.weight' in rows {row // 2 * 2} to"
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(save(tmp_path, stored))
        with pytest.raises(CheckpointError, match=message):
            from_arrays(TINY, stored)
    stored["lm_head.weight"] = arrays["wte.weight"][:5]
    with pytest.raises(CheckpointError, match=r"lm_head.*found shape \[5, 6\], expected \[7, 6\]"):
        open_checkpoint(save(tmp_path, stored))


def _drop(name: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.pop(name)


def _put(name: str, array: NDArray[Any]) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: array})


ONE = np.ones(1, dtype=np.float32)
REJECTED: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (_drop("h.1.ln_2.bias"), "missing tensors: 'h.1.ln_2.bias'"),
    "missing embedding": (_drop("wte.weight"), "missing tensors: 'wte.weight'"),
    "all missing": (lambda arrays: arrays.clear(), "'wpe.weight', 'h.0.ln_1.weight'"),
    "many missing": (lambda arrays: arrays.clear(), " and 20 more"),
    "unexpected": (_put("score.weight", ONE), "unexpected tensors: 'score.weight'"),
    "an extra block": (_put("h.2.ln_1.weight", ONE), "unexpected tensors: 'h.2.ln_1.weight'"),
    "another spelling": (_put("h.01.ln_1.weight", ONE), "unexpected tensors: 'h.01.ln_1.weight'"),
    "cross-attention": (_put("h.0.crossattention.q_attn.weight", ONE), "cross-attention is not"),
    "wrong shape": (_put("ln_f.bias", ONE), "'ln_f.bias': found shape [1], expected [6]"),
    "wrong rank": (_put("ln_f.bias", np.ones((1, 6), dtype="f4")), "found shape [1, 6]"),
    "positions": (_put("wpe.weight", np.ones((4, 6), dtype="f4")), "[4, 6], expected [5, 6]"),
    "transposed": (_put("h.0.mlp.c_fc.weight", np.ones((11, 6), dtype="f4")), "it is transposed"),
    "integers": (_put("ln_f.bias", np.ones(6, dtype="i4")), "'ln_f.bias': found dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_rejected(tmp_path: Path, case: str) -> None:
    change, message = REJECTED[case]
    arrays = random_arrays()
    change(arrays)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(save(tmp_path, arrays, prefix="transformer."))
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert message in str(caught.value)
    with pytest.raises(CheckpointError, match=r"^arrays: ") as caught:
        from_arrays(TINY, arrays)
    assert message in str(caught.value)


def test_missing_head(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*tie_word_embeddings is false"):
        open_checkpoint(save(tmp_path, random_arrays(), UNTIED))


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    arrays = random_arrays()
    arrays["transformer.ln_f.bias"] = arrays["ln_f.bias"]
    with pytest.raises(CheckpointError, match=r"'ln_f.bias' appears twice"):
        open_checkpoint(save(tmp_path, arrays))


def test_a_million_blocks_are_refused_quickly(tmp_path: Path) -> None:
    config = GPT2Config(**{**TINY.__dict__, "n_layer": 2**20})
    with pytest.raises(
        CheckpointError, match="found 28 tensors, which are too few for n_layer 1048576"
    ):
        open_checkpoint(save(tmp_path, random_arrays(), config))


def test_errors_name_the_broken_file(tmp_path: Path) -> None:
    folder = save(tmp_path, random_arrays())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*the file is cut short"):
        open_checkpoint(folder)
    (folder / "config.json").write_text('{"n_head": -1}')
    with pytest.raises(ConfigError, match=r"config\.json: n_head must be"):
        open_checkpoint(folder)


def test_a_file_changed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path, random_arrays())
    with pytest.raises(CheckpointError, match="changed while it was read"), open_checkpoint(folder):
        os.utime(folder / "model.safetensors", ns=(1, 1))
    # This check must not hide an error that the with block raises.
    checkpoint = open_checkpoint(folder)
    os.utime(folder / "model.safetensors", ns=(2, 2))
    with pytest.raises(OptionError), checkpoint:
        checkpoint.tensors["wte.weight"].read(-1, 0)


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "gpt2", "no\0name"):
        with pytest.raises(CheckpointNotFoundError, match="there is no such folder"):
            open_checkpoint(path)
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json and model\.safetensors not"):
        open_checkpoint(tmp_path)
    folder = save(tmp_path / "x", random_arrays())
    assert_same(read_all(open_checkpoint(folder / "model.safetensors")), random_arrays())
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_checkpoint(folder)
    assert f"{folder}: model.safetensors not found" in str(caught.value)
    assert "tf_model.h5 is a file of Keras (HDF5), which gpt2c does not read" in str(caught.value)
    (folder / "tf_model.h5").rename(folder / "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json not found"):
        open_checkpoint(folder)


def test_links_are_followed(tmp_path: Path) -> None:
    """The hub's cache consists of links."""
    folder = save(tmp_path / "blobs", random_arrays())
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(folder / name)
    assert_same(read_all(open_checkpoint(tmp_path / "snapshot")), random_arrays())


def test_arrays_in_any_memory_layout() -> None:
    arrays = random_arrays()
    arrays["wte.weight"] = np.asfortranarray(arrays["wte.weight"])
    arrays["ln_f.bias"] = arrays["ln_f.bias"].astype(">f4")
    checkpoint = from_arrays(TINY, {**arrays, "ln_f.weight": arrays["ln_f.weight"].tolist()})
    assert checkpoint.folder is None
    got = checkpoint.tensors["wte.weight"].read(1, 4)
    assert got.flags.c_contiguous
    got[:] = 0
    assert_same(read_all(checkpoint), arrays)
    with pytest.raises(CheckpointError, match="is not an array"):
        from_arrays(TINY, {**arrays, "ln_f.bias": [[1.0], [2.0, 3.0]]})


def picogpt(arrays: Arrays) -> dict[str, Any]:
    def leaf(name: str, weight: str) -> dict[str, Any]:
        return {weight: arrays[name + ".weight"], "b": arrays[name + ".bias"]}

    blocks = [
        {
            "ln_1": leaf(f"h.{i}.ln_1", "g"),
            "attn": {n: leaf(f"h.{i}.attn.{n}", "w") for n in ("c_attn", "c_proj")},
            "ln_2": leaf(f"h.{i}.ln_2", "g"),
            "mlp": {n: leaf(f"h.{i}.mlp.{n}", "w") for n in ("c_fc", "c_proj")},
        }
        for i in range(2)
    ]
    return {
        "wte": arrays["wte.weight"],
        "wpe": arrays["wpe.weight"],
        "blocks": blocks,
        "ln_f": leaf("ln_f", "g"),
    }


HPARAMS = {"n_vocab": 7, "n_ctx": 5, "n_embd": 6, "n_head": 3, "n_layer": 2}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_picogpt(dtype: str) -> None:
    arrays = random_arrays(TINY, dtype)
    for hparams in (HPARAMS, {"n_head": 3}):
        checkpoint = from_picogpt(hparams, picogpt(arrays))
        assert checkpoint.config == GPT2Config(**{**TINY.__dict__, "eos_token_id": None})
        assert_same(read_all(checkpoint), arrays)


def test_picogpt_with_fewer_positions() -> None:
    checkpoint = from_picogpt(HPARAMS | {"n_ctx": 3}, picogpt(random_arrays()))
    assert checkpoint.config.n_positions == 3
    assert checkpoint.tensors["wpe.weight"].shape == (3, 6)


def test_picogpt_without_blocks() -> None:
    params = picogpt(random_arrays()) | {"blocks": []}
    for hparams in ({}, {"n_head": 0}, {"n_head": 4, "n_layer": 0}):
        checkpoint = from_picogpt(hparams, params)
        assert checkpoint.config.n_layer == 0
        assert checkpoint.config.n_inner is None
        assert len(checkpoint.tensors) == 4


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (HPARAMS | {"n_vocab": 8}, "hparams: n_vocab is 8, and the tensors have 7"),
        (HPARAMS | {"n_embd": 12}, "hparams: n_embd is 12, and the tensors have 6"),
        (HPARAMS | {"n_layer": 3}, "hparams: n_layer is 3, and the tensors have 2"),
        (HPARAMS | {"n_ctx": 6}, "hparams: n_ctx is 6, and wpe has 5 rows"),
        (HPARAMS | {"n_ctx": 0}, "hparams: n_ctx is 0"),
        (HPARAMS | {"n_ctx": "5"}, "hparams: n_ctx is '5'"),
        (HPARAMS | {"n_head": 4}, "n_embd 6 and n_head 4"),
        ({}, "hparams: n_head is missing"),
        (None, "hparams: found None, expected a dict"),
    ],
)
def test_mismatched_picogpt_hparams(hparams: Any, message: str) -> None:
    with pytest.raises(Error) as caught:
        from_picogpt(hparams, picogpt(random_arrays()))
    assert message in str(caught.value)


def test_mismatched_picogpt_params() -> None:
    def rejected(change: Callable[[dict[str, Any]], object], message: str) -> None:
        params = picogpt(random_arrays())
        change(params)
        with pytest.raises(CheckpointError) as caught:
            from_picogpt(HPARAMS, params)
        assert message in str(caught.value)

    rejected(lambda p: p.pop("wte"), "params: missing keys: 'wte'")
    rejected(lambda p: p.update(head=1), "unexpected keys: 'head'")
    rejected(lambda p: p.update(blocks=5), "params['blocks']: found 5, expected a list")
    rejected(lambda p: p["blocks"].append(5), "params['blocks'][2]: found 5, expected a dict")
    rejected(lambda p: p["blocks"].pop(), "hparams: n_layer is 2, and the tensors have 1")
    rejected(lambda p: p.update(wte=np.ones(3)), "hparams: tensor 'wte.weight': found shape [3]")
    rejected(
        lambda p: p["blocks"][1]["attn"]["c_attn"].pop("b"),
        "params['blocks'][1]['attn']['c_attn']: missing keys: 'b'",
    )
    rejected(
        lambda p: p["blocks"][1]["ln_2"].update(g=np.ones(5)),
        "'h.1.ln_2.weight': found shape [5], expected [6]",
    )


@pytest.mark.parametrize(("model", "count"), [("sort-nano", 85_728), ("prose-21m", 21_274_624)])
def test_real_models_read_like_the_safetensors_package(model: str, count: int) -> None:
    folder = shared_file(f"models/{model}")
    theirs = safetensors.numpy.load_file(folder / "model.safetensors")
    ours = read_all(open_checkpoint(folder))
    assert sum(array.size for array in ours.values()) == count
    assert len(theirs) == len(ours)
    for name, array in theirs.items():
        np.testing.assert_array_equal(
            ours[name.removeprefix("transformer.")], array.astype(np.float32)
        )


def test_importing_is_light() -> None:
    code = (
        "import sys, gpt2c.weights.checkpoint; "
        "print([m for m in sys.modules if 'safetensors' in m])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "['gpt2c.formats.safetensors_file']\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_non_finite_weights_in_a_file_are_an_error(
    tmp_path: Path, value: float, backend: str
) -> None:
    arrays = random_arrays()
    arrays["h.1.mlp.c_fc.weight"][4, 3] = value
    with pytest.raises(CheckpointError) as caught:
        GPT2.from_pretrained(save(tmp_path, arrays), backend=backend)
    message = str(caught.value)
    assert str(tmp_path / "model.safetensors") in message
    assert f"tensor 'h.1.mlp.c_fc.weight': found {value} in row 4, expected finite" in message
    assert main(["convert", str(tmp_path), str(tmp_path / "to")]) == 2
    assert not (tmp_path / "to").exists()
    # Arrays in memory are not checked: the caller can inspect them.
    assert GPT2(from_arrays(TINY, arrays), None, backend=backend).config == TINY


def test_a_lazily_made_tensor_is_made_once_per_pass_and_freed() -> None:
    made: list[weakref.ref[NDArray[np.float32]]] = []

    def make() -> NDArray[np.float32]:
        array = np.arange(12, dtype=np.float32).reshape(3, 4).T
        made.append(weakref.ref(array.base))
        return array

    whole = WholeReadSource("a", (4, 3), "F32", make)
    for _ in range(2):
        np.testing.assert_array_equal(whole.read(0, 1), [[0, 4, 8]])
        assert made[-1]() is not None
        rows = whole.read(1, 4)
        assert rows.flags.c_contiguous
        np.testing.assert_array_equal(rows[2], [3, 7, 11])
        assert made[-1]() is None
    assert len(made) == 2
