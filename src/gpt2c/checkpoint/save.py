"""Writing a checkpoint as a folder in HF format."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2c.checkpoint.hf import CONFIG, WEIGHTS
from gpt2c.checkpoint.source import Checkpoint, check_finite
from gpt2c.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, save_more: Callable[[Path], None]
) -> None:
    """Writes config.json and model.safetensors (float32); save_more writes what else belongs there.

    A folder that was not there appears when all of it is written; in one that was, each file is
    replaced as a whole. The weights are in memory twice while they are written.

    Raises CheckpointError where it cannot be written, or weights of a file are not finite.
    """
    import safetensors.numpy  # here because importing gpt2c should not pay for it

    tensors = {
        name if name.startswith("lm_head.") else f"transformer.{name}": tensor
        for name, tensor in _arrays(checkpoint).items()
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gpt2c-", dir=folder.parent) as temporary:
            new = Path(temporary) / folder.name
            new.mkdir()
            save_more(new)
            source = checkpoint.folder
            if source is not None and (source / GENERATION_CONFIG).is_file():
                shutil.copyfile(source / GENERATION_CONFIG, new / GENERATION_CONFIG)
            text = json.dumps(checkpoint.config.to_dict(), indent=2, sort_keys=True)
            (new / CONFIG).write_text(text + "\n", encoding="utf-8")
            safetensors.numpy.save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
            shutil.copymode(new / CONFIG, new / WEIGHTS)  # which the library makes private
            if folder.exists():
                for file in sorted(new.iterdir()):
                    os.replace(file, folder / file.name)
            else:
                os.rename(new, folder)
    except (OSError, safetensors.SafetensorError) as reason:
        raise CheckpointError(f"{folder}: cannot be written: {reason}") from None


def _arrays(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    arrays = {}
    for name, source in checkpoint.tensors.items():
        arrays[name] = source.read(0, source.shape[0])
        if checkpoint.files:
            check_finite(arrays[name], name, 0, checkpoint.where)
    return arrays
