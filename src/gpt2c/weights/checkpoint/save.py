"""Writes a checkpoint as a folder that transformers can read, or with gpt2c's quantised weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError, MissingDependencyError
from gpt2c.files import long_path, replace_file, temporary_folder
from gpt2c.formats.tensors import PackedSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.hf import CONFIG, QUANTIZED_WEIGHTS, WEIGHTS, weight_files_in
from gpt2c.weights.checkpoint.shared.shards import lies_inside

GENERATION_CONFIG: Final = "generation_config.json"
MAX_COPIED_BYTES: Final = 1 << 26  # bytes of a companion file; vocabularies are the largest


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, save_more: Callable[[Path], None]
) -> None:
    """Write config.json, generation_config.json and the weights; save_more writes other files.

    The weights are written to model.safetensors in float32 or, if the checkpoint is quantised, to
    gpt2c.safetensors without conversion. generation_config.json is copied from the checkpoint's
    folder, if there is one. save_more is called with the temporary folder to write into.

    A new folder appears after all its files are written. In an existing folder, each file is
    replaced atomically; other files stay. The weights are in memory twice while they are written.

    Raises CheckpointError if the folder cannot be written or weights from a file are not finite,
    MissingDependencyError if safetensors is not installed.
    """
    # Lazily: reading needs none of these modules.
    import shutil

    try:
        import safetensors.numpy
    except ImportError:
        raise MissingDependencyError(
            f"{show(str(folder))}: writing weights needs the package safetensors: "
            "pip install safetensors"
        ) from None
    try:
        folder = long_path(Path(os.path.abspath(folder)))  # Path(".").name is empty
        is_path = b"\0" not in os.fsencode(folder)
    except (ValueError, OSError):  # a lone surrogate; no current folder
        is_path = False
    if not is_path:
        raise CheckpointError(f"{show(str(folder))}: cannot be written: it is not a valid path")
    name, tensors, header = _contents(checkpoint)
    _check_not_shadowed(folder, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as temporary:
            new = temporary / folder.name
            new.mkdir()
            save_more(new)
            if checkpoint.folder is not None:
                copy_companion_file(checkpoint.folder / GENERATION_CONFIG, new / GENERATION_CONFIG)
            values = checkpoint.config.to_dict()
            if checkpoint.classifier is not None:
                values |= checkpoint.classifier.settings
            config = json.dumps(values, indent=2, sort_keys=True)
            (new / CONFIG).write_text(config + "\n", encoding="utf-8", newline="\n")
            safetensors.numpy.save_file(tensors, new / name, metadata=header)
            shutil.copymode(new / CONFIG, new / name)  # safetensors makes its files private
            if folder.exists():
                # The weights come first: if they cannot be replaced, because a program on Windows
                # reads them, then no file was replaced.
                files = sorted(new.iterdir(), key=lambda file: (file.name != name, file.name))
                _check_replaceable(folder, files)
                for file in files:
                    replace_file(file, folder / file.name)
            else:
                replace_file(new, folder)
    except (OSError, safetensors.SafetensorError) as reason:
        raise CheckpointError(f"{folder}: cannot be written: {reason}") from None


def _contents(checkpoint: Checkpoint) -> tuple[str, dict[str, NDArray[Any]], dict[str, str]]:
    """Return the weights' file name, tensors (float32, or uint8 panels) and metadata."""
    head = {} if checkpoint.classifier is None else checkpoint.classifier.tensors
    if checkpoint.quantized_dtype is not None:
        from gpt2c.weights.checkpoint.quantized import metadata

        packed: dict[str, NDArray[Any]] = {}
        for name, source in checkpoint.tensors.items():
            if isinstance(source, PackedSource):
                packed[name] = np.empty(source.packed_shape, dtype=np.uint8)
                source.read_panels(0, packed[name])
            else:
                packed[name] = source.read(0, source.shape[0])
        return QUANTIZED_WEIGHTS, {**packed, **head}, metadata(checkpoint.quantized_dtype)
    tensors = {
        name if name.startswith("lm_head.") else f"transformer.{name}": tensor
        for name, tensor in checkpoint.read_all().items()
    }
    return WEIGHTS, {**tensors, **head}, {"format": "pt"}


def _check_not_shadowed(folder: Path, name: str) -> None:
    """Raise CheckpointError if the folder has weights that would be loaded instead of `name`."""
    present = weight_files_in(folder)
    if name == QUANTIZED_WEIGHTS and present and present[0] != name:
        raise CheckpointError(
            f"{folder}: holds {present[0]}, which would be loaded instead of {name}; choose "
            "another folder"
        )


def copy_companion_file(file: Path, to: Path) -> None:
    """Copy a file that accompanies the weights; do nothing if there is no such file.

    Raises CheckpointError for a file larger than MAX_COPIED_BYTES, and for a link to another
    folder: the link could point to a private file, and the copy may be published.
    """
    if not file.is_file():
        return
    if not lies_inside(file):
        raise CheckpointError(
            f"{file}: is a link into another folder, expected a file in the same folder"
        )
    if file.stat().st_size > MAX_COPIED_BYTES:
        raise CheckpointError(
            f"{file}: found {file.stat().st_size} bytes, expected at most {MAX_COPIED_BYTES}"
        )
    import shutil

    shutil.copyfile(file, to)


def _check_replaceable(folder: Path, files: list[Path]) -> None:
    """Raise CheckpointError unless all files can be replaced; call this before replacing any."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: cannot be written: found a file, expected a folder")
    for file in files:
        if (folder / file.name).is_dir():
            raise CheckpointError(f"{folder / file.name}: cannot be written: found a folder")
