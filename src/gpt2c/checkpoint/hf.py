"""A folder in HF format: ``config.json`` and weights, whole or in shards.

The weights are ``model.safetensors`` or, as older versions of transformers wrote them,
``pytorch_model.bin``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from gpt2c.checkpoint.safetensors_file import SafetensorsFile
from gpt2c.checkpoint.shards import check_shard, read_index
from gpt2c.checkpoint.source import Checkpoint, checked_tensors, merged
from gpt2c.checkpoint.torch_file import StateDictFile
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointNotFoundError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# What weights are looked for, in this order; an index names the files of its kind.
_KINDS: Final[tuple[tuple[str, type[SafetensorsFile] | type[StateDictFile]], ...]] = (
    (WEIGHTS, SafetensorsFile),
    ("pytorch_model.bin", StateDictFile),
)
_INDEX: Final = ".index.json"

# The causal mask and its fill value, which old versions of transformers stored. The whole name
# has to match: "h.0.attn.c_attn.bias" is a weight.
_BUFFER = re.compile(r"h\.(0|[1-9][0-9]{0,6})\.attn\.(bias|masked_bias)", re.ASCII)

# What else weights come in, only to say so.
_OTHER_FORMATS = (
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
    found = [
        (name + index, kind)
        for name, kind in _KINDS
        for index in ("", _INDEX)
        if os.path.exists(folder / (name + index))
    ]
    missing = [] if os.path.exists(folder / CONFIG) else [CONFIG]
    missing += [] if found else [WEIGHTS]
    if missing:
        raise CheckpointNotFoundError(_what_is_missing(folder, missing))
    config = GPT2Config.from_json(folder / CONFIG)
    name, kind = found[0]
    files: list[SafetensorsFile | StateDictFile] = []
    try:
        if name.endswith(_INDEX):
            for path, expected in read_index(folder, name).items():
                files.append(kind(path))
                check_shard(path, expected, list(files[-1].tensors))
        else:
            files.append(kind(folder / name))
        where = str(folder / name)
        wanted = (
            (stored, file.named_source(stored, canonical_name(stored)))
            for file in files
            for stored in file.tensors
            if not _is_buffer(canonical_name(stored), config)
        )
        tensors = checked_tensors(config, merged(wanted, where), where)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Checkpoint(config, tensors, folder, tuple(files))


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
