"""Models as trainers save them: wrapped, with other heads, and with other files in the folder.

The libraries themselves wrote the folders of fixtures/trainers; see tools/make_trainer_fixtures.py.
"""

from __future__ import annotations

import argparse
import base64
import collections
import copyreg
import datetime
import decimal
import enum
import json
import logging
import pathlib
import pickle
import random
import shutil
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import (
    FORMATS,
    TINY,
    TRAINERS,
    arrays_of,
    assert_arrays_equal,
    assert_logits_close,
    config_of,
    load,
    random_weights,
)
from model_folders import PickledCall

from gpt2c import CheckpointError, CheckpointNotFoundError, ConfigError
from gpt2c.formats.pickle_values import fields_of, has_fields
from gpt2c.weights.checkpoint import open_checkpoint
from gpt2c.weights.checkpoint.shared.names import bare_name, gpt2_names


def config_file(folder: Path, **values: Any) -> None:
    config = {**json.loads((TINY / "config.json").read_text()), **values}
    (folder / "config.json").write_text(json.dumps(config))


# ---- files that the libraries wrote ----

LOADED = (
    "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification",
    "GPT2ForQuestionAnswering", "GPT2Model", "save_model", "lightning", "lightning/last.ckpt",
    "extras_archive", "extras_archive_4", "extras_legacy", "extras_legacy_1", "nanogpt_old",
)  # fmt: skip


@pytest.mark.parametrize("name", LOADED)
def test_logits_equal_those_of_the_library(name: str, backend: str) -> None:
    path = TRAINERS / name
    values = json.loads((TRAINERS / name.split("/")[0] / "expected.json").read_text())
    expected = np.frombuffer(base64.b64decode(values["logits"]), "<f4")
    with load(path, backend) as model:
        found = model.logits(values["ids"])
    assert_logits_close(found, expected)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("GPT2DoubleHeadsModel", ["multiple_choice_head.summary.weight"]),
        ("GPT2ForSequenceClassification", []),  # classify uses this head
        ("GPT2ForTokenClassification", []),
        ("GPT2ForQuestionAnswering", ["qa_outputs.bias", "qa_outputs.weight"]),
        ("GPT2Model", []),
    ],
)
def test_a_warning_names_other_heads(
    name: str, left_out: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="gpt2c"):
        arrays_of(TRAINERS / name)
    text = "".join(record.getMessage() for record in caplog.records)
    assert all(tensor in text for tensor in left_out)
    assert ("left out" in text) == bool(left_out)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("optimizer.pt", "found the state of an optimizer, expected the weights"),
        ("scheduler.pt", "found the state of a learning-rate scheduler, expected"),
        ("rng_state.pth", "found states of random number generators, expected"),
        ("training_args.bin", "found a trainer's arguments, expected"),
    ],
)
def test_a_trainers_other_files_are_refused(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(TRAINERS / "trainer" / name)
    # The same file is refused under another name, whether the file or its folder is opened.
    shutil.copy(TRAINERS / "trainer" / name, tmp_path / "model.pt")
    shutil.copy(TRAINERS / "trainer" / "config.json", tmp_path)
    for path in (tmp_path / "model.pt", tmp_path):
        with pytest.raises(CheckpointError, match=what):
            open_checkpoint(path)


def test_a_trainers_folder(tmp_path: Path) -> None:
    folder = shutil.copytree(TRAINERS / "trainer", tmp_path / "checkpoint-1")
    with pytest.raises(CheckpointNotFoundError, match=r"'optimizer\.pt'.* holds? no weights"):
        open_checkpoint(folder)
    (folder / "scaler.pt").write_bytes(b"the content is not read")
    shutil.copy(TRAINERS / "lightning" / "last.ckpt", folder)
    assert_arrays_equal(arrays_of(folder), arrays_of(TRAINERS / "lightning"))
    # accelerate's state files are ignored beside a checkpoint that contains its configuration.
    shutil.copy(FORMATS / "nanogpt" / "ckpt.pt", tmp_path)
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "rng_state_1.pth"):
        (tmp_path / name).write_bytes(b"")
    assert_arrays_equal(arrays_of(tmp_path), arrays_of(FORMATS / "nanogpt"))


