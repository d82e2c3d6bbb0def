"""Checkpoints of other tools: equal logits for valid ones, errors for hostile ones."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FORMATS, TINY, arrays_of, assert_arrays_equal, assert_logits_close, load

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ConfigError, TokenizerError
from gpt2c.formats.gguf_file import GGUFFile
from gpt2c.formats.tensor_bundle import TensorBundle
from gpt2c.weights.checkpoint import open_checkpoint


def expected_of(folder: Path) -> tuple[list[int], np.ndarray]:
    values = json.loads((folder / "expected.json").read_text())
    values = values["cases"][-1] if "cases" in values else values
    logits = np.frombuffer(base64.b64decode(values["logits"]), "<f4")
    return values["ids"], logits.reshape(len(values["ids"]), -1)


def config_in(path: Path) -> GPT2Config:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config


FIXTURE_FILES = {
    "nanogpt": "nanogpt",
    "nanogpt/ckpt.pt": "nanogpt",
    "nanogpt_no_bias": "nanogpt_no_bias",
    "build_nanogpt": "build_nanogpt",
    "mingpt": "mingpt",
    "mingpt/model.pt": "mingpt",
    "llmc_float32": "llmc_float32",
    "llmc_bfloat16/model.bin": "llmc_bfloat16",
    "gguf/f32.gguf": "gguf",
    "tensorflow": "",
    "tensorflow/model.ckpt.index": "",
    "tensorflow_training": "",
    "torch_zip/pytorch_model.bin": "",
    "torch_legacy/pytorch_model.bin": "",
}


@pytest.mark.parametrize("name", FIXTURE_FILES)
def test_logits_equal_those_of_the_tool(name: str, backend: str, tmp_path: Path) -> None:
    """Logits equal the tool's, and a model saved in Hugging Face's format has the same bits."""
    source = FIXTURE_FILES[name]
    ids, logits = expected_of(FORMATS / source if source else TINY)
    with load(FORMATS / name, backend) as model:
        found = model.logits(ids)
        assert_logits_close(found, logits[:, : model.config.vocab_size])
        model.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved", backend).logits(ids), found)


def copied_as(source: Path, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, to)
    return to


def test_the_format_is_detected_from_the_content(tmp_path: Path) -> None:
    """Load files that have other formats' names, alone in a folder or named directly."""
    for name, new in (
        ("nanogpt/ckpt.pt", "weights.bin"),
        ("llmc_float32/model.bin", "model.pt"),
        ("gguf/f32.gguf", "model.npz"),
        ("mingpt/model.pt", "trained.pth"),
    ):
        path = copied_as(FORMATS / name, tmp_path / name / new)
        if name.startswith("mingpt"):
            shutil.copy(FORMATS / "mingpt" / "config.json", path.parent)
        expected = arrays_of(FORMATS / name)
        for place in (path, path.parent):
            assert_arrays_equal(arrays_of(place), expected)
    # A safetensors file under torch's name, and torch files under the name of safetensors.
    for source, new in (
        (TINY / "model.safetensors", "pytorch_model.bin"),
        (FORMATS / "torch_zip" / "pytorch_model.bin", "model.safetensors"),
        (FORMATS / "torch_legacy" / "pytorch_model.bin", "model.safetensors"),
    ):
        folder = tmp_path / f"{source.parent.name}_swapped"
        copied_as(source, folder / new)
        shutil.copy(TINY / "config.json", folder)
        assert list(arrays_of(folder)) == list(arrays_of(TINY))


def test_several_files_are_ambiguous(tmp_path: Path) -> None:
    copied_as(FORMATS / "nanogpt" / "ckpt.pt", tmp_path / "a.pt")
    copied_as(FORMATS / "nanogpt" / "ckpt.pt", tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"found 'a\.pt', 'b\.pt': name the file to load"):
        open_checkpoint(tmp_path)
    assert arrays_of(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"hello, I am no checkpoint")
    with pytest.raises(CheckpointError, match=r"c\.pt: found b'hello, I' at the beginning"):
        open_checkpoint(tmp_path / "c.pt")
    for raw in (b"", b"a", b"PK\x03\x04", b"\x80", b"GGUF", b"GG"):
        (tmp_path / "c.pt").write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"c\.pt: "):
            open_checkpoint(tmp_path / "c.pt")


