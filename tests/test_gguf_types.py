"""GGUF's types that the package gguf dequantises: equal weights, and types named in messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt2c.errors import CheckpointError
from gpt2c.formats.gguf_file import _OTHER_TYPES, _TYPES, GGUFFile

gguf = pytest.importorskip("gguf")

QUANTIZED = [id for id, (_, per_block, _) in _TYPES.items() if per_block > 1]


def test_the_sizes_of_blocks_are_the_package_s() -> None:
    for id, (name, per_block, n_bytes) in _TYPES.items():
        kind = gguf.GGMLQuantizationType.__members__.get(name)
        if kind is None:  # an older package
            continue
        assert (kind.value, *gguf.GGML_QUANT_SIZES[kind]) == (id, per_block, n_bytes)
    for id, name in _OTHER_TYPES.items():
        kind = gguf.GGMLQuantizationType.__members__.get(name)
        assert kind is None or kind.value == id


def write(path: Path, raw: np.ndarray, type_id: int) -> None:
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=gguf.GGMLQuantizationType(type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("type_id", QUANTIZED)
def test_weights_equal_the_package_s(type_id: int, tmp_path: Path) -> None:
    """Rows read in parts have the bits that gguf gives for the whole tensor."""
    name, per_block, n_bytes = _TYPES[type_id]
    if name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip(f"this version of gguf has no {name}")
    raw = np.random.default_rng(type_id).integers(0, 256, (6, 2 * n_bytes), dtype=np.uint8)
    write(tmp_path / "model.gguf", raw, type_id)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(type_id))
    file = GGUFFile(tmp_path / "model.gguf")
    try:
        source = file.source("blk.0.ffn_up.weight", "h.0.mlp.c_fc.weight")
        assert source.shape == (6, 2 * per_block)
        for begin, end in ((0, 6), (1, 3), (5, 6), (2, 2)):
            np.testing.assert_array_equal(source.read(begin, end), expected[begin:end])
    finally:
        file.close()


def test_other_types_are_named(tmp_path: Path) -> None:
    raw = np.zeros((2, 292), dtype=np.uint8)
    write(tmp_path / "model.gguf", raw, 15)
    with pytest.raises(CheckpointError, match=r"has ggml's type Q8_K \(15\), expected one of F32"):
        GGUFFile(tmp_path / "model.gguf")