@pytest.mark.parametrize("name", ["archive.pt", "in_a_dict.pt", "legacy.pt", "script.pt"])
def test_whole_modules_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"torch\.save\(model\.state_dict\(\), path\)") as e:
        open_checkpoint(TRAINERS / "whole" / name)
    kind = {"script.pt": "TorchScript", "legacy.pt": "'__main__.Bare'"}.get(
        name, "'torch.nn.modules.linear.Linear'"
    )
    assert kind in str(e.value)
    assert name in str(e.value)


def test_adapters_alone_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(TRAINERS / "adapter", tmp_path / "adapter")
    for place in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(
            CheckpointError,
            match=r"is an adapter \('LORA'\).*from_pretrained\('openai-community/gpt2', adapter=",
        ):
            open_checkpoint(place)
    # With a model's weights beside the adapter, the folder is refused; the weights' path loads.
    shutil.copy(TINY / "model.safetensors", folder)
    shutil.copy(TINY / "config.json", folder)
    with pytest.raises(CheckpointError, match="is an adapter"):
        open_checkpoint(folder)
    assert_arrays_equal(arrays_of(folder / "model.safetensors"), arrays_of(TINY))
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is an adapter, which changes the weights of anoth"):
        open_checkpoint(folder)


# ---- names, in every container ----

PREFIXES = (
    "", "transformer.", "module.", "model.", "_orig_mod.", "model.transformer.",
    "module._orig_mod.transformer.", "_orig_mod.module.model.model.transformer.",
    "transformer.transformer.", "transformer.model.", "pretrained_model.transformer.",
)  # fmt: skip


def stored_tensors(prefix: str, drop: str | None = None) -> dict[str, np.ndarray]:
    arrays = arrays_of(TINY)
    arrays["lm_head.weight"] = arrays["wte.weight"]
    arrays.pop(drop or "", None)
    head = prefix.removesuffix("transformer.")
    return {(head if "lm_head" in n else prefix) + n: a.copy() for n, a in arrays.items()}


def write_container(kind: str, folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config_file(folder)
    if kind == "safetensors":
        safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    elif kind == "npz":
        np.savez(folder / "model.npz", **arrays)
    else:
        torch_archive(folder / "pytorch_model.bin", arrays)


def torch_archive(path: Path, value: Any, protocol: int = 2) -> Path:
    """Write dicts of arrays as torch.save does, without torch."""
    storages: dict[str, bytes] = {}

    def name(path: str) -> Any:
        """Return a global that pickle can write without importing it."""
        module, _, leaf = path.rpartition(".")
        return Named(module, leaf)

    class Named:
        def __init__(self, module: str, leaf: str) -> None:
            self.path = (module, leaf)

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Named):
                self.write(b"c" + "\n".join(obj.path).encode() + b"\n")
            elif isinstance(obj, np.ndarray):
                key = str(len(storages))
                storages[key] = obj.astype("<f4").tobytes()
                self.save(name("torch._utils._rebuild_tensor_v2"))
                strides = tuple(stride // obj.itemsize for stride in obj.strides)
                self.write(b"(")
                self.save(("storage", name("torch.FloatStorage"), key, "cpu", obj.size))
                self.write(b"Q")
                for part in (0, obj.shape, strides, False):
                    self.save(part)
                self.write(b"}tR")
            else:
                super().save(obj, save_persistent_id)

    with zipfile.ZipFile(path, "w") as file:
        with file.open("m/data.pkl", "w") as stream:
            Pickler(stream, protocol).dump(value)
        for key, raw in storages.items():
            file.writestr(f"m/data/{key}", raw)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "torch", "npz"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapper_prefixes_are_removed(kind: str, prefix: str, tmp_path: Path) -> None:
    """The file stores both names of the tied embedding and head, or only one."""
    for drop in (None, "wte.weight", "lm_head.weight"):
        write_container(kind, tmp_path / str(drop), stored_tensors(prefix, drop))
        assert_arrays_equal(arrays_of(tmp_path / str(drop)), arrays_of(TINY))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "npz"])
