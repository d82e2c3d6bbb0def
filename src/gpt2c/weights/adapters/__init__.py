"""LoRA adapters: peft's files, merged into a checkpoint's weights when these are loaded.

Nothing is fetched or opened because an adapter's file names it: the caller names the base model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2c.weights.adapters.given import Adapters, given_adapters
from gpt2c.weights.checkpoint import Checkpoint, open_checkpoint
from gpt2c.weights.hub import locate_adapter

__all__ = ["Adapters", "open_with_adapters"]


def open_with_adapters(
    path: Path,
    adapter: Adapters | None,
    *,
    activation: str | None = None,
    hparams: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    n_head: int | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Open a checkpoint, with adapters merged into its weights as these are read.

    `adapter` is a folder or a name on the hub, or a list of them or of pairs (folder, weight); see
    :meth:`GPT2.from_pretrained`. `token` and `local_files_only` say how to fetch adapters from the
    hub. The other arguments are those of :func:`open_checkpoint`.

    Raises the errors of :func:`open_checkpoint`, :func:`given_adapters`, :func:`locate_adapter` and
    :func:`merge_adapters`.
    """
    options: dict[str, Any] = {"activation": activation, "hparams": hparams, "n_head": n_head}
    if adapter is None:
        return open_checkpoint(path, **options)
    from gpt2c.weights.adapters.merging import merge_adapters  # lazily: few models have adapters

    folders = [
        (locate_adapter(given.path, token=token, local_files_only=local_files_only), given.weight)
        for given in given_adapters(adapter)
    ]
    return merge_adapters(open_checkpoint(path, **options), folders)