def test_converting_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    for name in ("nanogpt_no_bias", "gguf/q4_0.gguf", "tensorflow"):
        to = tmp_path / name.replace("/", "_")
        assert main(["convert", str(FORMATS / name), str(to)]) == 0
        assert_arrays_equal(arrays_of(to), arrays_of(FORMATS / name))
    assert capsys.readouterr().out == ""


# ---- nanoGPT's family ----


def torch_file(path: Path, value: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", value)
        for key, raw in storages.items():
            file.writestr(f"m/data/{key}", raw)
    return path


def changed_pickle(source: Path, to: Path, change: Callable[[bytes], bytes]) -> Path:
    """Copy a torch file with a changed pickle."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for info in old.infolist():
            raw = old.read(info)
            if info.filename.endswith("data.pkl"):
                changed = change(raw)
                assert changed != raw
                raw = changed
            new.writestr(info.filename, raw)
    return to


def test_nanogpt_arguments(tmp_path: Path) -> None:
    def refused(change: Callable[[bytes], bytes], message: str) -> None:
        path = changed_pickle(FORMATS / "nanogpt" / "ckpt.pt", tmp_path / "x.pt", change)
        with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value)

    refused(lambda raw: raw.replace(b"dropout", b"use_moe"), "unknown model_args: \"'use_moe'\"")
    refused(lambda raw: raw.replace(b"n_head", b"n_hood"), "unknown model_args: \"'n_hood'\"")
    refused(
        lambda raw: raw.replace(b"model_args", b"model_argz"), "found weights and no configuration"
    )
    refused(lambda raw: raw.replace(b"c_attn.weight", b"c_attn.weighs"), "missing tensors")
    refused(
        lambda raw: raw.replace(b"X\x06\x00\x00\x00n_head", b"X\x06\x00\x00\x00n_embd"),
        "has the key 'n_embd' twice",
    )
    layers = re.compile(rb"(n_layer(?:q.|r....))K\x02", re.DOTALL)
    for value, message in (
        (b"\x88", "n_layer is True, expected an integer"),
        (b"]", "n_layer is a list, expected an integer"),
        (b"K\x03", r"missing tensors: 'h\.2"),
        (b"J\x00\x00\x08\x00", "too few for n_layer 524288"),
    ):
        refused(lambda raw, value=value: layers.sub(lambda m: m[1] + value, raw), message)


def test_nanogpt_heads_are_tied_if_they_share_a_tensor() -> None:
    config = config_in(FORMATS / "nanogpt")
    assert config.tie_word_embeddings
    assert config.activation_function == "gelu"
    assert not config_in(FORMATS / "mingpt").tie_word_embeddings
    assert config_in(FORMATS / "build_nanogpt").activation_function == "gelu_new"


def test_mingpt_needs_its_configuration(tmp_path: Path) -> None:
    path = copied_as(FORMATS / "mingpt" / "model.pt", tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="found weights and no configuration"):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text('{"model": {"model_type": "gpt-huge"}}')
    with pytest.raises(ConfigError, match="found no n_head and the unknown model_type 'gpt-huge'"):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text('{"model": {"n_head": 5}}')
    with pytest.raises(ConfigError, match="n_embd 12 and n_head 5"):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text('{"model": {"n_head": 3}}')
    assert config_in(tmp_path).n_head == 3


# ---- llm.c ----


def test_llmc_headers(tmp_path: Path) -> None:
    raw = (FORMATS / "llmc_float32" / "model.bin").read_bytes()
    path = tmp_path / "model.bin"
    for place, value, message in (
        (1, 1, "version 1 of llm.c's format, expected 3"),
        (2, 0, "n_positions must be an integer from 1"),
        (2, 7, "found 12352 bytes, expected 12384"),
        (3, 0, "a vocabulary of 0 padded to 128"),
        (3, 129, "a vocabulary of 129 padded to 128"),
        (4, -1, "n_layer must be"),
        (4, 2**30, "n_layer must be"),
        (5, 3, "n_embd 8 and n_head 3"),
        (6, 2**20, "found 12352 bytes, expected"),
        (7, 2**31 - 1, "a vocabulary of 100 padded to"),
    ):
        changed = bytearray(raw)
        changed[4 * place : 4 * place + 4] = struct.pack("<i", value)
        path.write_bytes(changed)
        with pytest.raises((CheckpointError, ConfigError), match=message):
            open_checkpoint(path)
    for changed in (raw[:-1], raw + b"\0", raw[:1024], raw[:31]):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="bytes"):
            open_checkpoint(path)


def test_llmc_padding_of_the_vocabulary_is_dropped() -> None:
    assert config_in(FORMATS / "llmc_float32").vocab_size == 100


# ---- GGUF ----


@pytest.mark.parametrize("name", json.loads((FORMATS / "gguf/samples.json").read_text())["samples"])
def test_gguf_weights_are_dequantised_like_llamacpp(name: str) -> None:
    samples = json.loads((FORMATS / "gguf" / "samples.json").read_text())["samples"][name]
    file = GGUFFile(FORMATS / "gguf" / f"{name}.gguf")
    for tensor, sample in samples.items():
        source = file.source(tensor, tensor)
        items = source.read(0, source.shape[0]).reshape(-1)
        chosen = items[np.linspace(0, items.size - 1, len(sample)).astype(int)]
        # llama.cpp's compiler may have fused the float32 product and sum.
        np.testing.assert_allclose(chosen, sample, rtol=1e-6, atol=1e-7)
        half = source.shape[0] // 2
        parts = np.concatenate([source.read(0, half), source.read(half, source.shape[0])])
        np.testing.assert_array_equal(parts.reshape(-1), items)
    file.close()
    arrays = arrays_of(FORMATS / "gguf" / f"{name}.gguf")
    assert np.array_equal(
        arrays["h.0.attn.c_attn.bias"], arrays_of_f32()["h.0.attn.c_attn.bias"]
    ) or ("k" in name)


def arrays_of_f32() -> dict[str, np.ndarray]:
    return arrays_of(FORMATS / "gguf" / "f32.gguf")


def test_the_tokenizer_of_a_gguf_file(tmp_path: Path) -> None:
    model = GPT2.from_pretrained(FORMATS / "gguf" / "f32.gguf")
    tokenizer = model.tokenizer
    assert tokenizer.encode(" the th<|endoftext|>") == [258, 32, 256, 259]
    assert tokenizer.decode([258, 256]) == " theth"
    assert tokenizer.n_vocab == 260
    assert model.config.eos_token_id == 259
    assert tokenizer.eot_id == 259

    def raise_padding(_: list[int], logits: Any) -> Any:
        return np.where(np.arange(262) == 261, 1e4, logits)

    raised = model.generate([1, 2], max_new_tokens=3, logits_processor=raise_padding)
    assert max(raised) < 260
    # An option that names the id allows it.
    assert model.generate([1, 2], max_new_tokens=3, logit_bias={261: 1e4}) == [261] * 3
    model.save_pretrained(tmp_path / "saved")
    again = GPT2.from_pretrained(tmp_path / "saved")
    assert again.tokenizer.encode(" the th<|endoftext|>") == [258, 32, 256, 259]


def str_of(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_of(
    metadata: list[tuple[str, int, bytes]],
    tensors: list[tuple[str, tuple[int, ...], int, int]],
    data: bytes = b"",
    version: int = 3,
) -> bytes:
    raw = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, kind, value in metadata:
        raw += str_of(key) + struct.pack("<I", kind) + value
    for name, axes, kind, offset in tensors:
        raw += str_of(name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
        raw += struct.pack("<IQ", kind, offset)
    return raw + bytes(-len(raw) % 32) + data


ONE = ("a", (4,), 0, 0)
GGUF_REFUSED = {
    "version 1": (gguf_of([], [], version=1), "version 1 of GGUF"),
    "big-endian": (gguf_of([], [], version=3 << 24), "version 50331648 of GGUF"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors and 0 keys"),
    "many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "9223372036854775808 keys"),
    "a long key": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
        "a string of 4611686018427387904",
    ),
    "a key beyond the end": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 900), "the 0 that are left"),
    "an unknown type": (gguf_of([("k", 99, b"")], []), "a value of type 99"),
    "an unknown array": (gguf_of([("k", 9, struct.pack("<IQ", 99, 1))], []), "a value of type 99"),
    "an array of arrays": (gguf_of([("k", 9, struct.pack("<IQ", 9, 1))], []), "of type 9 at"),
    "a long array": (gguf_of([("k", 9, struct.pack("<IQ", 4, 2**61))], []), "an array of 23058430"),
    "an array beyond": (gguf_of([("k", 9, struct.pack("<IQ", 4, 999999))], []), "bytes at byte"),
    "a key twice": (gguf_of([("k", 7, b"\1"), ("k", 7, b"\1")], []), "has the key 'k' twice"),
    "alignment 0": (
        gguf_of([("general.alignment", 4, struct.pack("<I", 0))], []), "found general.alignment 0"
    ),
    "alignment of text": (gguf_of([("general.alignment", 8, str_of("32"))], []), "alignment '32'"),
    "five axes": (gguf_of([], [("a", (1,) * 5, 0, 0)]), "has 5 axes"),
    "2^42 + 1": (gguf_of([], [("a", (2**42 + 1, 2**42), 0, 0)]), "and an offset of at most"),
    "a wild offset": (gguf_of([], [("a", (4,), 0, 2**60)]), "and an offset of at most"),
    "an odd offset": (gguf_of([], [("a", (4,), 0, 8)], bytes(64)), "expected a multiple of 32"),
    "an unknown ggml type": (gguf_of([], [("a", (4,), 4, 0)]), r"ggml's type Q4_2 \(4\), expec"),
    "a type without a name": (gguf_of([], [("a", (4,), 99, 0)]), "ggml's type 99, expected one"),
    "half a block": (gguf_of([], [("a", (40,), 8, 0)]), r"multiple of 32 \(a block of Q8_0\)"),
    "cut short": (gguf_of([], [ONE], bytes(12)), "the file is cut short"),
    "too long": (gguf_of([], [ONE], bytes(64)), "where the last tensor ends"),
    "a tensor twice": (gguf_of([], [ONE, ONE], bytes(64)), "has tensor 'a' twice"),
    "tensors over each other": (
        gguf_of([], [("a", (16,), 0, 0), ("b", (4,), 0, 32)], bytes(64)), "overlaps"
    ),
    "a gap": (gguf_of([], [("a", (4,), 0, 0), ("b", (4,), 0, 96)], bytes(128)), "leaves a gap"),
    "another architecture": (
        gguf_of([("general.architecture", 8, str_of("llama"))], []), "'llama', expected 'gpt2'"
    ),
    "no sizes": (gguf_of([("general.architecture", 8, str_of("gpt2"))], []), "context_length"),
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF_REFUSED)
def test_refused_gguf(name: str, tmp_path: Path) -> None:
    raw, message = GGUF_REFUSED[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises((CheckpointError, ConfigError), match=message.replace("^", r"\^")) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_inconsistent_gguf_metadata(tmp_path: Path) -> None:
    raw = (FORMATS / "gguf" / "f32.gguf").read_bytes()
    path = tmp_path / "x.gguf"

    def refused(old: bytes, new: bytes, message: str) -> None:
        assert raw.count(old) == 1
        path.write_bytes(raw.replace(old, new))
        with pytest.raises((CheckpointError, ConfigError, TokenizerError), match=message):
            GPT2.from_pretrained(path)

    count = b"gpt2.block_count" + struct.pack("<I", 4)
    refused(
        count + struct.pack("<I", 2), count + struct.pack("<I", 513), "too few for n_layer|miss"
    )
    refused(count + struct.pack("<I", 2), count + struct.pack("<I", 3), "missing tensors: 'h.2")
    refused(b"gpt2.block_count", b"gpt2.block_cound", "found gpt2.block_count None")
    refused(b"blk.1.ffn_up.weight", b"blk.1.ffn_op.weight", "missing tensors")
    refused(
        b"tokenizer.ggml.eos", b"gpt2.attention.abc", "unknown metadata: 'gpt2.attention.abc_to"
    )
    for old, new, message in (
        ("Ġ the".encode(), "Ġ tha".encode(), "joins 'Ġ' and 'tha', but .* has no token 'tha'"),
        (b"gpt-2", b"llama", "its tokenizer splits texts like 'llama'"),
        (b"<|endoftext|>", b"<|endoftex\xbe|>", "it has tokens that are not UTF-8"),
    ):
        path.write_bytes(raw.replace(old, new))
        missing = GPT2.from_pretrained(path).tokenizer
        with pytest.raises(TokenizerError, match=message):
            missing.encode("a")


# ---- TensorFlow ----


def varint(n: int) -> bytes:
    raw = b""
    while n > 127:
        raw += bytes([n & 127 | 128])
        n >>= 7
    return raw + bytes([n])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(dtype: int, shape: tuple[int, ...], offset: int, size: int, **more: bytes) -> bytes:
    axes = b"".join(field(2, field(1, axis)) for axis in shape)
    raw = field(1, dtype) + field(2, axes) + field(4, offset) + field(5, size)
    return raw + b"".join(more.values())


def block(entries: list[tuple[bytes, bytes]], shared: int = 0) -> bytes:
    raw = b"".join(
        varint(shared) + varint(len(key)) + varint(len(value)) + key + value
        for key, value in entries
    )
    return raw + struct.pack("<II", 0, 1)


def index_of(entries: list[tuple[bytes, bytes]], **changes: Any) -> bytes:
    data = changes.get("block", block(entries))
    raw = data + bytes([changes.get("compression", 0)]) + bytes(4)
    handle = varint(changes.get("offset", 0)) + varint(changes.get("size", len(data)))
    at = len(raw)
    listing = block([(b"z", handle)] * changes.get("repeat", 1))
    raw += listing + bytes(5)
    footer = varint(0) + varint(0) + varint(at) + varint(len(listing))
    return raw + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


HEADER = (b"", field(1, 1))
FLOATS = (b"a", entry(1, (2, 2), 0, 16))
BUNDLES_REFUSED = {
    "no header": (index_of([FLOATS]), "has no header"),
    "no shards": (index_of([(b"", field(1, 0))]), "has 0 shards"),
    "a million shards": (index_of([(b"", field(1, 10**6))]), "has 1000000 shards"),
    "big-endian": (index_of([(b"", field(1, 1) + field(2, 1))]), "big-endian"),
    "compressed": (index_of([HEADER], compression=1), "compressed block"),
    "a block outside": (index_of([HEADER], offset=10**6), "outside the file|footer"),
    "a block of 2^60": (index_of([HEADER], size=2**60), "footer begins|outside"),
    "a block twice": (index_of([HEADER, FLOATS], repeat=2), "overlaps the one before"),
    "restarts beyond": (
        index_of([], block=b"\0\0\0\0" + struct.pack("<I", 2**31)), "restarts, which do not fit"
    ),
    "a key that shares": (index_of([], block=block([HEADER], shared=3)), "shares 3 bytes"),
    "a value beyond": (index_of([], block=b"\0\1\xff\x7fa" + bytes(8)), "16383 bytes where"),
    "an endless number": (index_of([], block=b"\xff" * 12 + bytes(8)), "more than ten bytes"),
    "a wire type": (index_of([HEADER, (b"a", b"\x0b")]), "wire type 3"),
    "an unknown dtype": (index_of([HEADER, (b"a", entry(7, (2,), 0, 8))]), "of type 7"),
    "sizes that differ": (index_of([HEADER, (b"a", entry(1, (2, 2), 0, 20))]), "of 20 bytes"),
    "overflow": (index_of([HEADER, (b"a", entry(1, (2**40,) * 2, 0, 16))]), "which overflows"),
    "a negative axis": (index_of([HEADER, (b"a", entry(1, (2**64 - 1,), 0, 4))]), "an axis of"),
    "many axes": (index_of([HEADER, (b"a", entry(1, (1,) * 9, 0, 4))]), "of more than 8 axes"),
    "slices": (index_of([HEADER, (b"a", entry(1, (1,), 0, 4, s=field(7, b"")))]), "in slices"),
    "beyond the data": (index_of([HEADER, (b"a", entry(1, (9,), 0, 36))]), "the file is cut short"),
    "overlapping": (
        index_of([HEADER, FLOATS, (b"b", entry(1, (2,), 8, 8))]), "'b' overlaps the one before"
    ),
    "a tensor twice": (index_of([HEADER, FLOATS, FLOATS]), "has tensor 'a' twice"),
    "another shard": (
        index_of([HEADER, (b"a", entry(1, (1,), 0, 4, s=field(3, 5)))]), "in shard 5 of 1"
    ),
    "no table": (bytes(100), "is not the index of a TensorFlow checkpoint"),
    "nothing": (b"", "is not the index of a TensorFlow checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", BUNDLES_REFUSED)
def test_refused_bundles(name: str, tmp_path: Path) -> None:
    raw, message = BUNDLES_REFUSED[name]
    (tmp_path / "model.ckpt.index").write_bytes(raw)
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(16))
    with pytest.raises(CheckpointError, match=message) as caught:
        TensorBundle(tmp_path / "model.ckpt.index")
    assert "model.ckpt.index: " in str(caught.value)


def test_a_bundle_made_by_hand(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(index_of([HEADER, FLOATS]))
    with pytest.raises(CheckpointNotFoundError, match="data-00000-of-00001"):
        TensorBundle(tmp_path / "x.index")
    (tmp_path / "x.data-00000-of-00001").write_bytes(np.arange(4, dtype="<f4").tobytes())
    bundle = TensorBundle(tmp_path / "x.index")
    np.testing.assert_array_equal(bundle.source("a", "a", (2, 2)).read(1, 2), [[2, 3]])
    bundle.close()


def test_openai_folders(tmp_path: Path) -> None:
    folder = shutil.copytree(FORMATS / "tensorflow", tmp_path / "model")
    (folder / "hparams.json").write_text('{"n_vocab": 4, "n_head": 5}')
    with pytest.raises(
        CheckpointError, match=r"hparams\.json: n_vocab is 4, and the tensors have 3"
    ):
        open_checkpoint(folder)
    (folder / "hparams.json").write_text('{"n_head": 5, "n_ctx": 4}')
    assert config_in(folder).n_positions == 4
    # The file "checkpoint" names the latest checkpoint; only the file name in its path is used.
    for end in ("index", "data-00000-of-00001"):
        shutil.copy(folder / f"model.ckpt.{end}", folder / f"model-2.{end}")
    (folder / "checkpoint").write_text('model_checkpoint_path: "/etc/model-2"\n')
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.files[0].path.name == "model-2.index"  # type: ignore[attr-defined]
    (folder / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"found 'model-2\.index', 'model\.ckpt\.index'"):
        open_checkpoint(folder)
    with open_checkpoint(folder / "model-2.index") as checkpoint:
        assert checkpoint.config.n_layer == 2
    (folder / "model-2.index").unlink()
    raw = (folder / "model.ckpt.index").read_bytes()
    (folder / "model.ckpt.index").write_bytes(raw.replace(b"wpe", b"wqe"))
    with pytest.raises(CheckpointError, match=r"unexpected tensors: 'model/wqe'"):
        open_checkpoint(folder)


# ---- .npz ----


def picogpt_names(arrays: dict[str, np.ndarray], joint: str) -> dict[str, np.ndarray]:
    result = {}
    for name, array in arrays.items():
        path = name.split(".")
        leaf = {"weight": "g" if "ln_" in name else "w", "bias": "b"}[path[-1]]
        path = [path[0]] if path[0] in ("wte", "wpe") else [*path[:-1], leaf]
        result[joint.join("blocks" if part == "h" else part for part in path)] = array
    return result


@pytest.mark.parametrize("names", ["gpt2", "picogpt.", "picogpt/", "openai", "transformer"])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(names: str, compressed: bool, tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    n_head = json.loads((TINY / "config.json").read_text())["n_head"]
    stored: dict[str, Any] = dict(arrays)
    if names.startswith("picogpt"):
        stored = picogpt_names(arrays, names[-1])
    elif names == "transformer":
        stored = {f"transformer.{name}": np.asfortranarray(a) for name, a in arrays.items()}
    elif names == "openai":
        pico = picogpt_names(arrays, "/")
        stored = {"model/" + name.replace("blocks/", "h", 1): a for name, a in pico.items()}
        stored = {name: a[None] if name.endswith("/w") else a for name, a in stored.items()}
    if names in ("picogpt.", "openai"):
        stored["n_head"] = np.array(n_head)
    elif names == "picogpt/":
        (tmp_path / "hparams.json").write_text(json.dumps({"n_head": n_head}))
    else:
        shutil.copy(TINY / "config.json", tmp_path)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "weights.npz", **stored)
    for place in (tmp_path / "weights.npz", tmp_path):
        assert_arrays_equal(arrays_of(place), arrays)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_npz_dtypes(dtype: str, tmp_path: Path) -> None:
    arrays = {name: array.astype(dtype) for name, array in arrays_of(TINY).items()}
    np.savez_compressed(tmp_path / "x.npz", **arrays, n_head=5)
    for name, array in arrays_of(tmp_path / "x.npz").items():
        np.testing.assert_array_equal(array, arrays[name].astype("f4"))


def npy(header: str, data: bytes = b"") -> bytes:
    raw = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
NPZ_REFUSED = {
    "no array": (b"hello", "is not a NumPy array"),
    "nothing": (b"", "is not a NumPy array"),
    "code": (npy("__import__('os').system('true')"), "expected the header of an array"),
    "objects": (npy(GOOD.replace("<f4", "|O")), "expected the header of an array"),
    "big-endian": (npy(GOOD.replace("<f4", ">f4"), bytes(16)), "expected the header of an array"),
    "a negative axis": (npy(GOOD.replace("(2, 2)", "(-2, 2)")), "expected the header of an array"),
    "overflow": (npy(GOOD.replace("(2, 2)", f"({2**40}, {2**40})")), "which overflows"),
    "cut": (npy(GOOD, bytes(15)), "bytes, expected "),
    "too long": (npy(GOOD, bytes(17)), "bytes, expected "),
    "a long header": (npy(GOOD + " " * 20000), "expected the header of an array"),
    "nested": (npy("(" * 5000), "expected the header of an array"),
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ_REFUSED)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_refused_npz(name: str, compression: int, tmp_path: Path) -> None:
    raw, message = NPZ_REFUSED[name]
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as file:
        file.writestr("wte.npy", raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(caught.value)


def test_npz_sizes_and_archive_bombs(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays_of(TINY))
    with pytest.raises(CheckpointError, match="n_head is missing"):
        open_checkpoint(path)
    np.savez(path, **arrays_of(TINY), n_head=np.array([1, 2]))
    with pytest.raises(CheckpointError, match="expected one integer"):
        open_checkpoint(path)
    np.savez(path, **arrays_of(TINY), n_head=5, n_layer=3)
    with pytest.raises(CheckpointError, match="n_layer is 3, and the tensors have 2"):
        open_checkpoint(path)
    # The archive's directory claims that a few bytes inflate to a gigabyte.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("wte.npy", npy(GOOD, bytes(16)))
    raw = bytearray(buffer.getvalue())
    at = raw.rindex(b"PK\x01\x02") + 24
    raw[at : at + 4] = struct.pack("<I", 2**30)
    path.write_bytes(raw)
    with pytest.raises(
        CheckpointError, match="that expand to 1073741824, expected at most 1048576"
    ):
        open_checkpoint(path)
    raw[at : at + 4] = struct.pack("<I", 2000)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="does not inflate to the 2000 bytes"):
        open_checkpoint(path)


def test_npz_of_zeros_that_would_expand(tmp_path: Path) -> None:
    """Half a megabyte can inflate to 512 MB of zeros; small arrays of zeros are common."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **{**arrays_of(TINY), "h.0.ln_1.bias": np.zeros(10), "n_head": 5})
    assert config_in(path).n_layer == 2
    np.savez_compressed(path, wte=np.zeros((2**20, 8), dtype="f4"))
    with pytest.raises(CheckpointError, match=r"expand to 33554560, expected at most"):
        open_checkpoint(path)


def test_npz_offsets_beyond_the_file(tmp_path: Path) -> None:
    """ZIP64 offsets have 64 bits, but pread takes 63."""
    name = b"wte.npy"
    local = b"PK\3\4" + bytes(22) + struct.pack("<HH", len(name), 0) + name + b"x"
    for offset in (2**64 - 1, 2**63, 2**62, len(local) + 1000):
        extra = struct.pack("<HHQ", 1, 8, offset)
        head = (45, 3, 45, 0, 0, 0, 0, 0, 0, 1, 1, len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
        directory = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *head) + name + extra
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), len(local), 0)
        (tmp_path / "x.npz").write_bytes(local + directory + end)
        with pytest.raises(CheckpointError, match=r"cut short|not a readable archive"):
            open_checkpoint(tmp_path / "x.npz")