def test_a_missing_embedding_and_tied_head(kind: str, tmp_path: Path) -> None:
    arrays = stored_tensors("transformer.", "wte.weight")
    del arrays["lm_head.weight"]
    write_container(kind, tmp_path, arrays)
    with pytest.raises(CheckpointError, match=r"missing tensors: 'wte\.weight'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "npz"])
def test_an_untied_head_does_not_replace_the_embedding(kind: str, tmp_path: Path) -> None:
    write_container(kind, tmp_path, stored_tensors("transformer.", "wte.weight"))
    config_file(tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"'wte\.weight'.*tie_word_embeddings is false"):
        open_checkpoint(tmp_path)
    write_container(kind, tmp_path, stored_tensors("transformer.", "lm_head.weight"))
    config_file(tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing tensors: 'lm_head\.weight'"):
        open_checkpoint(tmp_path)


def test_names_of_modules_wrapped_one_by_one() -> None:
    """torch.compile and FSDP give such names to the blocks of a model."""
    for stored, name in (
        ("transformer.h.0._orig_mod.ln_1.weight", "h.0.ln_1.weight"),
        ("_fsdp_wrapped_module.transformer.h.3._fsdp_wrapped_module.mlp.c_fc.bias",
         "h.3.mlp.c_fc.bias"),
        ("model.transformer.h.1._checkpoint_wrapped_module.attn.c_attn.weight",
         "h.1.attn.c_attn.weight"),
        ("model.v_head.summary.weight", "v_head.summary.weight"),
        ("model", "model"),
    ):  # fmt: skip
        assert bare_name(stored) == name


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    arrays = stored_tensors("transformer.")
    arrays["module.transformer.wpe.weight"] = arrays["transformer.wpe.weight"].copy()
    write_container("safetensors", tmp_path, arrays)
    with pytest.raises(CheckpointError, match=r"'wpe\.weight' appears twice"):
        open_checkpoint(tmp_path)


# ---- tensors that do not belong to the language model ----

OTHER_HEADS = (
    "v_head.summary.weight", "score.weight", "classifier.bias", "value_head.0.weight",
    "ilql_heads.q_heads.0.0.weight", "ref_model.transformer.h.0.ln_1.weight", "summary.weight",
    "reward_head.norm.weight",
)  # fmt: skip
REFUSED = (
    "transformer.h.0.crossattention.c_attn.weight", "transformer.h.0.attn.c_attn.lora_A.weight",
    "transformer.h.0.attn.rotary_emb.inv_freq", "transformer.h.2.ln_1.weight", "lm_head.bias",
    "transformer.h.0.attn.relative_attention_bias.weight", "transformer.embed_ln.weight",
    "transformer.wte.bias", "transformer.gate.weight",
    "ln_emb.weight", "rotary_emb.inv_freq", "adapters.0.weight",
    "prompt_encoder.default.embedding.weight", "transformer.h.0.adapter.down.weight",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["safetensors", "torch", "npz"])
def test_other_heads_are_dropped(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in OTHER_HEADS:
        more = {name: np.ones((2, 3), dtype=np.float32)}
        write_container(kind, tmp_path, stored_tensors("transformer.", "lm_head.weight") | more)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="gpt2c"):
            assert_arrays_equal(arrays_of(tmp_path), arrays_of(TINY))
        assert [r for r in caplog.records if f"left out: '{name}'" in r.getMessage()]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "npz"])
