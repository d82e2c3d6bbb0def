"""llm.c's model files: 256 integers, then the tensors of all blocks, kind by kind.

The layout is that of ``gpt2_write_to_checkpoint`` in its train_gpt2.cu and ``write_model`` in its
train_gpt2.py; matrices are [out, in], and the vocabulary is rounded up.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError
from gpt2c.formats.raw_file import RawFile, RawTensor
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.views import FirstRows, transposed

_HEADER: Final = 1024  # bytes
_VERSIONS: Final = {3: ("F32", 4), 5: ("BF16", 2)}
# Versions 1 and 2, of April 2024, are the same without the padded vocabulary's size.
_MAX_NUMBER: Final = 2**20

_BLOCK_TENSORS: Final = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def open_llmc(path: Path) -> Checkpoint:
    """Open a model file of llm.c, of version 3 (float32) or 5 (bfloat16).

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    file = RawFile(path)
    try:
        config, n_padded, dtype, item_bytes = _header(file)
        sources = _sources(file, config, n_padded, dtype, item_bytes)
        return Checkpoint(config, checked_tensors(config, sources, str(path)), path.parent, (file,))
    except BaseException:
        file.close()
        raise


def _header(file: RawFile) -> tuple[GPT2Config, int, str, int]:
    """The configuration, the rows of wte, and the items' dtype and bytes."""
    _, version, *sizes = struct.unpack("<8i", file.pread(32, 0, "header"))
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{file.path}: found version {version} of llm.c's format, expected 3 (float32) or 5 "
            "(bfloat16)"
        )
    n_positions, n_vocab, n_layer, n_head, n_embd, n_padded = sizes
    if not 0 < n_vocab <= n_padded <= _MAX_NUMBER:
        raise CheckpointError(
            f"{file.path}: found a vocabulary of {n_vocab} padded to {n_padded}, expected the "
            "second to be no smaller"
        )
    config = GPT2Config.from_sizes(
        str(file.path),
        vocab_size=n_vocab,
        n_positions=n_positions,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
    )
    dtype, item_bytes = _VERSIONS[version]
    width = config.n_embd
    n_items = (n_padded + config.n_positions + 2) * width + config.n_layer * (
        12 * width * width + 13 * width
    )
    if file.size != _HEADER + n_items * item_bytes:
        raise CheckpointError(
            f"{file.path}: found {file.size} bytes, expected {_HEADER + n_items * item_bytes} for "
            f"{config.n_layer} blocks of width {width}, {config.n_positions} positions and "
            f"{n_padded} tokens"
        )
    return config, n_padded, dtype, item_bytes


def _sources(
    file: RawFile, config: GPT2Config, n_padded: int, dtype: str, item_bytes: int
) -> dict[str, TensorSource]:
    width = config.n_embd
    found: dict[str, TensorSource] = {}
    place = _HEADER

    def add(name: str, shape: tuple[int, ...]) -> None:
        nonlocal place
        raw = RawTensor(file, name, shape, dtype, place)
        found[name] = transposed(raw) if name.startswith("h.") else raw
        n_items = shape[0] * (shape[1] if len(shape) == 2 else 1)
        place += n_items * item_bytes

    add("wte.weight", (n_padded, width))
    add("wpe.weight", (config.n_positions, width))
    shapes = {
        "c_attn": (3 * width, width),
        "c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
        "attn.c_proj": (width, width),
    }
    for kind in _BLOCK_TENSORS:
        module, _, leaf = kind.rpartition(".")
        rows, columns = next((s for n, s in shapes.items() if module.endswith(n)), (width, 0))
        for block in range(config.n_layer):
            add(f"h.{block}.{kind}", (rows, columns) if leaf == "weight" and columns else (rows,))
    add("ln_f.weight", (width,))
    add("ln_f.bias", (width,))
    # The rows that round the vocabulary up are left out: nothing is ever generated from them.
    found["wte.weight"] = FirstRows(found["wte.weight"], config.vocab_size)
    return found
