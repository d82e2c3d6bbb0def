"""Opens llm.c's model files: a header of 256 integers, then the tensors.

The tensors of one kind are stored together for all blocks, then the tensors of the next kind. The
layout is that of ``gpt2_write_to_checkpoint`` in llm.c's train_gpt2.cu and ``write_model`` in its
train_gpt2.py; matrices are [out, in], and the rows of wte are padded.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Final

from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError
from gpt2c.formats.raw_file import RawFile, RawTensor, closed_on_error
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.shared.views import FirstRows, from_linear

_HEADER: Final = 1024  # bytes
# Versions 1 and 2, of April 2024, lack the padded vocabulary's size and are not read.
_VERSIONS: Final = {3: ("F32", 4), 5: ("BF16", 2)}  # dtype, bytes of an element
_MAX_VOCABULARY: Final = 2**20

# The kinds of block tensors, in the order of the file.
_BLOCK_TENSORS: Final = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def open_llmc(path: Path) -> Checkpoint:
    """Open a model file of llm.c, version 3 (float32) or 5 (bfloat16).

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    file = RawFile(path)
    with closed_on_error(file):
        config, n_padded, dtype, element_bytes = _header(file)
        sources = _sources(file, config, n_padded, dtype, element_bytes)
        return Checkpoint(config, checked_tensors(config, sources, str(path)), path.parent, (file,))


def _header(file: RawFile) -> tuple[GPT2Config, int, str, int]:
    """Return the configuration, the stored rows of wte, and the dtype and bytes of an element."""
    _, version, *sizes = struct.unpack("<8i", file.pread(32, 0, "header"))
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{file.path}: found version {version} of llm.c's format, expected 3 (float32) or 5 "
            "(bfloat16)"
        )
    n_positions, n_vocab, n_layer, n_head, n_embd, n_padded = sizes
    if not 0 < n_vocab <= n_padded <= _MAX_VOCABULARY:
        raise CheckpointError(
            f"{file.path}: found a vocabulary of {n_vocab} padded to {n_padded}, expected at "
            f"least one token, and a padded size from that number to {_MAX_VOCABULARY}"
        )
    config = GPT2Config.from_sizes(
        str(file.path),
        vocab_size=n_vocab,
        n_positions=n_positions,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
    )
    dtype, element_bytes = _VERSIONS[version]
    width = config.n_embd
    n_elements = (n_padded + config.n_positions + 2) * width + config.n_layer * (
        12 * width * width + 13 * width
    )
    n_bytes = _HEADER + n_elements * element_bytes
    if file.size != n_bytes:
        raise CheckpointError(
            f"{file.path}: found {file.size} bytes, expected {n_bytes} for {config.n_layer} "
            f"blocks of width {width}, {config.n_positions} positions and {n_padded} tokens"
        )
    return config, n_padded, dtype, element_bytes


def _sources(
    file: RawFile, config: GPT2Config, n_padded: int, dtype: str, element_bytes: int
) -> dict[str, TensorSource]:
    """Return the tensors by GPT-2's names, with matrices as [in, out]."""
    names = (
        "wte.weight",
        "wpe.weight",
        *(f"h.{block}.{kind}" for kind in _BLOCK_TENSORS for block in range(config.n_layer)),
        "ln_f.weight",
        "ln_f.bias",
    )
    shapes = {**tensor_shapes(config), "wte.weight": (n_padded, config.n_embd)}
    found: dict[str, TensorSource] = {}
    offset = _HEADER
    for name in names:
        shape = shapes[name][::-1] if name.startswith("h.") else shapes[name]
        found[name] = from_linear(RawTensor(file, name, shape, dtype, offset))
        offset += math.prod(shape) * element_bytes
    # Drop the padding rows: their tokens do not exist.
    found["wte.weight"] = FirstRows(found["wte.weight"], config.vocab_size)
    return found