@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_would_change_a_logit_are_refused(
    kind: str, name: str, tmp_path: Path
) -> None:
    """transformers drops some of these with a warning, which gives wrong logits."""
    more = {name: np.ones((2, 3), dtype=np.float32)}
    write_container(kind, tmp_path, stored_tensors("transformer.", "lm_head.weight") | more)
    with pytest.raises(CheckpointError, match=r"unexpected tensors|cross-attention") as caught:
        open_checkpoint(tmp_path)
    assert bare_name(name) in str(caught.value)


def test_names_without_a_model_are_unchanged() -> None:
    assert gpt2_names(["a.weight", "b.weight"], "x") == {
        "a.weight": "a.weight",
        "b.weight": "b.weight",
    }


# ---- wrappers ----


@pytest.mark.parametrize(
    "keys",
    [["model"], ["state_dict"], ["model_state_dict"], ["module"], ["state_dict", "model"],
     ["checkpoint", "module"], ["policy"]],
)  # fmt: skip
def test_dicts_around_a_state_dict(keys: list[str], tmp_path: Path) -> None:
    value: Any = stored_tensors("module.transformer.")
    for key in reversed(keys):
        value = {key: value, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": np.ones(2)}}}}
    torch_archive(tmp_path / "pytorch_model.bin", value)
    config_file(tmp_path)
    assert_arrays_equal(arrays_of(tmp_path), arrays_of(TINY))


def test_several_state_dicts(tmp_path: Path) -> None:
    other = {name: array + 1 for name, array in stored_tensors("transformer.").items()}
    path = tmp_path / "pytorch_model.bin"
    config_file(tmp_path)
    torch_archive(path, {"ema": other, "model": stored_tensors("")})
    assert_arrays_equal(arrays_of(tmp_path), arrays_of(TINY))
    torch_archive(path, {"ema": other, "best": stored_tensors("")})
    with pytest.raises(CheckpointError, match="found weights under the keys 'ema', 'best'"):
        open_checkpoint(tmp_path)
    torch_archive(path, {**stored_tensors(""), "epoch": 3, "note": None, "extra": {"a": 1}})
    assert_arrays_equal(arrays_of(tmp_path), arrays_of(TINY))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "found an empty dict, expected the state dict"),
        ([1], "found a list, expected the state dict"),
        ({"epoch": 3, (1, 2): 4}, "found a dict of 'epoch', a tuple"),
        ({"state": {}, "param_groups": []}, "found the state of an optimizer"),
        (argparse.Namespace(a=1), "found an object of 'argparse.Namespace', expected"),
    ],
)
def test_files_without_a_state_dict(value: Any, message: str, tmp_path: Path) -> None:
    torch_archive(tmp_path / "x.pt", value)
    config_file(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.pt")


def test_required_values_must_be_tensors(tmp_path: Path) -> None:
    config_file(tmp_path)
    for name, value, message in (
        ("transformer.h.0.ln_1.weight", decimal.Decimal(1), "an object of 'decimal.Decimal'"),
        ("transformer.wpe.weight", {"a": 1}, "found a dict, expected a tensor"),
        ("lm_head.weight", 5, "'lm_head.weight': found 5, expected a tensor"),
        (
            "transformer.h.1.mlp.c_fc.weight",
            np.ones((20, 80), dtype=np.float32).T,
            r"with strides \(1, 80\).*save it with \.contiguous",
        ),
    ):
        torch_archive(
            tmp_path / "pytorch_model.bin", {**stored_tensors("transformer."), name: value}
        )
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)


# ---- other values in a file of weights ----


class Color(enum.Enum):
    RED = 1


class Settings(dict):
    """A dict subclass, like EasyDict."""


class Slotted:
    __slots__ = ("lr",)


class Odd:
    """Has a state that is not a dict and is restored by a call."""

    def __getstate__(self) -> tuple[int, ...]:
        return (1, 2, 3)

    def __setstate__(self, _: object) -> None:
        """Do nothing."""


class WithNames:
    def __new__(cls, *, a: int) -> WithNames:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"a": 1}


def called(marker: str) -> None:
    """Leave a marker; reading a file must not call this."""
    Path(marker).touch()


