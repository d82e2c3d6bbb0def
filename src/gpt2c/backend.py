"""Which engine runs a model: the compiled one, or NumPy; and on which instruction set."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.checkpoint import Checkpoint
from gpt2c.checkpoint.source import check_finite, check_rows, tensor_shapes
from gpt2c.config import GPT2Config
from gpt2c.errors import BackendError, CacheMemoryError, FallbackWarning, OptionError
from gpt2c.options import choice
from gpt2c.progress import LoadingBar

if TYPE_CHECKING:
    from gpt2c import _engine, numpy_engine

    EngineModel: TypeAlias = _engine.Model | numpy_engine.Model
    EngineSequence: TypeAlias = _engine.Sequence | numpy_engine.Sequence
    EngineJob: TypeAlias = _engine.Job | numpy_engine.Job

REINSTALL = "GPT2C_BUILD=require pip install --force-reinstall ."
BACKENDS = ("auto", "c", "numpy")
# Tensors are read and packed this many bytes of float32 at a time: a half of it left the threads
# waiting for each other, twice it left the cores' own caches (0.10 s for 124M; 0.12 and 0.11).
CHUNK_BYTES = 2 << 20
MOST_LOADERS = 8  # threads, each with a piece in its hands


def load_engine(
    checkpoint: Checkpoint, dtype: str, backend: str, n_threads: int, bar: LoadingBar | None = None
) -> EngineModel:
    """A loaded model on the backend that was asked for; bar is told how far loading is.

    backend is "c", "numpy" or "auto": the compiled engine where it runs, else NumPy with a
    FallbackWarning. Under "auto" the environment's GPT2C_BACKEND is asked first; GPT2C_ISA forces
    an instruction set. dtype is "float32", or, on NumPy alone, "float64".

    Raises OptionError for other values and BackendError where the backend cannot run.
    """
    try:
        model = new_model(checkpoint, dtype, backend, n_threads)
        fill(model, checkpoint, n_threads, bar)
    except CacheMemoryError:
        raise
    except MemoryError as error:
        raise CacheMemoryError(f"not enough memory for the model's weights ({error})") from None
    return model


def fill(
    model: EngineModel, checkpoint: Checkpoint, n_threads: int, bar: LoadingBar | None = None
) -> None:
    """Reads the checkpoint's tensors, piece by piece, into the engine's memory.

    On up to n_threads: most of the time goes into the kernel's clearing of fresh memory, which the
    first touch of each page asks for.

    Raises CheckpointError where the weights of a file are not all finite.
    """
    pieces = list(_pieces(checkpoint))

    def load(piece: tuple[str, int, int]) -> int:
        name, begin, end = piece
        rows = checkpoint.tensors[name].read(begin, end)
        if checkpoint.files:  # whoever gives arrays knows what is in them
            check_finite(rows, name, begin, checkpoint.where)
        model.load(name, rows.reshape(-1, rows.shape[-1]), begin)
        return rows.nbytes

    with ThreadPoolExecutor(min(n_threads, MOST_LOADERS)) as loaders:
        try:
            for n_bytes in loaders.map(load, pieces):
                if bar is not None:
                    bar.add(n_bytes)
        finally:
            loaders.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class LoadedTensor:
    """A TensorSource over a model's weights, as they were loaded."""

    model: EngineModel
    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        rows = np.empty((end - begin, *self.shape[1:]), dtype=np.float32)
        if rows.size:
            is_vector = len(self.shape) == 1
            self.model.read(self.name, rows[None] if is_vector else rows, 0 if is_vector else begin)
        return rows


def loaded_checkpoint(model: EngineModel, config: GPT2Config) -> Checkpoint:
    """A checkpoint over a model's weights."""
    shapes = tensor_shapes(config).items()
    return Checkpoint(config, {name: LoadedTensor(model, name, shape) for name, shape in shapes})


def _pieces(checkpoint: Checkpoint) -> Iterator[tuple[str, int, int]]:
    """Tensors' names with rows [begin, end); a vector is one piece."""
    for name, source in checkpoint.tensors.items():
        n_rows = source.shape[0]
        width = source.shape[1] if len(source.shape) == 2 else 1
        step = n_rows if width == 1 else max(1, CHUNK_BYTES // (4 * width))
        for begin in range(0, n_rows, step):
            yield name, begin, min(begin + step, n_rows)


def new_model(checkpoint: Checkpoint, dtype: str, backend: str, n_threads: int) -> EngineModel:
    """An engine's model for this checkpoint, its weights not loaded yet."""
    choice("backend", backend, BACKENDS)
    choice("dtype", dtype, ("float32", "float64"))
    if backend == "auto":
        named = os.environ.get("GPT2C_BACKEND") or "auto"
        backend = choice("GPT2C_BACKEND", named, BACKENDS)
    if dtype == "float64" and backend == "c":
        raise OptionError("dtype is 'float64', which runs on backend='numpy' alone")
    if dtype == "float32" and backend != "numpy":
        engine = compiled_engine(required=backend == "c")
        if engine is not None:
            return engine(checkpoint, n_threads)
    from gpt2c import numpy_engine  # here because its import is a tenth of ours

    return numpy_engine.Model(checkpoint.config, dtype)


def compiled_engine(required: bool) -> Callable[[Checkpoint, int], EngineModel] | None:
    """What makes a model on the compiled engine; None, with a warning, where it cannot run."""
    try:
        module = _import_engine()
        isa = choose_isa(module)
    except BackendError as error:
        if required:
            raise
        message = f"{error}; running on NumPy, far slower"
        warnings.warn(message, FallbackWarning, stacklevel=_callers_level())
        return None
    return lambda checkpoint, n_threads: module.Model(checkpoint.config, isa, n_threads)


def _callers_level() -> int:
    """warnings' stacklevel of the first frame outside this package: the user's own line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("gpt2c."):
        level, frame = level + 1, frame.f_back
    return level


def _import_engine() -> ModuleType:
    try:
        from gpt2c import _engine
    except ImportError as error:
        raise BackendError(
            f"gpt2c's compiled engine is not installed ({error}). "
            f"With a C compiler at hand, reinstall it from a clone: {REINSTALL}"
        ) from None
    return _engine


def choose_isa(engine: ModuleType) -> str:
    """The fastest instruction set that runs here, or the one that GPT2C_ISA names.

    Raises OptionError where GPT2C_ISA names none, BackendError where none runs.
    """
    sets: dict[str, bool] = dict(engine.instruction_sets())
    supported = [name for name, runs in sets.items() if runs]
    forced = os.environ.get("GPT2C_ISA")
    if forced:
        if forced not in supported:
            why = "this CPU cannot run it" if forced in sets else "there is no such name"
            raise OptionError(
                f"GPT2C_ISA is {forced!r}: {why}; here it may be {', '.join(supported) or 'none'}"
            )
        return forced
    if not supported:
        raise BackendError(
            "gpt2c's compiled engine needs a CPU with fused multiply-add (FMA), which this one "
            "lacks"
        )
    return supported[-1]
