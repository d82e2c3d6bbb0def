"""OpenAI's own folders: a TensorFlow checkpoint with ``hparams.json``."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import open_regular, show, show_list
from gpt2c.errors import CheckpointError, CheckpointNotFoundError
from gpt2c.formats.tensor_bundle import TensorBundle
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, merged
from gpt2c.weights.checkpoint.hparams import HPARAMS, config_of_hparams, read_hparams
from gpt2c.weights.checkpoint.views import FirstRows

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

LATEST: Final = "checkpoint"  # TensorFlow's file that names the latest checkpoint

# TensorFlow's suffixes to a checkpoint's prefix: index, data, graph.
_ENDING = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})\Z", re.ASCII)

_NAME = re.compile(r"model/(?:h([0-9]{1,7})/)?([a-z_0-9/]+)", re.ASCII)
_LEAVES: Final = {"w": "weight", "b": "bias", "g": "weight"}
# What training adds: its steps, and the moments of Adam, of every variable.
_TRAINING = re.compile(r".*/Adam(_1)?|beta[12]_power(_1)?|global_step", re.ASCII)


def gpt2_name(stored: str) -> str | None:
    """GPT-2's name of one of OpenAI's: "model/h0/attn/c_attn/w" is "h.0.attn.c_attn.weight"."""
    match = _NAME.fullmatch(stored)
    if match is None:
        return None
    path = match[2].split("/")
    leaf = _LEAVES.get(path[-1])
    if path in (["wte"], ["wpe"]) and match[1] is None:
        return f"{path[0]}.weight"
    if leaf is None or len(path) < 2:
        return None
    block = [] if match[1] is None else ["h", str(int(match[1]))]
    return ".".join([*block, *path[:-1], leaf])


def gpt2_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the first axis of 1 that OpenAI's matrices have, as kernels of convolutions."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def index_of(path: Path) -> Path | None:
    """The index of the TensorFlow checkpoint that `path` names; None if there is no index.

    `path` is a prefix such as "run1/model-9", which is the files' name without suffix, or any of
    the checkpoint's files.
    """
    name = _ENDING.sub("", path.name)
    index = path.with_name(f"{name}.index") if name else path
    return index if os.path.isfile(index) else None


def open_openai_folder(
    folder: Path, index: Path | None = None, hparams: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Open a folder's TensorFlow checkpoint, `index` or the latest.

    hparams default to the file hparams.json.

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    where_sizes_are = "hparams"
    if hparams is None:
        if not os.path.lexists(folder / HPARAMS):
            raise CheckpointNotFoundError(
                f"{folder}: found a TensorFlow checkpoint and no {HPARAMS}, which tells the number "
                "of heads; put the model's there, or pass hparams= (--hparams): a path, a dict "
                'such as {"n_head": 12}, or a size such as "124M"'
            )
        hparams, where_sizes_are = read_hparams(folder), str(folder / HPARAMS)
    bundle = TensorBundle(_latest(folder) if index is None else index)
    try:
        where = str(bundle.path)
        found: list[tuple[str, TensorSource]] = []
        unknown: list[str] = []  # of the model
        others: list[str] = []
        for stored, entry in bundle.tensors.items():
            name = gpt2_name(stored)
            if name is not None:
                source = bundle.source(stored, name, gpt2_shape(entry.shape))
                found.append((stored, source))
            elif stored.startswith("model/") and _TRAINING.fullmatch(stored) is None:
                unknown.append(stored)
            elif _TRAINING.fullmatch(stored) is None:
                others.append(stored)
        if unknown:
            raise CheckpointError(f"{where}: unexpected tensors: {show_list(sorted(unknown))}")
        if others:
            _log.warning(
                "%s: tensors outside of GPT-2 are left out: %s", where, show_list(sorted(others))
            )
        sources = merged(found, where)
        n_layer = sum(name.endswith(".ln_1.weight") for name in sources)
        config = config_of_hparams(hparams, sources, n_layer, where_sizes_are)
        sources["wpe.weight"] = FirstRows(sources["wpe.weight"], config.n_positions)
        tensors = checked_tensors(config, sources, where)
    except BaseException:
        bundle.close()
        raise
    return Checkpoint(config, tensors, folder, tuple(bundle.files))


def _latest(folder: Path) -> Path:
    """The index that the file "checkpoint" names, or the only one."""
    found = sorted(folder.glob("*.index"))
    if not found:
        raise CheckpointNotFoundError(
            f"{folder}: found {HPARAMS} and no *.index, expected a TensorFlow checkpoint"
        )
    try:
        with open_regular(folder / LATEST, CheckpointError) as file:
            text = (file.read(1 << 16) or b"").decode("utf-8", "replace")
    except CheckpointNotFoundError:
        text = ""
    match = re.search(r'^model_checkpoint_path: "([^"\\]*)"', text, re.MULTILINE)
    if match is not None:
        # Only compared with what is there, for training wrote it, perhaps with its own folders.
        name = match[1].rsplit("/", 1)[-1] + ".index"
        for path in found:
            if path.name == name:
                return path
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: found {show_list([path.name for path in found])}, and no file "
            f"{show(LATEST)} that names one of them; name the one to load"
        )
    return found[0]
