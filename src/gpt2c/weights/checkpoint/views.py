"""Sources made of other sources: transposed, cut, or of zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from gpt2c.forks import ProcessLock
from gpt2c.formats.tensors import TensorSource, check_rows


class Whole:
    """A TensorSource that can only be made as a whole: compressed, or transposed in its file.

    It is made when the first of its rows is asked for and kept until all of them were given.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: str, make: Callable[[], NDArray[np.float32]]
    ) -> None:
        """make gives the array, of any layout."""
        self.name, self.shape, self.dtype = name, shape, dtype
        self._make = make
        self._array: NDArray[np.float32] | None = None
        self._n_given = 0
        self._turns = ProcessLock(Lock)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        with self._turns.lock:
            array = self._array
            if array is None:
                array = self._array = self._make()
                self._n_given = 0
            self._n_given += end - begin
            if self._n_given >= self.shape[0]:
                self._array = None
        return np.array(array[begin:end], dtype=np.float32, order="C")


def transposed(source: TensorSource) -> TensorSource:
    """A matrix [out, in] as [in, out]; what is no matrix stays as it is."""
    if len(source.shape) != 2:
        return source
    shape = source.shape[::-1]
    return Whole(source.name, shape, source.dtype, lambda: source.read(0, source.shape[0]).T)


@dataclass(frozen=True, eq=False)
class Renamed:
    """Another TensorSource under a new name."""

    source: TensorSource
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The other's."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """The other's."""
        return self.source.dtype

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        return self.source.read(begin, end)


def with_embedding(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Sources of a model with a tied head; a missing embedding is taken from the head.

    safetensors.torch.save_model keeps only one of two names for a tensor, possibly the head's.
    """
    found = dict(sources)
    if "wte.weight" not in found and "lm_head.weight" in found:
        found["wte.weight"] = Renamed(found.pop("lm_head.weight"), "wte.weight")
    return found


@dataclass(frozen=True, eq=False)
class FirstRows:
    """A TensorSource over the first rows of another."""

    source: TensorSource
    n_rows: int

    @property
    def name(self) -> str:
        """The other's."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """With n_rows rows."""
        return (self.n_rows, *self.source.shape[1:])

    @property
    def dtype(self) -> str:
        """The other's."""
        return self.source.dtype

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        return self.source.read(begin, end)


@dataclass(frozen=True, eq=False)
class Zeros:
    """A TensorSource of zeros, for biases that a checkpoint does without."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        return np.zeros((end - begin, *self.shape[1:]), dtype=np.float32)
