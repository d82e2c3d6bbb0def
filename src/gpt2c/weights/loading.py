"""Filling an engine with a checkpoint's weights, and reading them back."""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import similar
from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.engine.protocol import EngineModel
from gpt2c.engine.select import QUANTIZED, new_model
from gpt2c.errors import CacheMemoryError, OptionError
from gpt2c.formats.tensors import PackedSource, TensorSource, check_finite, check_rows
from gpt2c.progress import LoadingBar
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.quantized import GROUP, PANEL, packed_shape

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
    an instruction set. dtype is "float32", on the compiled engine "int8" or "int4", on NumPy
    "float64", or "auto": what a quantised file has, which NumPy widens, and else float32.

    Raises OptionError for other values and BackendError where the backend cannot run.
    """
    try:
        model = new_model(checkpoint.config, checkpoint.packing, dtype, backend, n_threads)
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
    pieces = list(_pieces(checkpoint, model.dtype))

    def load(piece: _Piece) -> int:
        name, begin, end = piece.name, piece.begin, piece.end
        source = checkpoint.tensors[name]
        if piece.is_packed and isinstance(source, PackedSource):
            panels = model.packed(name).reshape(source.packed_shape)[begin:end]
            source.read_panels(begin, panels)
            return _float_bytes(source, begin, end)
        rows = source.read(begin, end)
        # Whoever gives arrays knows what is in them; but what is no number cannot be quantised.
        if checkpoint.files or model.dtype in QUANTIZED:
            check_finite(rows, name, begin, checkpoint.where)
        model.load(name, rows.reshape(-1, rows.shape[-1]), begin)
        return rows.nbytes

    Loaders(load, pieces).run(min(n_threads, MOST_LOADERS), bar)


class Loaders:
    """Threads that load pieces, the calling one among them.

    None of them ever waits for another, so that all end whenever Ctrl-C comes. With an executor of
    concurrent.futures an interrupt at the wrong moment leaves a thread that waits for ever, and in
    Thread.start it can turn into a RuntimeError; so threads are started and awaited in C.
    """

    def __init__(self, load: Callable[[_Piece], int], pieces: list[_Piece]) -> None:
        """load gives the number of bytes."""
        self._load = load
        self._left = deque(enumerate(pieces))
        self._sizes: deque[int] = deque()
        self._errors: list[tuple[int, BaseException]] = []
        self._ends: SimpleQueue[None] = SimpleQueue()

    def run(self, n_threads: int, bar: LoadingBar | None) -> None:
        """Loads all; raises the error of the first piece that has one."""
        n_helpers = min(n_threads, len(self._left)) - 1
        helpers: list[int] = []  # which are there
        try:
            with suppress(_thread.error):  # the system gives no more
                helpers.extend(map(_thread.start_new_thread, repeat(self._help), [()] * n_helpers))
            self._work(bar)
        finally:
            self._left.clear()
            for _ in helpers:
                self._ends.get()
        if self._errors:
            raise min(self._errors, key=lambda error: error[0])[1]
        self._tell(bar)

    def _help(self) -> None:
        with suppress(BaseException):  # which are among the errors
            self._work(None)
        self._ends.put(None)

    def _work(self, bar: LoadingBar | None) -> None:
        while self._left:
            try:
                index, piece = self._left.popleft()
            except IndexError:  # another thread was sooner
                return
            try:
                self._sizes.append(self._load(piece))
            except BaseException as error:
                self._errors.append((index, error))
                self._left.clear()
                if not isinstance(error, Exception):
                    raise
            self._tell(bar)

    def _tell(self, bar: LoadingBar | None) -> None:
        while bar is not None and self._sizes:
            bar.add(self._sizes.popleft())


def _float_bytes(source: PackedSource, begin: int, end: int) -> int:
    """What panels would be in float32, which is what progress is counted in."""
    return 4 * (end - begin) * PANEL * source.packed_shape[1] * GROUP


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


@dataclass(frozen=True, eq=False)
class LoadedMatrix(LoadedTensor):
    """A PackedSource over a quantised matrix of a model."""

    packed_shape: tuple[int, int, int] = (0, 0, 0)

    def read_panels(self, begin: int, panels: NDArray[np.uint8]) -> None:
        """See PackedSource."""
        with self.model.held():
            whole = self.model.packed(self.name).reshape(self.packed_shape)
            panels[...] = whole[begin : begin + len(panels)]


def loaded_checkpoint(model: EngineModel, config: GPT2Config) -> Checkpoint:
    """A checkpoint over a model's weights, packed as they are."""
    tensors: dict[str, TensorSource] = {}
    packing = model.dtype if model.dtype in QUANTIZED else None
    for name, shape in tensor_shapes(config).items():
        packed = packed_shape(name, shape, packing) if packing else None
        if packed is None:
            tensors[name] = LoadedTensor(model, name, shape)
        else:
            tensors[name] = LoadedMatrix(model, name, shape, packed_shape=packed)
    return Checkpoint(config, tensors, packing=packing)


def read_tensor(model: EngineModel, config: GPT2Config, name: str) -> NDArray[np.float32]:
    """Return a copy of a tensor by GPT-2's name for it. Raises OptionError for an unknown name."""
    tensors = loaded_checkpoint(model, config).tensors
    if name == "lm_head.weight" and config.tie_word_embeddings:
        name = "wte.weight"
    if not isinstance(name, str) or name not in tensors:
        raise OptionError(
            f"weight: {show(name)} is no tensor of this model; they are "
            f"{show_list(list(tensors))}{similar(str(name)[:99], tensors)}"
        )
    source = tensors[name]
    return source.read(0, source.shape[0]).reshape(source.shape)


@dataclass(frozen=True)
class _Piece:
    """What is loaded at a time: rows [begin, end) of a tensor, or panels where it is packed."""

    name: str
    begin: int
    end: int
    is_packed: bool = False


def _pieces(checkpoint: Checkpoint, dtype: str) -> Iterator[_Piece]:
    """Rows are whole groups where they are quantised; a vector is one piece."""
    unit = GROUP if dtype in QUANTIZED else 1
    for name, source in checkpoint.tensors.items():
        n_rows = source.shape[0]
        width = source.shape[1] if len(source.shape) == 2 else 1
        step = n_rows if width == 1 else max(1, CHUNK_BYTES // (4 * width * unit)) * unit
        is_packed = checkpoint.packing == dtype and isinstance(source, PackedSource)
        if is_packed:
            n_rows, n_groups, n_bytes = source.packed_shape  # type: ignore[attr-defined]
            step = max(1, CHUNK_BYTES // (n_groups * n_bytes))
        for begin in range(0, n_rows, step):
            yield _Piece(name, begin, min(begin + step, n_rows), is_packed)
