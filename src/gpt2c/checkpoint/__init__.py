"""Checkpoints: where the weights come from.

Every loader ends in a :class:`Checkpoint`, and a backend knows nothing but that: a checked
configuration, and one :class:`TensorSource` for each tensor it calls for. Nothing in a
checkpoint is ever executed, and nothing is fetched.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpt2c.checkpoint.arrays import from_arrays, from_picogpt
from gpt2c.checkpoint.hf import open_hf_folder
from gpt2c.checkpoint.save import save_checkpoint
from gpt2c.checkpoint.source import Checkpoint, TensorSource, tensor_shapes
from gpt2c.errors import CheckpointNotFoundError

__all__ = [
    "Checkpoint",
    "TensorSource",
    "from_arrays",
    "from_picogpt",
    "open_checkpoint",
    "save_checkpoint",
    "tensor_shapes",
]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder in HF format: ``config.json`` with ``model.safetensors`` or

    ``pytorch_model.bin``, whole or in shards.

    The configuration and every tensor's name, shape and dtype are checked here; of the
    weights themselves nothing is read yet, except to compare a tied head that is stored twice.
    Close the result, or use it in a ``with``.

    Raises CheckpointNotFoundError (a FileNotFoundError), ConfigError or CheckpointError (both
    ValueErrors), naming the file, the tensor or key, what was found and what was expected.
    """
    folder = Path(path)
    if not os.path.exists(folder):
        # os.path, unlike pathlib, answers also where a parent may not be entered.
        raise CheckpointNotFoundError(
            f"{folder}: there is no such folder; expected one that holds config.json and "
            "model.safetensors"
        )
    if not os.path.isdir(folder):
        raise CheckpointNotFoundError(
            f"{folder}: found a file, expected the folder that holds config.json and "
            "model.safetensors"
        )
    return open_hf_folder(folder)