def other_values(protocol: int) -> dict[str, Any]:
    itself: dict[str, Any] = {}
    itself["me"] = itself
    slotted = Slotted()
    slotted.lr = 1  # type: ignore[attr-defined]
    found: dict[str, Any] = {
        "numbers": [1, -1, 255, 65536, -(2**31), 2**40, 2**3000, True, False, 1.5, float("nan")],
        "texts": ["", "a\n\\'\"", "é漢\ud83d", "x" * 70000, b"", b"a\xff", bytearray(b"b")],
        "numpy": [np.float64(2), np.int32(1), np.bool_(True), np.dtype("f4"), np.float16],
        "states": [random.getstate(), random.Random(1), np.random.default_rng(1)],
        "arguments": argparse.Namespace(lr=1, path=pathlib.PurePosixPath("a")),
        "containers": [{1, "a"}, frozenset([1]), collections.deque([1]), collections.Counter("a")],
        "dicts": [collections.defaultdict(list, {"a": [1]}), collections.OrderedDict(a=1)],
        "keys": {(1, 2): 1, None: 2, 2**40: 3, 1.5: 4, b"a": 5, frozenset([1]): 6, Color.RED: 7},
        "dates": [datetime.datetime(2020, 1, 2), datetime.timedelta(1), datetime.UTC],
        "classes": [Color.RED, Color, Settings(a=1), Odd(), uuid.UUID(int=3), slice(1), range(3)],
        "functions": [called, len, print], "itself": itself, "exception": ValueError("a"),
    }  # fmt: skip
    if protocol >= 2:
        found |= {"slots": slotted, "names": WithNames(a=1), "ellipsis": [..., NotImplemented]}
    return found


@pytest.mark.parametrize("protocol", range(6))
def test_other_values_in_a_file_are_ignored(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "called"
    others = {**other_values(protocol), "calls": PickledCall(called, str(marker))}
    for n, (key, value) in enumerate([*others.items(), ("all", others)]):
        folder = tmp_path / str(n)
        folder.mkdir()
        config_file(folder)
        saved = {key: value, "model": stored_tensors("transformer.")}
        torch_archive(folder / "pytorch_model.bin", saved, protocol)
        assert_arrays_equal(arrays_of(folder), arrays_of(TINY))
    assert not marker.exists()


def test_extensions_are_not_looked_up(tmp_path: Path) -> None:
    copyreg.add_extension(__name__, "Settings", 240)
    try:
        torch_archive(
            tmp_path / "pytorch_model.bin",
            {"settings": Settings(a=1), "model": stored_tensors("transformer.")},
        )
    finally:
        copyreg.remove_extension(__name__, "Settings", 240)
    config_file(tmp_path)
    assert_arrays_equal(arrays_of(tmp_path), arrays_of(TINY))


def test_old_opcodes() -> None:
    """Opcodes that picklers no longer write: OBJ, INST, LIST, DICT, STRING, POP, DUP and others."""
    from gpt2c.formats.pickle_reader import PickleReader

    for part, value in (
        (b"S'a\\x41\\101\\n\\\\n\\q\\''\n.", "aAA\n\\n\\q'"),
        (b"U\x02\xe9a.", "éa"), (b"V\\u00e9\n.", "é"), (b"L5L\n.", 5),
        (b"I01\n.", True), (b"I1\n.", 1), (b"F1.5\n.", 1.5), (b"K\x012\x86.", (1, 1)),
        (b"(K\x01K\x02l.", [1, 2]), (b"(K\x01K\x02d.", {1: 2}),
        (b"(K\x01(K\x021t.", (1,)), (b"K\x01p7\n0g7\n.", 1), (b"K\x01N0.", 1), (b"K\x01(0.", 1),
    ):  # fmt: skip
        found = PickleReader(part, {}, lambda _: None).read()
        assert found == value
        assert type(found) is type(value)
    for part in (b"(ca\nB\nK\x01o.", b"(K\x01ia\nB\n."):
        found = PickleReader(part, {}, lambda _: None).read()
        assert (found.path, found.arguments) == ("a.B", (1,))


def test_kinds_of_configurations() -> None:
    """A configuration is a dict or an object with slots; NumPy's integers count as integers."""
    from gpt2c.formats.pickle_reader import PickleReader

    slotted = Slotted()
    slotted.lr = np.int32(-7)  # type: ignore[attr-defined]
    for protocol in range(6):
        raw = pickle.dumps(Settings(n_head=np.uint8(4)), protocol)
        value = PickleReader(raw, {}, lambda _: None).read()
        if protocol >= 2:
            assert fields_of(value) == {"n_head": 4}
            raw = pickle.dumps(slotted, protocol)
            value = PickleReader(raw, {}, lambda _: None).read()
            assert fields_of(value) == {"lr": -7}
            assert has_fields(value, ["lr"])
            assert not has_fields(value, ["lr", "n"])


# ---- nanoGPT and similar projects ----


def nanogpt_state() -> dict[str, np.ndarray]:
    """Return a small model with the transposed matrices of nn.Linear."""
    weights = random_weights(config_of(vocab_size=20, n_positions=8, n_embd=8, n_head=2))
    return {
        f"transformer.{n}": np.ascontiguousarray(a.T) if a.ndim == 2 and n[0] == "h" else a
        for n, a in weights.items()
    }


SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8}


