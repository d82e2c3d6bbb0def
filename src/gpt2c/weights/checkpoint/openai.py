"""Opens OpenAI's folders: a TensorFlow checkpoint and ``hparams.json``."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import open_regular, show, show_list
from gpt2c.errors import CheckpointError, CheckpointNotFoundError
from gpt2c.formats.raw_file import closed_on_error
from gpt2c.formats.tensor_bundle import TensorBundle
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, sources_by_name
from gpt2c.weights.checkpoint.shared.hparams import HPARAMS_FILE, config_of_hparams, read_hparams
from gpt2c.weights.checkpoint.shared.views import FirstRows

_log = logging.getLogger(__name__)

LATEST_FILE: Final = "checkpoint"  # TensorFlow's file that names the latest checkpoint

# The suffixes that TensorFlow appends to a checkpoint's prefix: index, graph, data.
_SUFFIX = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})\Z", re.ASCII)

_NAME = re.compile(r"model/(?:h([0-9]{1,7})/)?([a-z_0-9/]+)", re.ASCII)
LEAVES: Final = {"w": "weight", "b": "bias", "g": "weight"}
# The training state: the number of steps, and Adam's moments of every variable.
_TRAINING = re.compile(r".*/Adam(_1)?|beta[12]_power(_1)?|global_step", re.ASCII)


def gpt2_name(stored: str) -> str | None:
    """Return GPT-2's name for one of OpenAI's names; None for other names.

    "model/h0/attn/c_attn/w" becomes "h.0.attn.c_attn.weight".
    """
    match = _NAME.fullmatch(stored)
    if match is None:
        return None
    path = match[2].split("/")
    leaf = LEAVES.get(path[-1])
    if path in (["wte"], ["wpe"]) and match[1] is None:
        return f"{path[0]}.weight"
    if leaf is None or len(path) < 2:
        return None
    block = [] if match[1] is None else ["h", str(int(match[1]))]
    return ".".join([*block, *path[:-1], leaf])


def gpt2_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without the first axis of OpenAI's matrices [1, in, out].

    OpenAI stores matrices as convolution kernels.
    """
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def index_of(path: Path) -> Path | None:
    """Return the index of the TensorFlow checkpoint that `path` names; None if there is none.

    `path` is a prefix such as "run1/model-9", the files' common name without suffix, or the path
    of any of the checkpoint's files.
    """
    name = _SUFFIX.sub("", path.name)
    index = path.with_name(f"{name}.index") if name else path
    return index if os.path.isfile(index) else None


def open_openai_folder(
    folder: Path, index: Path | None = None, hparams: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Open a TensorFlow checkpoint in a folder.

    `index` is the path of the checkpoint's index; None means the latest checkpoint of the folder.
    `hparams` None means the folder's hparams.json.

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    hparams_source = "hparams"
    if hparams is None:
        if not os.path.lexists(folder / HPARAMS_FILE):
            raise CheckpointNotFoundError(
                f"{folder}: found a TensorFlow checkpoint but no {HPARAMS_FILE}, which gives the "
                "number of heads; put the file there, or pass hparams= (--hparams): a path, a dict "
                'such as {"n_head": 12}, or a size such as "124M"'
            )
        hparams, hparams_source = read_hparams(folder), str(folder / HPARAMS_FILE)
    bundle = TensorBundle(_latest(folder) if index is None else index)
    with closed_on_error(bundle):
        where = str(bundle.path)
        found: list[tuple[str, TensorSource]] = []
        unknown: list[str] = []  # unknown tensors of the model
        others: list[str] = []  # tensors outside the model
        for stored, entry in bundle.tensors.items():
            name = gpt2_name(stored)
            if name is not None:
                found.append((stored, bundle.source(stored, name, gpt2_shape(entry.shape))))
            elif _TRAINING.fullmatch(stored) is None:
                (unknown if stored.startswith("model/") else others).append(stored)
        if unknown:
            raise CheckpointError(f"{where}: unexpected tensors: {show_list(sorted(unknown))}")
        if others:
            _log.warning(
                "%s: tensors outside GPT-2 are left out: %s", where, show_list(sorted(others))
            )
        sources = sources_by_name(found, where)
        config = config_of_hparams(hparams, sources, hparams_source)
        sources["wpe.weight"] = FirstRows(sources["wpe.weight"], config.n_positions)
        tensors = checked_tensors(config, sources, where)
        return Checkpoint(config, tensors, folder, tuple(bundle.files))


def _latest(folder: Path) -> Path:
    """Return the index that the file "checkpoint" names, or else the only index in the folder."""
    found = sorted(folder.glob("*.index"))
    if not found:
        raise CheckpointNotFoundError(
            f"{folder}: found no *.index file, expected a TensorFlow checkpoint"
        )
    try:
        with open_regular(folder / LATEST_FILE, CheckpointError) as file:
            latest = (file.read(1 << 16) or b"").decode("utf-8", "replace")
    except CheckpointNotFoundError:
        latest = ""
    match = re.search(r'^model_checkpoint_path: "([^"]*)"', latest, re.MULTILINE)
    if match is not None:
        # Use only the file's name, because the path may be that of another machine. On Windows its
        # parts are separated by backslashes, which are escaped here.
        name = re.split(r"[/\\]", match[1])[-1] + ".index"
        for path in found:
            if path.name == name:
                return path
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: found {show_list([path.name for path in found])}, but no file "
            f"{show(LATEST_FILE)} that names one of them; name the one to load"
        )
    return found[0]