def test_bundle_names_with_shared_prefixes(tmp_path: Path) -> None:
    """A few bytes of a TensorFlow index can repeat a long name."""
    value = entry(1, (), 0, 4)
    long = block([(b"", field(1, 1)), (b"x" * 600, value)])
    (tmp_path / "x.index").write_bytes(index_of([], block=long))
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(16))
    with pytest.raises(CheckpointError, match="a key of 600 bytes"):
        TensorBundle(tmp_path / "x.index")
    (tmp_path / "x.index").write_bytes(index_of([HEADER, (b"\xff", value)]))
    with pytest.raises(CheckpointError, match="which is not UTF-8"):
        TensorBundle(tmp_path / "x.index")


def test_pickles_that_would_take_long_to_read(tmp_path: Path) -> None:
    """Such pickles have keys with equal hashes, or use a large tuple repeatedly."""
    prime = 2**61 - 1
    keys = b"".join(
        b"\x8a\x0b" + (n * prime + 1).to_bytes(11, "little") + b"N" for n in range(1, 9)
    )
    large = b"q\0(" + b"K\1" * 1000 + b"tq\1"
    for raw, message in (
        (b"\x80\x02}(" + keys + b"u.", "found a dict of [0-9]{19,}, "),
        (b"\x80\x02ctorch\nSize\n" + large + b"h\0h\1R.", "1000 arguments, expected at most 16"),
        (b"\x80\x02ctorch\nSize\n" + large + b"h\0h\1\x85R.", "not sizes"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(torch_file(tmp_path / "x.pt", raw, {}))


def test_biases_are_all_present_or_all_missing(tmp_path: Path) -> None:
    no_bias = FORMATS / "nanogpt_no_bias" / "ckpt.pt"
    path = changed_pickle(
        no_bias, tmp_path / "x.pt", lambda raw: raw.replace(b"h.1.ln_1.weight", b"h.1.attn_.bias_")
    )
    with pytest.raises(CheckpointError, match="missing tensors: 'h"):
        open_checkpoint(path)
    path = changed_pickle(
        FORMATS / "nanogpt" / "ckpt.pt", tmp_path / "y.pt",
        lambda raw: re.sub(rb"(biasr....)\x88", lambda m: m[1] + b"\x89", raw, flags=re.DOTALL),
    )  # fmt: skip
    with pytest.raises(
        CheckpointError, match=r"'h\.0\.attn\.c_attn\.bias'.* says that there are no"
    ):
        open_checkpoint(path)


def test_tensors_that_share_one_storage(tmp_path: Path) -> None:
    """A small torch file whose tensors all share one storage would expand to a large model."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"M\x00\x04tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00M\x00\x04\x85K\x01\x85\x89NtR"
    )
    names = [b"U\x0ch.%03d.ln_1.b" % n for n in range(200)]
    raw = b"\x80\x02}(" + names[0] + tensor + b"q\x01"
    raw += b"".join(name + b"h\x01" for name in names[1:]) + b"u."
    path = torch_file(tmp_path / "x.pt", raw, {"0": bytes(4096)})
    with pytest.raises(CheckpointError, match="exceed twice the file"):
        open_checkpoint(path)
