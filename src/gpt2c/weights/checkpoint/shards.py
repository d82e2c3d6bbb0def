"""The index of weights that are spread over several files, as Hugging Face writes it.

``model.safetensors.index.json`` (or ``pytorch_model.bin.index.json``) maps each tensor to the name
of the file that holds it. The names come from strangers: none may lead out of the folder.
"""

from __future__ import annotations

from pathlib import Path

from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.errors import CheckpointError, CheckpointNotFoundError

MAX_INDEX = 8 << 20  # bytes: some 80,000 tensors
MAX_SHARDS = 1000  # each is an open file


def read_index(folder: Path, name: str) -> dict[Path, list[str]]:
    """The paths of the shards, and what each has to hold.

    Raises CheckpointError or CheckpointNotFoundError, naming the index, what was found and what
    was expected.
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
    """Raises CheckpointError unless a shard holds just what the index says."""
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(
            f"{path}: missing tensors: {show_list(missing)}; expected because the index says so"
        )
    if unexpected := sorted(set(found) - set(expected)):
        raise CheckpointError(
            f"{path}: unexpected tensors: {show_list(unexpected)}; the index has them elsewhere or "
            "not at all"
        )


def _shard(folder: Path, index: Path, name: str) -> Path:
    """The shard's path, which lies in the folder, or where the hub's cache keeps its files."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{index}: found the file name {show(name)}, expected one in the same folder"
        )
    path = folder / name
    try:
        is_inside = lies_inside(path)
    except FileNotFoundError:
        raise CheckpointNotFoundError(
            f"{index}: names {show(name)}, and {folder} has no such file"
        ) from None
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a surrogate
        raise CheckpointError(f"{index}: {show(name)} cannot be found") from None
    if not is_inside:
        raise CheckpointError(
            f"{index}: {show(name)} is a link to another place, expected a file in the same folder"
        )
    return path


def lies_inside(path: Path) -> bool:
    """Whether a file lies in the folder it is named in, or where the hub's cache keeps its files.

    Raises OSError or RuntimeError where it cannot be followed.
    """
    real = path.resolve(strict=True)
    home = path.parent.resolve(strict=True)
    # The hub's cache has links from snapshots/REVISION to blobs, beside snapshots.
    blobs = home.parent.parent / "blobs"
    return real.parent == home or (home.parent.name == "snapshots" and real.parent == blobs)
