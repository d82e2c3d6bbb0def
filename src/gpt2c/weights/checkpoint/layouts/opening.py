"""Recognises other layouts of a GPT-2's state dict, in a torch file or a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2c.formats.raw_file import RawTensor
from gpt2c.formats.tensors import BackingFile
from gpt2c.weights.checkpoint.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.shared.hparams import refuse_hparams
from gpt2c.weights.checkpoint.shared.names import bare_name


def open_other_layout(
    stored: Mapping[str, RawTensor],
    path: Path,
    file: BackingFile,
    hparams: Mapping[str, Any] | None,
    *,
    enclosing: tuple[Mapping[Any, Any], ...] = (),
    shared: frozenset[str] = frozenset(),
) -> Checkpoint | None:
    """Return the checkpoint of a state dict in another layout than GPT-2's; None for any other.

    `stored` has the tensors by their names in the file, `enclosing` the dicts around the state
    dict, and `shared` the names of tensors that share their bytes with another. The checkpoint owns
    the file.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    from gpt2c.weights.checkpoint.layouts import linear, transformer_lens

    bare = {bare_name(name): name for name in stored}
    if transformer_lens.FIRST in bare:
        refuse_hparams(path, hparams)
        return transformer_lens.open_transformer_lens(stored, path, file, enclosing)
    if (layout := linear.layout_of(set(bare))) is None:
        return None
    heads = {bare.get(f"{module}.weight") for module, to in layout.modules.items()
             if to in ("lm_head", "wte")}  # fmt: skip
    is_tied = None not in heads and heads <= shared
    return linear.open_linear(layout, stored, path, file, hparams, is_tied=is_tied)
