"""Writing a checkpoint as a folder in HF format."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats.tensors import PackedSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.hf import CONFIG, QUANTIZED, WEIGHTS, weights_of
from gpt2c.weights.checkpoint.shards import lies_inside

GENERATION_CONFIG = "generation_config.json"
MAX_BESIDE: Final = 1 << 26  # bytes of a vocabulary


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, save_more: Callable[[Path], None]
) -> None:
    """Writes config.json and the weights; save_more writes what else belongs there.

    The weights are model.safetensors in float32 or, of a packed checkpoint, gpt2c.safetensors.

    A folder that was not there appears when all of it is written; in one that was, each file is
    replaced as a whole; others stay. The weights are in memory twice while they are written.

    Raises CheckpointError where it cannot be written, or weights of a file are not finite.
    """
    import safetensors.numpy  # here because importing gpt2c should not pay for it

    try:
        folder = Path(os.path.abspath(folder))  # "." has no name of its own
        is_path = b"\0" not in os.fsencode(folder)
    except (ValueError, OSError):  # a lone surrogate; no current folder
        is_path = False
    if not is_path:
        raise CheckpointError(f"{show(str(folder))}: cannot be written: it is no path")
    name, tensors, said = _stored(checkpoint)
    _check_place(folder, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gpt2c-", dir=folder.parent) as temporary:
            new = Path(temporary) / folder.name
            new.mkdir()
            save_more(new)
            if checkpoint.folder is not None:
                copy_beside(checkpoint.folder / GENERATION_CONFIG, new / GENERATION_CONFIG)
            text = json.dumps(checkpoint.config.to_dict(), indent=2, sort_keys=True)
            (new / CONFIG).write_text(text + "\n", encoding="utf-8")
            safetensors.numpy.save_file(tensors, new / name, metadata=said)
            shutil.copymode(new / CONFIG, new / name)  # which the library makes private
            if folder.exists():
                _check_places(folder, sorted(new.iterdir()))
                for file in sorted(new.iterdir()):
                    os.replace(file, folder / file.name)
            else:
                os.rename(new, folder)
    except (OSError, safetensors.SafetensorError) as reason:
        raise CheckpointError(f"{folder}: cannot be written: {reason}") from None


def _stored(checkpoint: Checkpoint) -> tuple[str, dict[str, NDArray[Any]], dict[str, str]]:
    """The file's name, what it holds, and what its header says of that."""
    if checkpoint.packing is not None:
        from gpt2c.weights.checkpoint.quantized import metadata

        packed: dict[str, NDArray[Any]] = {}
        for name, source in checkpoint.tensors.items():
            if isinstance(source, PackedSource):
                packed[name] = np.empty(source.packed_shape, dtype=np.uint8)
                source.read_panels(0, packed[name])
            else:
                packed[name] = source.read(0, source.shape[0])
        return QUANTIZED, packed, metadata(checkpoint.packing)
    tensors = {
        name if name.startswith("lm_head.") else f"transformer.{name}": tensor
        for name, tensor in checkpoint.read_all().items()
    }
    return WEIGHTS, tensors, {"format": "pt"}


def _check_place(folder: Path, name: str) -> None:
    """Whoever loads the folder must get what is saved now.

    Raises CheckpointError where quantised weights would lie beside others, which are looked for
    first.
    """
    there = weights_of(folder)
    if name == QUANTIZED and there and there[0] != name:
        raise CheckpointError(
            f"{folder}: holds {there[0]}, which would be loaded instead of {name}; choose another "
            "folder"
        )


def copy_beside(file: Path, to: Path) -> None:
    """Copies a file that lies beside weights, where there is one.

    Raises CheckpointError where it is a link to another place: somebody's secret could be there,
    and what is saved here may be given away.
    """
    if not file.is_file():
        return
    if not lies_inside(file):
        raise CheckpointError(
            f"{file}: is a link to another place, expected a file in the same folder"
        )
    if file.stat().st_size > MAX_BESIDE:
        raise CheckpointError(f"{file}: found more than {MAX_BESIDE} bytes")
    shutil.copyfile(file, to)


def _check_places(folder: Path, files: list[Path]) -> None:
    """Before the first is replaced, that all of them can be."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: cannot be written: found a file, expected a folder")
    for file in files:
        if (folder / file.name).is_dir():
            raise CheckpointError(f"{folder / file.name}: cannot be written: found a folder")
