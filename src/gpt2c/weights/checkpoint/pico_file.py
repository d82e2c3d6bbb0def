"""Opens picoGPT's nested dict of NumPy arrays that was pickled into a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpt2c.errors import CheckpointError
from gpt2c.formats.numpy_pickle import NumpyPickle
from gpt2c.formats.pickle_values import describe, entries_of, fields_of
from gpt2c.formats.raw_file import closed_on_error
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint.arrays import picogpt_values
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.shared.hparams import HPARAMS_FILE, config_of_hparams, read_hparams
from gpt2c.weights.checkpoint.shared.views import FirstRows, transposed

_MAX_BLOCKS: Final = 1000


def open_pico_file(path: Path, given: Mapping[str, Any] | None) -> Checkpoint:
    """Open a pickle of picoGPT's params, alone or with hparams in a dict, a tuple or a list.

    hparams come from `given`, else from the file, else from an hparams.json beside the file.

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file and what is
    wrong.
    """
    file = NumpyPickle(path)
    where = str(path)
    with closed_on_error(file):
        params, hparams = _params_and_hparams(file.value)
        if params is None:
            raise CheckpointError(
                f"{where}: found a pickle of {describe(file.value)}, expected a file that "
                "torch.save wrote, or picoGPT's dict of wte, wpe, blocks and ln_f"
            )
        if len(params["blocks"] if isinstance(params["blocks"], list) else ()) > _MAX_BLOCKS:
            raise CheckpointError(f"{where}: found more than {_MAX_BLOCKS} blocks")
        sources: dict[str, TensorSource] = {}
        n_bytes = 0
        for name, value in picogpt_values(params, f"{where}: params").items():
            array = file.array(value, f"tensor {name!r}")
            n_bytes += array.data.n_bytes
            if n_bytes > file.size:
                raise CheckpointError(f"{where}: its arrays together exceed the file's size")
            source: TensorSource = file.source(array, name)
            sources[name] = transposed(source) if array.is_fortran else source
        if given is not None:
            hparams = dict(given)
        elif not hparams and os.path.lexists(path.parent / HPARAMS_FILE):
            hparams = read_hparams(path.parent)
        config = config_of_hparams(hparams, sources, where)
        wpe = sources["wpe.weight"]
        if wpe.shape[0] > config.n_positions:
            sources["wpe.weight"] = FirstRows(wpe, config.n_positions)
        return Checkpoint(config, checked_tensors(config, sources, where), path.parent, (file,))


def _params_and_hparams(value: object) -> tuple[Mapping[Any, Any] | None, dict[str, Any]]:
    """Return picoGPT's params in a pickle's value, or None, and hparams, which may be empty."""
    parts: list[object] = [value]
    if isinstance(value, tuple | list):
        parts = list(value[:8])
    elif (entries := entries_of(value)) is not None and "blocks" not in entries:
        parts = [entries.get("params"), entries.get("hparams")]
    found = [entries for part in parts if (entries := entries_of(part)) is not None]
    params = next((entries for entries in found if "blocks" in entries), None)
    names = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    hparams = next((fields_of(entries, names) for entries in found if "n_head" in entries), {})
    return params, hparams
