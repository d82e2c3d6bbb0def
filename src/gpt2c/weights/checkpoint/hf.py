"""Opens Hugging Face's folders: ``config.json`` and weights, in one file or in shards.

The weights are ``model.safetensors`` or ``pytorch_model.bin``, which older versions of transformers
wrote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpt2c.checks.untrusted import show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointNotFoundError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile, closed_on_error
from gpt2c.formats.safetensors_file import SafetensorsFile
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, sources_by_name
from gpt2c.weights.checkpoint.classifier import ClassifierHead, head_names, read_head
from gpt2c.weights.checkpoint.foreign import check_format, foreign_format
from gpt2c.weights.checkpoint.shared.names import gpt2_names, is_buffer
from gpt2c.weights.checkpoint.shared.shards import check_shard, read_index
from gpt2c.weights.checkpoint.shared.training_files import is_training_file
from gpt2c.weights.checkpoint.shared.views import with_embedding

if TYPE_CHECKING:
    from gpt2c.weights.checkpoint.shared.state_dict import StateDictFile

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
QUANTIZED_WEIGHTS: Final = "gpt2c.safetensors"
_INDEX: Final = ".index.json"  # the suffix of an index of shards
# File names of weights, in order of preference: safetensors in one file or in shards, torch in one
# file or in shards, and gpt2c's own.
_WEIGHT_FILES: Final = (
    *(name + suffix for name in (WEIGHTS, "pytorch_model.bin") for suffix in ("", _INDEX)),
    QUANTIZED_WEIGHTS,
)
# Weights in formats that gpt2c does not read; an error names them.
_OTHER_FORMATS: Final = ("*.h5", "*.msgpack", "*.onnx", "*.ot")


def open_hf_folder(folder: Path, weights: Path | None = None) -> Checkpoint:
    """Open a folder with config.json and weights.

    `weights` is a file in the folder; None means the preferred file.

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    found = weight_files_in(folder) if weights is None else [weights.name]
    missing = [] if os.path.exists(folder / CONFIG) else [CONFIG]
    missing += [] if found else [WEIGHTS]
    if missing:
        raise CheckpointNotFoundError(_missing_message(folder, missing))
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
                from gpt2c.weights.checkpoint.quantized import quantized_checkpoint  # lazily

                return quantized_checkpoint(files[0], config, folder)
        where = str(folder / name)
        head, of_head = _read_head(files, config, folder / CONFIG, where)
        stored_names = (stored for file in files for stored in file.tensors)
        names = gpt2_names((name for name in stored_names if name not in of_head), where)
        wanted = (
            (stored, file.named_source(stored, names[stored]))
            for file in files
            for stored in file.tensors
            if stored in names and not is_buffer(names[stored], config.n_layer)
        )
        found_tensors = sources_by_name(wanted, where)
        if config.tie_word_embeddings:
            found_tensors = with_embedding(found_tensors)
        tensors = checked_tensors(config, found_tensors, where)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Checkpoint(config, tensors, folder, tuple(files), classifier=head)


def _read_head(
    files: Sequence[SafetensorsFile | StateDictFile], config: GPT2Config, path: Path, where: str
) -> tuple[ClassifierHead | None, set[str]]:
    """Read a classifier's head, if there is one; return it and the stored names of its tensors."""
    found = head_names(stored for file in files for stored in file.tensors)
    if not found:
        return None, set()
    sources = {
        found[stored]: file.named_source(stored, found[stored])
        for file in files
        for stored in file.tensors
        if stored in found
    }
    head = read_head(sources, config, path, where)
    return head, set() if head is None else set(found)


def weight_files_in(folder: Path) -> list[str]:
    """Return the file names of weights in the folder; the first is the one to load."""
    return [name for name in _WEIGHT_FILES if os.path.exists(folder / name)]


def _open_weights(path: Path) -> SafetensorsFile | StateDictFile:
    """Open a file of weights. The content decides the format, because people rename files."""
    with closing(RawFile(path)) as file:
        head = bytes(file.pread(min(9, file.size), 0, "beginning"))
    is_torch = head.startswith(signatures.TORCH) and head[8:] != signatures.SAFETENSORS_NINTH
    if not is_torch:
        weights = SafetensorsFile(path)
        with closed_on_error(weights):
            check_format(str(path), weights.metadata, weights.tensors)
        return weights
    from gpt2c.weights.checkpoint.shared.state_dict import (
        StateDictFile,  # lazily: few checkpoints need it
    )

    return StateDictFile(path)


def _missing_message(folder: Path, missing: list[str]) -> str:
    message = (
        f"{folder}: {' and '.join(missing)} not found; expected {CONFIG} and {WEIGHTS}, or one "
        "checkpoint of another kind"
    )
    others = sorted({path.name for glob in _OTHER_FORMATS for path in folder.glob(glob)})
    if WEIGHTS in missing and others:
        message += f". {others[0]} {foreign_format(others[0])}"
    training = sorted(path.name for path in folder.iterdir() if is_training_file(path.name))
    if WEIGHTS in missing and training:
        message += f". The trainer's files, {show_list(training)}, hold no weights"
    return message
