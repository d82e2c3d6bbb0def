"""OpenAI's ``hparams``: n_vocab, n_ctx, n_embd, n_head and n_layer, as picoGPT has them too."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.config import GPT2_VOCABULARY, GPT2Config
from gpt2c.errors import CheckpointError, OptionError, OptionTypeError
from gpt2c.formats.tensors import TensorSource

HPARAMS: Final = "hparams.json"
_MAX_FILE: Final = 1 << 20

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())


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
    """Resolve the argument hparams: a dict, a path to a file or its folder, or an OpenAI size.

    Raises OptionError or OptionTypeError, and for a file the errors of :func:`read_hparams`.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise OptionTypeError(
            f"hparams is {show(value)}; it must be a dict, a path, or a name such as '124M'"
        )
    place = Path(value)
    if os.path.isdir(place):
        return read_hparams(place)
    if os.path.exists(place):
        return read_json_object(place, limit=_MAX_FILE, error=CheckpointError)
    if str(value) not in _SIZES:
        raise OptionError(
            f"hparams is {show(str(value))}, and there is no such file; it must be a dict, the "
            f"path of an {HPARAMS}, or one of {', '.join(_SIZES)}"
        )
    return {"n_vocab": GPT2_VOCABULARY, "n_ctx": 1024, **_SIZES[str(value)]}


def read_hparams(folder: Path) -> dict[str, Any]:
    """The folder's hparams.json. Raises CheckpointNotFoundError or CheckpointError, naming it."""
    return read_json_object(folder / HPARAMS, limit=_MAX_FILE, error=CheckpointError)


def config_of_hparams(
    hparams: Mapping[str, Any],
    tensors: Mapping[str, TensorSource],
    n_layer: int,
    where: str = "hparams",
) -> GPT2Config:
    """The configuration of tensors by GPT-2's names.

    Sizes come from the tensors. hparams' "n_vocab", "n_embd" and "n_layer", where given, must
    agree with them; "n_ctx" may be smaller than wpe has rows. "n_head" is needed unless there are
    no blocks.

    Raises CheckpointError, or ConfigError where the sizes make no GPT-2, beginning with `where`.
    """
    for name in ("wte", "wpe"):
        source = tensors.get(f"{name}.weight")
        if source is None or len(source.shape) != 2:
            found = "none" if source is None else f"shape {list(source.shape)}"
            raise CheckpointError(f"{where}: tensor {name!r}: found {found}, expected two axes")
    wte, wpe = tensors["wte.weight"].shape, tensors["wpe.weight"].shape
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
        raise CheckpointError(f"{where}: n_ctx is {show(n_ctx)}, and wpe has {wpe[0]} rows")
    if n_layer > 0 and "n_head" not in hparams:
        raise CheckpointError(f"{where}: n_head is missing: the tensors do not tell it")
    fc = tensors.get("h.0.mlp.c_fc.weight")
    inner = fc.shape[1] if fc is not None and len(fc.shape) == 2 else 4 * wte[1]
    return GPT2Config.from_sizes(
        where,
        vocab_size=wte[0],
        n_positions=int(n_ctx),
        n_embd=wte[1],
        n_layer=n_layer,
        # Heads mean nothing where there are no blocks.
        n_head=hparams["n_head"] if n_layer > 0 else 1,
        n_inner=None if inner == 4 * wte[1] else inner,
    )
