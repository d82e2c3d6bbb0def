"""Checkpoints: a loader for every kind, and the writer.

Each loader returns a :class:`Checkpoint`: a checked configuration, and a :class:`TensorSource` for
each tensor that the configuration needs. Engines see nothing else. Loaders never execute
anything in a checkpoint, and never download.
"""

from __future__ import annotations

from gpt2c.config import tensor_shapes
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.arrays import from_arrays, from_picogpt, to_picogpt
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, StoredVocabulary
from gpt2c.weights.checkpoint.opening import open_checkpoint
from gpt2c.weights.checkpoint.save import save_checkpoint
from gpt2c.weights.checkpoint.torch_module import from_module

__all__ = [
    "Checkpoint",
    "StoredVocabulary",
    "TensorSource",
    "from_arrays",
    "from_module",
    "from_picogpt",
    "open_checkpoint",
    "save_checkpoint",
    "tensor_shapes",
    "to_picogpt",
]
