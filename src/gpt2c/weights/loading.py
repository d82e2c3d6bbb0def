"""Load a checkpoint's weights into an engine, and read them back."""

from __future__ import annotations

import _thread
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import repeat
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import did_you_mean
from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.engine.protocol import EngineModel
from gpt2c.engine.select import QUANTIZED, new_model
from gpt2c.errors import CacheMemoryError, OptionError
from gpt2c.formats.tensors import PackedSource, TensorSource, check_finite, check_rows
from gpt2c.progress import LoadingBar
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.quantized import GROUP, PANEL, packed_shape
from gpt2c.weights.checkpoint.shared.views import WholeReadSource
from gpt2c.weights.sixteen_bits import dtypes_to_try

# Bytes that a thread loads at a time, of float32 to pack or of packed panels. GPT-2 124M then loads
# in 0.10 s. With half as many bytes it took 0.12 s, because the threads waited for each other. With
# twice as many, which do not fit the caches of one core, it took 0.11 s.
CHUNK_BYTES = 2 << 20
MAX_LOADING_THREADS = 8  # threads, each of which holds one piece in memory


def load_engine(
    checkpoint: Checkpoint,
    dtype: str,
    backend: str,
    n_threads: int,
    kv_cache_bytes: int | None = None,
    bar: LoadingBar | None = None,
) -> EngineModel:
    """Return a loaded model on the chosen backend; `bar` shows the progress.

    `backend` is "c", "numpy" or "auto". "auto" means the backend that GPT2C_BACKEND in the
    environment names, or else the compiled engine; if that cannot run, NumPy with a
    FallbackWarning. GPT2C_ISA forces an instruction set.

    `dtype` is "float32"; "int8" or "int4" on the compiled engine; "float64" on NumPy; or "auto".
    "auto" means the dtype of a quantised file, which NumPy dequantises, or else float32.

    `kv_cache_bytes` limits the KV cache; None means gpt2c.engine.memory's default.

    Raises OptionError for other values, BackendError if the backend cannot run, CheckpointError if
    a file cannot be read or has a weight that is not finite, and CacheMemoryError if the weights do
    not fit in memory.
    """
    with raising_cache_memory_errors():
        model = new_model(
            checkpoint.config, checkpoint.quantized_dtype, dtype, backend, n_threads, kv_cache_bytes
        )
        fill(model, checkpoint, n_threads, bar)
    return model


@contextmanager
def raising_cache_memory_errors() -> Iterator[None]:
    """Raise a MemoryError as CacheMemoryError, which says that the weights do not fit."""
    try:
        yield
    except CacheMemoryError:
        raise
    except MemoryError as error:
        raise CacheMemoryError(f"not enough memory for the model's weights ({error})") from None


def fill(
    model: EngineModel, checkpoint: Checkpoint, n_threads: int, bar: LoadingBar | None = None
) -> None:
    """Load the checkpoint's tensors into the engine, piece by piece, on up to n_threads threads.

    Page faults take most of the time: the operating system clears each page of memory at its first
    use, and can clear pages on several threads simultaneously.

    On the compiled engine, a float32 model stores a matrix in 16 bits if all its weights fit
    exactly and dtypes_to_try names it. If a weight turns out not to fit, the matrix is loaded again
    in the next dtype.

    Raises CheckpointError if a file cannot be read or has a weight that is not finite.
    """
    pieces = list(_pieces(checkpoint, model.dtype))
    may_narrow = model.dtype == "float32" and model.isa != "numpy"
    to_try = dtypes_to_try(checkpoint) if may_narrow else {}
    if to_try:
        model.store_as({name: dtypes[0] for name, dtypes in to_try.items()})
    unfit: set[str] = set()  # matrices with a weight that does not fit

    def load(piece: _Piece) -> int:
        name, begin, end = piece.name, piece.begin, piece.end
        source = checkpoint.tensors[name]
        n_bytes = 4 * (end - begin) * math.prod(source.shape[1:])
        # A WholeReadSource frees its array only after all its rows were read.
        if name in unfit and not isinstance(source, WholeReadSource):
            return n_bytes
        if piece.is_packed and isinstance(source, PackedSource):
            panels = model.packed(name).reshape(source.packed_shape)[begin:end]
            source.read_panels(begin, panels)
            return _float32_bytes(source, begin, end)
        rows = source.read(begin, end)
        # Arrays in memory may have NaNs if the caller wants them, but NaNs cannot be quantised.
        if checkpoint.files or model.dtype in QUANTIZED:
            check_finite(rows, name, begin, checkpoint.where)
        if not model.load(name, rows.reshape(-1, rows.shape[-1]), begin):
            unfit.add(name)
        return n_bytes

    n_threads = min(n_threads, MAX_LOADING_THREADS)
    LoadingThreads(load, pieces).run(n_threads, bar)
    while unfit:
        again = [piece for piece in pieces if piece.name in unfit]
        for name in unfit:
            to_try[name].pop(0)
            model.change_stored_dtype(name, to_try[name][0])
        unfit.clear()
        LoadingThreads(load, again).run(n_threads, None)


