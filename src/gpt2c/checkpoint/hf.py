"""A folder in HF format: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpt2c.checkpoint.safetensors_file import SafetensorsFile
from gpt2c.checkpoint.source import Checkpoint, checked_tensors, merged
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointNotFoundError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

# The causal mask and its fill value, which old versions of transformers stored. The whole name
# has to match: "h.0.attn.c_attn.bias" is a weight.
_BUFFER = re.compile(r"h\.(0|[1-9][0-9]{0,6})\.attn\.(bias|masked_bias)", re.ASCII)

# What else weights come in, only to say so.
_OTHER_FORMATS = (
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "ckpt.pt",
    "checkpoint",
    "*.ckpt.index",
    "*.gguf",
    "*.npz",
)


def open_hf_folder(folder: Path) -> Checkpoint:
    """Open a folder; see :func:`gpt2c.checkpoint.open_checkpoint`."""
    missing = [name for name in (CONFIG, WEIGHTS) if not os.path.exists(folder / name)]
    if missing:
        raise CheckpointNotFoundError(_what_is_missing(folder, missing))
    config = GPT2Config.from_json(folder / CONFIG)
    file = SafetensorsFile(folder / WEIGHTS)
    try:
        wanted = (
            (stored, file.source(stored, canonical_name(stored)))
            for stored in file.tensors
            if not _is_buffer(canonical_name(stored), config)
        )
        found = merged(wanted, str(file.path))
        tensors = checked_tensors(config, found, str(file.path))
    except BaseException:
        file.close()
        raise
    return Checkpoint(config, tensors, folder, (file,))


def canonical_name(stored: str) -> str:
    """GPT-2's name of a stored tensor.

    GPT2LMHeadModel saves its body as "transformer.*" and the bare GPT2Model without a prefix;
    the head is "lm_head.weight" in both.
    """
    name = stored.removeprefix("transformer.")
    return stored if name.startswith("lm_head.") else name


def _is_buffer(name: str, config: GPT2Config) -> bool:
    match = _BUFFER.fullmatch(name)
    # Of a block that the model does not have, even a buffer is unexpected.
    return match is not None and int(match[1]) < config.n_layer


def _what_is_missing(folder: Path, missing: list[str]) -> str:
    text = f"{folder}: {' and '.join(missing)} not found; expected {CONFIG} and {WEIGHTS}"
    others = sorted({path.name for glob in _OTHER_FORMATS for path in folder.glob(glob)})
    if WEIGHTS in missing and others:
        text += (
            f". The format of {', '.join(others[:4])} is not read: convert it to one {WEIGHTS} "
            "(from_pretrained and save_pretrained of transformers do it)"
        )
    return text
