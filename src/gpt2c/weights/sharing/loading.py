"""Load weights that other processes share, or make them for those that come later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from gpt2c.engine.protocol import EngineModel
from gpt2c.engine.select import new_model
from gpt2c.errors import CacheMemoryError, SharingWarning, warn
from gpt2c.progress import LoadingBar
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.loading import fill
from gpt2c.weights.sharing.key import key_of, wait_for_old_files
from gpt2c.weights.sharing.refusal import NotShared
from gpt2c.weights.sharing.region import Region, attach, can_share, make_region, read_region
from gpt2c.weights.sharing.registry import (
    Entry,
    SharedFile,
    locked_entry,
    remove_dead_entries,
)

if TYPE_CHECKING:
    from gpt2c.engine._engine import Model


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
    try:
        model = make()
        reason = "this needs the compiled engine" if model.isa == "numpy" else can_share()
        if reason is None:
            try:
                return _shared(make, checkpoint, n_threads, bar)
            except NotShared as refusal:
                reason = str(refusal)
        warn(
            f"the weights are not shared with other processes: {reason}. This process loads a copy "
            "of its own",
            SharingWarning,
        )
        fill(model, checkpoint, n_threads, bar)
    except CacheMemoryError:
        raise
    except MemoryError as error:
        raise CacheMemoryError(f"not enough memory for the model's weights ({error})") from None
    return model


def _shared(
    make: Callable[[], EngineModel], checkpoint: Checkpoint, n_threads: int, bar: LoadingBar | None
) -> EngineModel:
    """Return a model whose weights are shared. Raises NotShared, and the errors of loading."""
    model = cast("Model", make())
    key = key_of(checkpoint, model.dtype)
    try:
        with locked_entry(key) as entry:
            file, region = _found(entry, key, checkpoint)
            if file is None or region is None:
                file, region = _made(entry, key, checkpoint, make, n_threads, bar)
            attach(model, file, region)
            entry.add(file)
    except OSError as error:
        raise NotShared(str(error)) from error
    return cast(EngineModel, model)


def _found(
    entry: Entry, key: str, checkpoint: Checkpoint
) -> tuple[SharedFile | None, Region | None]:
    region: Region | None = None

    def check(file: SharedFile) -> bool:
        nonlocal region
        region = read_region(file, key, checkpoint.tensors)
        return region is not None

    return entry.find(check), region


def _made(
    entry: Entry,
    key: str,
    checkpoint: Checkpoint,
    make: Callable[[], EngineModel],
    n_threads: int,
    bar: LoadingBar | None,
) -> tuple[SharedFile, Region | None]:
    """Load the weights and move them to a new file. Raises OSError and the errors of loading."""
    remove_dead_entries(entry.path)
    wait_for_old_files(checkpoint)
    model = cast("Model", make())
    fill(cast(EngineModel, model), checkpoint, n_threads, bar)
    if key_of(checkpoint, model.dtype) != key:
        raise NotShared("the checkpoint's files were changed meanwhile")
    try:
        file = make_region(model, key, checkpoint.tensors)
    except MemoryError as error:
        raise NotShared(str(error)) from None
    return file, read_region(file, key, checkpoint.tensors)
