"""Load weights that other processes share, or make them for those that come later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from gpt2c.engine.protocol import EngineModel, SharedEngineModel
from gpt2c.engine.select import new_model
from gpt2c.errors import SharingWarning, warn
from gpt2c.progress import LoadingBar
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.loading import fill, raising_cache_memory_errors
from gpt2c.weights.sharing.errors import SharingError
from gpt2c.weights.sharing.key import key_of, wait_for_old_files
from gpt2c.weights.sharing.region import Region, attach, can_share, make_region, read_region
from gpt2c.weights.sharing.registry import (
    Entry,
    SharedFile,
    locked_entry,
    remove_dead_entries,
)


def load_shared_engine(
    checkpoint: Checkpoint,
    dtype: str,
    backend: str,
    n_threads: int,
    kv_cache_bytes: int | None = None,
    bar: LoadingBar | None = None,
) -> EngineModel:
    """Do what load_engine does, with weights that all processes of this user share.

    If they cannot be shared, warn with a SharingWarning, and load weights for this process alone.
    """
    make = partial(
        new_model, checkpoint.config, checkpoint.quantized_dtype, dtype, backend, n_threads,
        kv_cache_bytes,
    )  # fmt: skip
    with raising_cache_memory_errors():
        model = make()
        reason = "this needs the compiled engine" if model.isa == "numpy" else can_share()
        if reason is None:
            try:
                return _shared(make, checkpoint, n_threads, bar)
            except SharingError as refusal:
                reason = str(refusal)
        warn(
            f"the weights are not shared with other processes: {reason}. This process loads a copy "
            "of its own",
            SharingWarning,
        )
        fill(model, checkpoint, n_threads, bar)
    return model


def _shared(
    make: Callable[[], EngineModel], checkpoint: Checkpoint, n_threads: int, bar: LoadingBar | None
) -> EngineModel:
    """Return a model whose weights are shared. Raises SharingError, and the errors of loading."""
    model = cast(SharedEngineModel, make())
    key = key_of(checkpoint, model.dtype)
    try:
        with locked_entry(key) as entry:
            names = checkpoint.tensors
            found = entry.find(lambda file: read_region(file, key, names))
            file, region = found or _made(entry, key, checkpoint, make, n_threads, bar)
            attach(model, file, region)
            entry.add(file)
    except OSError as error:
        raise SharingError(str(error)) from error
    return model


def _made(
    entry: Entry,
    key: str,
    checkpoint: Checkpoint,
    make: Callable[[], EngineModel],
    n_threads: int,
    bar: LoadingBar | None,
) -> tuple[SharedFile, Region]:
    """Load the weights and move them to a new file. Raises OSError and the errors of loading."""
    remove_dead_entries(entry.path)
    wait_for_old_files(checkpoint)
    model = cast(SharedEngineModel, make())
    fill(model, checkpoint, n_threads, bar)
    if key_of(checkpoint, model.dtype) != key:
        raise SharingError("the checkpoint's files were changed meanwhile")
    try:
        file = make_region(model, key, checkpoint.tensors)
    except MemoryError as error:
        raise SharingError(str(error)) from None
    region = read_region(file, key, checkpoint.tensors)
    assert region is not None  # we have just written it
    return file, region
