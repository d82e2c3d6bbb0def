"""Embeddings: the hidden states of a text's tokens, pooled to one vector."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.checks.options import did_you_mean, integer
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import ContextError, NumericalError, OptionError, OptionTypeError
from gpt2c.generate.prompts import is_lazy, is_single
from gpt2c.measure.hidden import hidden_states
from gpt2c.measure.texts import TextsToScore
from gpt2c.measure.windows import default_stride

Vector: TypeAlias = NDArray[np.float32]
Pooling: TypeAlias = "str | Callable[[NDArray[np.float32]], ArrayLike]"
POOLINGS: Final = ("mean", "last")


class EmbeddingOptions(NamedTuple):
    """How to embed: after how many blocks, how to pool, and the stride of windows or None."""

    n_blocks: int
    pooling: Pooling
    stride: int | None


def check_embedding(
    engine: EngineModel, layer: int, pooling: Pooling, stride: int | None
) -> EmbeddingOptions:
    """Return the checked options of GPT2.embed. Raises OptionError or OptionTypeError."""
    n_layer = engine.n_layer
    n_blocks = integer("layer", layer, -(n_layer + 1), n_layer) % (n_layer + 1)
    if isinstance(pooling, str) and pooling not in POOLINGS:
        raise OptionError(
            f"pooling is {show(pooling)}; it must be 'mean', 'last' or a function"
            f"{did_you_mean(pooling, POOLINGS)}"
        )
    if not isinstance(pooling, str) and not callable(pooling):
        raise OptionTypeError(
            f"pooling is {show(pooling)}; it must be 'mean', 'last' or a function"
        )
    if stride is not None:
        stride = integer("stride", stride, 1, engine.n_positions)
    return EmbeddingOptions(n_blocks, pooling, stride)


def embed_given(
    engine: EngineModel, encoder: TextsToScore, texts: Any, options: EmbeddingOptions
) -> Vector | Iterator[Vector]:
    """Embed one text, a list or an iterator of texts; see GPT2.embed."""
    if is_lazy(texts):
        encoded = (encoder.encode(text, i).ids for i, text in enumerate(texts))
        return embed_ids(engine, encoded, options)
    single = is_single(texts)
    ids = [encoder.encode(text, i).ids for i, text in enumerate([texts] if single else texts)]
    with engine.held():
        vectors = list(embed_ids(engine, ids, options))
    if single:
        return vectors[0]
    width = engine.n_embd if isinstance(options.pooling, str) else 0  # of no vectors
    return np.stack(vectors) if vectors else np.empty((0, width), dtype=np.float32)


def embed_ids(
    engine: EngineModel, texts: Iterable[NDArray[np.int32]], options: EmbeddingOptions
) -> Iterator[Vector]:
    """Yield the embedding of each text, float32 [size], in order; `texts` holds their ids.

    Texts are read lazily, as many as fill a pass. Raises OptionError for an empty text or for what
    a pooling function returns, ContextError for a text longer than the context without a stride,
    and NumericalError for NaN.
    """
    waiting: deque[_Embedding] = deque()

    def windows() -> Iterator[NDArray[np.int32]]:
        for index, ids in enumerate(texts):
            found = _windows_of(ids, index, engine.n_positions, options.stride)
            waiting.append(_Embedding(index, _new_pool(options.pooling, index), deque(found)))
            yield from (ids[window.begin : window.end] for window in found)

    size: int | None = None
    for rows in hidden_states(engine, windows(), options.n_blocks):
        embedding = waiting[0]
        embedding.add(rows)
        if not embedding.windows:
            vector = waiting.popleft().pool.result()
            if size is not None and len(vector) != size:
                raise OptionError(
                    f"pooling returned {len(vector)} numbers for text {embedding.index} and "
                    f"{size} for the texts before; it must always return as many"
                )
            size = len(vector)
            yield vector


class _Window(NamedTuple):
    """Tokens [begin, end) of a text, of which the first n_seen are in earlier windows too."""

    begin: int
    end: int
    n_seen: int


def _windows_of(
    ids: NDArray[np.int32], index: int, n_positions: int, stride: int | None
) -> list[_Window]:
    """Cut a text into windows that begin `stride` tokens apart; `index` is for messages."""
    n = len(ids)
    if n == 0:
        raise OptionError(f"text {index} is empty; pass bos=True, or leave the text out")
    if n > n_positions and stride is None:
        raise ContextError(
            f"text {index} has {n} tokens, more than the context's {n_positions} positions; "
            f"shorten it, or pass a stride, such as {default_stride(n_positions)}, to embed it in "
            "windows"
        )
    windows = [_Window(0, min(n, n_positions), 0)]
    while (seen := windows[-1].end) < n:
        begin = windows[-1].begin + (stride or n_positions)
        windows.append(_Window(begin, min(begin + n_positions, n), seen - begin))
    return windows


@dataclass(eq=False)
class _Embedding:
    """A text whose windows are being fed."""

    index: int
    pool: _Pool
    windows: deque[_Window]  # those that have no hidden states yet

    def add(self, rows: NDArray[Any]) -> None:
        """Pool the hidden states of the next window, without those of earlier windows' tokens."""
        if np.isnan(rows).any():
            raise NumericalError(
                f"text {self.index}: a hidden state is NaN; do the weights have NaN or infinite "
                "values?"
            )
        self.pool.add(rows[self.windows.popleft().n_seen :])


class _Pool(Protocol):
    """Pools the hidden states of a text, window by window."""

    def add(self, rows: NDArray[Any]) -> None:
        """Take the rows [n, n_embd] of the next tokens."""

    def result(self) -> Vector:
        """Return the vector."""


class _Mean:
    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._n = 0

    def add(self, rows: NDArray[Any]) -> None:
        # One sum for each window: which part of a window a pass fed changes no bit of it.
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._n += len(rows)

    def result(self) -> Vector:
        assert self._sum is not None
        return (self._sum / self._n).astype(np.float32)


class _Last:
    def add(self, rows: NDArray[Any]) -> None:
        self._row: Vector = rows[-1].astype(np.float32)

    def result(self) -> Vector:
        return self._row


class _Function:
    def __init__(self, function: Callable[[NDArray[np.float32]], ArrayLike], index: int) -> None:
        self._function, self._index = function, index
        self._parts: list[NDArray[Any]] = []

    def add(self, rows: NDArray[Any]) -> None:
        self._parts.append(rows)

    def result(self) -> Vector:
        given = self._function(np.concatenate(self._parts).astype(np.float32))
        try:
            vector: NDArray[Any] = np.asarray(given)
        except Exception as error:  # an object's __array__ may raise anything
            raise OptionTypeError(f"pooling of text {self._index}: {error}") from None
        if vector.dtype.kind not in "biuf" or vector.ndim != 1:
            raise OptionError(
                f"pooling returned {show(given)} of shape {list(vector.shape)} for text "
                f"{self._index}; it must return a vector of real numbers"
            )
        with np.errstate(over="ignore"):  # beyond float32, a number becomes infinite
            return vector.astype(np.float32)


def _new_pool(pooling: Pooling, index: int) -> _Pool:
    if callable(pooling):
        return _Function(pooling, index)
    return _Mean() if pooling == "mean" else _Last()