@pytest.mark.parametrize(
    ("saved_config", "activation"),
    [
        ({"model_args": SIZES}, "gelu_new"),
        ({"model_args": {**SIZES, "vocab_size": None, "dropout": 0.1}}, "gelu_new"),
        ({"model_args": {**SIZES, "vocab_size": 20, "bias": True}}, "gelu"),
        ({"model_args": argparse.Namespace(**SIZES, bias=True)}, "gelu"),
        ({"config": argparse.Namespace(**SIZES)}, "gelu_new"),
        ({"args": argparse.Namespace(**SIZES, lr=1e-3)}, "gelu_new"),
        ({"hyper_parameters": {**SIZES, "lr": 1e-3, "bias": True}}, "gelu"),
        ({"hyper_parameters": {"config": argparse.Namespace(**SIZES), "lr": 1}}, "gelu_new"),
    ],
)
def test_sources_of_sizes(saved_config: Any, activation: str, tmp_path: Path) -> None:
    torch_archive(tmp_path / "x.pt", {"state_dict": nanogpt_state(), **saved_config})
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.config.activation_function == activation
        assert checkpoint.config.vocab_size == 20
        assert checkpoint.config.n_positions == 8
        found = checkpoint.read_all()
    for name, array in nanogpt_state().items():
        name = name.removeprefix("transformer.")
        np.testing.assert_array_equal(found[name], array.T if name[0] == "h" else array)


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    saved = {"model": nanogpt_state(), "model_args": {**SIZES, "use_rope": True}}
    torch_archive(tmp_path / "x.pt", saved)
    with pytest.raises(ConfigError, match="unknown model_args: \"'use_rope'\""):
        open_checkpoint(tmp_path / "x.pt")
    saved = {"model": nanogpt_state(), "model_args": {**SIZES, "n_layer": Odd()}}
    torch_archive(tmp_path / "x.pt", saved)
    with pytest.raises(ConfigError, match=r"n_layer is an object of 'test_trainers\.Odd', exp"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("drop", ["transformer.wte.weight", "lm_head.weight"])
def test_one_tensor_of_nanogpts_tied_pair(drop: str, tmp_path: Path) -> None:
    state = nanogpt_state()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    del state[drop]
    torch_archive(tmp_path / "x.pt", {"model": state, "model_args": SIZES})
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.config.tie_word_embeddings
        embedding = checkpoint.read_all()["wte.weight"]
    np.testing.assert_array_equal(embedding, nanogpt_state()["transformer.wte.weight"])
