"""A folder in HF format: ``config.json`` and weights, whole or in shards.

The weights are ``model.safetensors`` or, as older versions of transformers wrote them,
``pytorch_model.bin``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpt2c.checks.untrusted import show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointNotFoundError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile
from gpt2c.formats.safetensors_file import SafetensorsFile
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, merged
from gpt2c.weights.checkpoint.names import gpt2_names, is_buffer
from gpt2c.weights.checkpoint.shards import check_shard, read_index
from gpt2c.weights.checkpoint.training_files import is_training_file
from gpt2c.weights.checkpoint.views import with_embedding

if TYPE_CHECKING:
    from gpt2c.weights.checkpoint.state_dict import StateDictFile

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# What weights are looked for, in this order; an index names the files of its kind.
_WEIGHTS: Final = (WEIGHTS, "pytorch_model.bin")
QUANTIZED: Final = "gpt2c.safetensors"  # and where there are none of them, ours
_INDEX: Final = ".index.json"

# What else transformers has written weights in, only to say so.
_OTHER_FORMATS = ("tf_model.h5", "flax_model.msgpack")


def has_weights(folder: Path) -> bool:
    """Whether there are weights by one of Hugging Face's names, or ours."""
    return bool(weights_of(folder))


def open_hf_folder(folder: Path, weights: Path | None = None) -> Checkpoint:
    """Open a folder, or, with its configuration, the one file of it that is given.

    See :func:`gpt2c.weights.checkpoint.open_checkpoint`.
    """
    found = weights_of(folder) if weights is None else [weights.name]
    missing = [] if os.path.exists(folder / CONFIG) else [CONFIG]
    missing += [] if found else [WEIGHTS]
    if missing:
        raise CheckpointNotFoundError(_what_is_missing(folder, missing))
    config = GPT2Config.from_json(folder / CONFIG)
    name = found[0]
    files: list[SafetensorsFile | StateDictFile] = []
    try:
        if name.endswith(_INDEX):
            for path, expected in read_index(folder, name).items():
                files.append(_open_weights(path))
                check_shard(path, expected, list(files[-1].tensors))
        else:
            files.append(_open_weights(folder / name))
            if isinstance(files[0], SafetensorsFile) and "gpt2c" in files[0].metadata:
                from gpt2c.weights.checkpoint.quantized import quantized_checkpoint  # few need it

                return quantized_checkpoint(files[0], config, folder)
        where = str(folder / name)
        names = gpt2_names((stored for file in files for stored in file.tensors), where)
        wanted = (
            (stored, file.named_source(stored, names[stored]))
            for file in files
            for stored in file.tensors
            if stored in names and not is_buffer(names[stored], config.n_layer)
        )
        found_tensors = merged(wanted, where)
        if config.tie_word_embeddings:
            found_tensors = with_embedding(found_tensors)
        tensors = checked_tensors(config, found_tensors, where)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Checkpoint(config, tensors, folder, tuple(files))


def weights_of(folder: Path) -> list[str]:
    """The names of weights that are there; the first is what is loaded."""
    names = [*(name + index for name in _WEIGHTS for index in ("", _INDEX)), QUANTIZED]
    return [name for name in names if os.path.exists(folder / name)]


def _open_weights(path: Path) -> SafetensorsFile | StateDictFile:
    """By what the file holds: of renamed ones there are many."""
    with_file = RawFile(path)
    try:
        head = bytes(with_file.pread(min(9, with_file.size), 0, "beginning"))
    finally:
        with_file.close()
    is_torchs = head.startswith(signatures.TORCH)
    is_torchs &= head[8:] != signatures.SAFETENSORS_NINTH
    if not is_torchs:
        return SafetensorsFile(path)
    from gpt2c.weights.checkpoint.state_dict import StateDictFile  # lazily: few checkpoints need it

    return StateDictFile(path)


def _what_is_missing(folder: Path, missing: list[str]) -> str:
    text = (
        f"{folder}: {' and '.join(missing)} not found; expected {CONFIG} and {WEIGHTS}, or one "
        "checkpoint of another kind"
    )
    others = sorted({path.name for glob in _OTHER_FORMATS for path in folder.glob(glob)})
    if WEIGHTS in missing and others:
        text += (
            f". The format of {', '.join(others[:4])} is not read: convert it to one {WEIGHTS} "
            "(from_pretrained and save_pretrained of transformers do it)"
        )
    training = sorted(path.name for path in folder.iterdir() if is_training_file(path.name))
    if WEIGHTS in missing and training:
        text += f". What a trainer saved besides, {show_list(training)}, holds no weights"
    return text
