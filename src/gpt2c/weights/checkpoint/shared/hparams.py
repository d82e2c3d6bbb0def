"""OpenAI's ``hparams``, which picoGPT uses too: n_vocab, n_ctx, n_embd, n_head and n_layer."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2c.errors import CheckpointError, OptionError, OptionTypeError
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.shared.names import count_blocks

HPARAMS_FILE: Final = "hparams.json"
_MAX_FILE: Final = 1 << 20  # bytes

_log = logging.getLogger(__name__)

# OpenAI's names of its models; two were renamed after a recount of their parameters.
_SMALL: Final = {"n_embd": 768, "n_head": 12, "n_layer": 12}
_MEDIUM: Final = {"n_embd": 1024, "n_head": 16, "n_layer": 24}
_SIZES: Final[Mapping[str, Mapping[str, int]]] = {
    "117M": _SMALL,
    "124M": _SMALL,
    "345M": _MEDIUM,
    "355M": _MEDIUM,
    "774M": {"n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_embd": 1600, "n_head": 25, "n_layer": 48},
}


def given_hparams(value: object) -> dict[str, Any]:
    """Return the hparams of the option: a dict, a path to a file or its folder, or an OpenAI size.

    Raises OptionTypeError for another type, OptionError for a string that is neither a path nor
    a size, and for a file the errors of :func:`read_hparams`.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise OptionTypeError(
            f"hparams is {show(value)}; it must be a dict, a path, or a name such as '124M'"
        )
    path = Path(value)
    if os.path.isdir(path):
        return read_hparams(path)
    if os.path.exists(path):
        return read_json_object(path, limit=_MAX_FILE, error=CheckpointError)
    if str(value) not in _SIZES:
        raise OptionError(
            f"hparams is {show(str(value))}, and there is no such file; it must be a dict, the "
            f"path of an {HPARAMS_FILE}, or one of {', '.join(_SIZES)}"
        )
    return {"n_vocab": GPT2_VOCAB_SIZE, "n_ctx": 1024, **_SIZES[str(value)]}


def refuse_hparams(path: Path, hparams: Mapping[str, Any] | None) -> None:
    """Raise OptionError if hparams are given for a checkpoint that has its own number of heads."""
    if hparams is not None:
        raise OptionError(
            f"hparams and n_head are for checkpoints that do not store the number of heads, but "
            f"{path} is of another kind: leave them out"
        )


def read_hparams(folder: Path) -> dict[str, Any]:
    """Read the folder's hparams.json.

    Raises CheckpointNotFoundError if there is no such file, CheckpointError if the file is not a
    JSON object.
    """
    return read_json_object(folder / HPARAMS_FILE, limit=_MAX_FILE, error=CheckpointError)


def config_of_hparams(
    hparams: Mapping[str, Any],
    tensors: Mapping[str, TensorSource],
    where: str = "hparams",
) -> GPT2Config:
    """Return the configuration of tensors under GPT-2's names.

    The sizes come from the tensors. If hparams has "n_vocab", "n_embd" or "n_layer", they must
    agree with the tensors. "n_ctx" may be less than the number of rows of wpe; then "n_ctx" limits
    the positions. "n_head" is required unless there are no blocks.

    Raises CheckpointError if hparams and tensors disagree or a size is missing, ConfigError if a
    GPT-2 cannot have these sizes; messages begin with `where`.
    """
    wte, wpe = (matrix_shape(tensors, name, where) for name in ("wte.weight", "wpe.weight"))
    n_layer = count_blocks(tensors)
    sizes = {"n_vocab": wte[0], "n_embd": wte[1], "n_layer": n_layer}
    for name, size in sizes.items():
        if name in hparams and hparams[name] != size:
            raise CheckpointError(
                f"{where}: {name} is {show(hparams[name])}, and the tensors have {size}"
            )
    unknown = sorted(str(key) for key in hparams.keys() - {*sizes, "n_ctx", "n_head"})
    if unknown:
        _log.warning("%s: unknown keys are ignored: %s", where, show_list(unknown))
    n_ctx = hparams.get("n_ctx", wpe[0])
    if not isinstance(n_ctx, int | np.integer) or not 0 < n_ctx <= wpe[0]:
        raise CheckpointError(
            f"{where}: n_ctx is {show(n_ctx)}, and wpe has {wpe[0]} rows; expected an integer "
            "from 1 to that number"
        )
    if n_layer > 0 and "n_head" not in hparams:
        raise CheckpointError(
            f"{where}: n_head is missing; the tensors' shapes do not determine it: pass n_head="
        )
    return GPT2Config.from_sizes(
        where,
        vocab_size=wte[0],
        n_positions=int(n_ctx),
        n_embd=wte[1],
        n_layer=n_layer,
        # Without blocks there is no attention, so any number of heads is valid.
        n_head=hparams["n_head"] if n_layer > 0 else 1,
        n_inner=mlp_width(tensors, wte[1]),
    )


def matrix_shape(tensors: Mapping[str, TensorSource], name: str, where: str) -> tuple[int, int]:
    """Return the shape of a matrix.

    Raises CheckpointError if the matrix is missing or does not have two axes; the message begins
    with `where`.
    """
    if (source := tensors.get(name)) is None:
        raise CheckpointError(f"{where}: missing tensors: {name!r}")
    if len(source.shape) != 2:
        raise CheckpointError(
            f"{where}: tensor {name!r}: found shape {list(source.shape)}, expected two axes"
        )
    return source.shape[0], source.shape[1]


def mlp_width(tensors: Mapping[str, TensorSource], n_embd: int) -> int | None:
    """Return n_inner from the first block's c_fc [n_embd, n_inner]; None means 4 * n_embd."""
    fc = tensors.get("h.0.mlp.c_fc.weight")
    if fc is None or len(fc.shape) != 2 or fc.shape[1] == 4 * n_embd:
        return None
    return fc.shape[1]
