"""Reads Hugging Face's index of weights in several files (shards).

``model.safetensors.index.json`` (or ``pytorch_model.bin.index.json``) maps each tensor to the name
of the file that holds it. The names are untrusted: no name may lead out of the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.errors import CheckpointError, CheckpointNotFoundError
from gpt2c.files import is_file_name

MAX_INDEX: Final = 8 << 20  # bytes: about 80,000 tensors
MAX_SHARDS: Final = 1000  # every shard stays open


def read_index(folder: Path, name: str) -> dict[Path, list[str]]:
    """Return the shards' paths, and the tensor names that each must hold.

    Raises CheckpointNotFoundError if the index or a shard is missing, CheckpointError if the index
    is malformed or a shard lies outside the folder.
    """
    path = folder / name
    index = read_json_object(path, limit=MAX_INDEX, error=CheckpointError, strict=True)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: found weight_map {show(weight_map)}, expected an object of file names"
        )
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(
                f"{path}: tensor {show(tensor)}: found {show(shard)}, expected a file's name"
            )
        shards.setdefault(shard, []).append(tensor)
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path}: found {len(shards)} files, expected at most {MAX_SHARDS}")
    return {_shard(folder, path, shard): tensors for shard, tensors in shards.items()}


def check_shard(path: Path, expected: list[str], found: list[str]) -> None:
    """Raise CheckpointError unless a shard holds exactly the tensors that the index lists."""
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(
            f"{path}: missing tensors: {show_list(missing)}; the index lists them for this file"
        )
    if unexpected := sorted(set(found) - set(expected)):
        raise CheckpointError(
            f"{path}: unexpected tensors: {show_list(unexpected)}; the index lists them for "
            "another file or not at all"
        )


def _shard(folder: Path, index: Path, name: str) -> Path:
    """Return a shard's path; raise CheckpointError unless lies_inside is true of it."""
    if not is_file_name(name):
        raise CheckpointError(
            f"{index}: found the file name {show(name)}, expected a name in the same folder"
        )
    path = folder / name
    try:
        is_inside = lies_inside(path)
    except FileNotFoundError:
        raise CheckpointNotFoundError(
            f"{index}: names {show(name)}, and {folder} has no such file"
        ) from None
    except (OSError, RuntimeError, ValueError):  # a loop of links, a long name, a surrogate
        raise CheckpointError(f"{index}: the path of {show(name)} cannot be resolved") from None
    if not is_inside:
        raise CheckpointError(
            f"{index}: {show(name)} is a link into another folder, expected a file in the same "
            "folder"
        )
    return path


def lies_inside(path: Path) -> bool:
    """Return whether a file, after following links, lies in its folder or in the hub's cache.

    Raises OSError or RuntimeError if the links cannot be followed.
    """
    real = path.resolve(strict=True)
    folder = path.parent.resolve(strict=True)
    # In the hub's cache, files in snapshots/REVISION are links into blobs/, beside snapshots/.
    blobs = folder.parent.parent / "blobs"
    return real.parent == folder or (folder.parent.name == "snapshots" and real.parent == blobs)