class LoadingThreads:
    """Threads, including the calling one, that load pieces.

    The threads share a queue of pieces and never wait for each other, so all of them end soon after
    Ctrl-C. With an executor of concurrent.futures, an interrupt at the wrong moment can leave a
    thread waiting for ever, and Thread.start can turn an interrupt into a RuntimeError. So C code
    starts the threads (`_thread`) and waits for them (`SimpleQueue`).
    """

    def __init__(self, load: Callable[[_Piece], int], pieces: list[_Piece]) -> None:
        """Prepare to call `load`, which returns the number of bytes, for each piece."""
        self._load = load
        self._unloaded = deque(enumerate(pieces))
        self._uncounted_bytes: deque[int] = deque()  # of loaded pieces, for the bar
        self._errors: list[tuple[int, BaseException]] = []
        self._ended_threads: SimpleQueue[None] = SimpleQueue()

    def run(self, n_threads: int, bar: LoadingBar | None) -> None:
        """Load all pieces. If any fail, raise the error of the one that comes first in the list."""
        n_helpers = min(n_threads, len(self._unloaded)) - 1
        helpers: list[int] = []  # the threads that were started
        try:
            with suppress(_thread.error):  # the system allows no more threads
                arguments = repeat(self._work_in_thread), [()] * n_helpers
                helpers.extend(map(_thread.start_new_thread, *arguments))
            self._work(bar)
        finally:
            self._unloaded.clear()
            for _ in helpers:
                self._ended_threads.get()
        if self._errors:
            raise min(self._errors, key=lambda error: error[0])[1]
        self._advance(bar)

    def _work_in_thread(self) -> None:
        with suppress(BaseException):  # _work has recorded the error
            self._work(None)
        self._ended_threads.put(None)

    def _work(self, bar: LoadingBar | None) -> None:
        while self._unloaded:
            try:
                index, piece = self._unloaded.popleft()
            except IndexError:  # another thread took the last piece
                return
            try:
                self._uncounted_bytes.append(self._load(piece))
            except BaseException as error:
                self._errors.append((index, error))
                self._unloaded.clear()
                if not isinstance(error, Exception):
                    raise
            self._advance(bar)

    def _advance(self, bar: LoadingBar | None) -> None:
        while bar is not None and self._uncounted_bytes:
            bar.add(self._uncounted_bytes.popleft())


def _float32_bytes(source: PackedSource, begin: int, end: int) -> int:
    """Return the size of panels in float32, the unit of the progress bar."""
    return 4 * (end - begin) * PANEL * source.packed_shape[1] * GROUP


@dataclass(frozen=True, eq=False)
class LoadedTensor:
    """A TensorSource that reads a tensor of a loaded model."""

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


@dataclass(frozen=True, eq=False)
class LoadedMatrix(LoadedTensor):
    """A PackedSource that reads a quantised matrix of a loaded model."""

    packed_shape: tuple[int, int, int] = (0, 0, 0)

    def read_panels(self, begin: int, panels: NDArray[np.uint8]) -> None:
        """See PackedSource."""
        with self.model.held():
            whole = self.model.packed(self.name).reshape(self.packed_shape)
            panels[...] = whole[begin : begin + len(panels)]


def loaded_checkpoint(model: EngineModel, config: GPT2Config) -> Checkpoint:
    """Return a checkpoint over a loaded model's weights, with the same quantised dtype or none."""
    tensors: dict[str, TensorSource] = {}
    quantized_dtype = model.dtype if model.dtype in QUANTIZED else None
    for name, shape in tensor_shapes(config).items():
        packed = packed_shape(name, shape, quantized_dtype) if quantized_dtype else None
        if packed is None:
            tensors[name] = LoadedTensor(model, name, shape)
        else:
            tensors[name] = LoadedMatrix(model, name, shape, packed_shape=packed)
    return Checkpoint(config, tensors, quantized_dtype=quantized_dtype)


def read_tensor(model: EngineModel, config: GPT2Config, name: str) -> NDArray[np.float32]:
    """Return a copy of the tensor that GPT-2 calls `name`, as float32 in GPT-2's shape.

    Raises OptionError for an unknown name, and ClosedError.
    """
    source = loaded_checkpoint(model, config).tensors[tensor_name(config, name)]
    return source.read(0, source.shape[0]).reshape(source.shape)


def tensor_name(config: GPT2Config, name: str) -> str:
    """Check the name of a tensor; return it, or the name of the tensor that it is tied to.

    Raises OptionError for an unknown name.
    """
    names = tensor_shapes(config)
    if name == "lm_head.weight" and config.tie_word_embeddings:
        name = "wte.weight"
    if not isinstance(name, str) or name not in names:
        raise OptionError(
            f"weight: this model has no tensor {show(name)}; its tensors are "
            f"{show_list(list(names))}{did_you_mean(str(name)[:99], names)}"
        )
    return name


@dataclass(frozen=True)
class _Piece:
    """The part of a tensor that one call loads: rows [begin, end), or panels if packed."""

    name: str
    begin: int
    end: int
    is_packed: bool = False


def _pieces(checkpoint: Checkpoint, dtype: str) -> Iterator[_Piece]:
    """Yield the pieces of all tensors, for a model of this dtype. A vector is one piece.

    If the rows are to be quantised, a piece consists of whole groups of rows.
    """
    unit = GROUP if dtype in QUANTIZED else 1
    for name, source in checkpoint.tensors.items():
        end = source.shape[0]  # in rows, or in panels of a packed source
        width = source.shape[1] if len(source.shape) == 2 else 1
        step = end if width == 1 else max(1, CHUNK_BYTES // (4 * width * unit)) * unit
        is_packed = False
        if checkpoint.quantized_dtype == dtype and isinstance(source, PackedSource):
            is_packed = True
            end, n_groups, n_bytes = source.packed_shape
            step = max(1, CHUNK_BYTES // (n_groups * n_bytes))
        for begin in range(0, end, step):
            yield _Piece(name, begin, min(begin + step, end), is_packed)
