"""Tensor sources made from others: transposed, renamed, cut or changed; and sources of zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.forks import ProcessLock
from gpt2c.formats.tensors import TensorSource, check_rows

# Elements of a matrix that are updated at a time: two float64 arrays of this size fit in L2.
_UPDATED_ELEMENTS: Final = 2**15


class WholeReadSource:
    """A TensorSource that reads its whole tensor at once.

    It serves data that are compressed or transposed in the file, and so cannot be read by rows. The
    first read makes the array, which is freed after all rows were read.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        make: Callable[[], NDArray[np.float32]],
        make_sample: Callable[[], NDArray[np.float32]] | None = None,
    ) -> None:
        """`make` returns the array, in any memory layout; `make_sample` some of its values."""
        self.name, self.shape, self.dtype = name, shape, dtype
        self._make, self._make_sample = make, make_sample
        self._array: NDArray[np.float32] | None = None
        self._n_read = 0
        self._read_lock = ProcessLock(Lock)

    def sample(self) -> NDArray[np.float32] | None:
        """Return some of the values, or None if reading some takes reading all."""
        return None if self._make_sample is None else self._make_sample()

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        with self._read_lock.lock:
            array = self._array
            if array is None:
                array = self._array = self._make()
                self._n_read = 0
            self._n_read += end - begin
            if self._n_read >= self.shape[0]:
                self._array = None
        return np.array(array[begin:end], dtype=np.float32, order="C")


def transposed(source: TensorSource) -> TensorSource:
    """Return a matrix [out, in] as [in, out]; return any other tensor unchanged."""
    if len(source.shape) != 2:
        return source
    shape = source.shape[::-1]
    return WholeReadSource(
        source.name,
        shape,
        source.dtype,
        lambda: source.read(0, source.shape[0]).T,
        lambda: source.read(0, 1),
    )


def from_linear(source: TensorSource) -> TensorSource:
    """Return a block's matrix [out, in], as nn.Linear stores it, as [in, out].

    Any other source is returned unchanged.
    """
    return transposed(source) if source.name.startswith("h.") else source


@dataclass(frozen=True, eq=False)
class Renamed:
    """Another TensorSource under a new name."""

    source: TensorSource
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The other source's shape."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """The other source's dtype."""
        return self.source.dtype

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        return self.source.read(begin, end)


def with_embedding(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Return sources with wte.weight: if only lm_head.weight is stored, it serves as wte.weight.

    Call this function for tied models only: safetensors.torch.save_model stores a tensor that has
    two names under only one name, possibly lm_head.weight.
    """
    found = dict(sources)
    if "wte.weight" not in found and "lm_head.weight" in found:
        found["wte.weight"] = Renamed(found.pop("lm_head.weight"), "wte.weight")
    return found


@dataclass(frozen=True, eq=False)
class FirstRows:
    """A TensorSource over the first n_rows rows of another source."""

    source: TensorSource
    n_rows: int

    @property
    def name(self) -> str:
        """The other source's name."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The other source's shape, with n_rows rows."""
        return (self.n_rows, *self.source.shape[1:])

    @property
    def dtype(self) -> str:
        """The other source's dtype."""
        return self.source.dtype

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        return self.source.read(begin, end)


@dataclass(frozen=True, eq=False)
class Zeros:
    """A TensorSource of zeros, for biases that a checkpoint does not have."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        return np.zeros((end - begin, *self.shape[1:]), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Update:
    """A change of a matrix, which is added to it: scale * left @ right."""

    left: NDArray[np.float32]  # [rows, r]
    right: NDArray[np.float32]  # [r, columns]
    scale: float

    def add_to(self, rows: NDArray[np.float64], begin: int, right: NDArray[np.float64]) -> None:
        """Add the change of rows [begin, begin + n) to `rows` [n, columns], one rank at a time.

        `right` is self.right in float64.

        A product of matrices would be faster, but the order in which it adds depends on the
        machine.
        """
        left = self.left[begin : begin + len(rows)].astype(np.float64) * self.scale
        product = np.empty_like(rows)
        for k in range(len(right)):
            np.multiply(left[:, k, None], right[k], out=product)
            rows += product


@dataclass(frozen=True, eq=False)
class Updated:
    """A matrix with changes, which are computed in float64 and rounded to float32 once."""

    source: TensorSource
    updates: tuple[Update, ...]
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The other source's name."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The other source's shape."""
        return self.source.shape

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        rows = self.source.read(begin, end)
        rights = [update.right.astype(np.float64) for update in self.updates]
        step = max(1, _UPDATED_ELEMENTS // self.shape[1])
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            exact = part.astype(np.float64)
            for update, right in zip(self.updates, rights, strict=True):
                update.add_to(exact, begin + first, right)
            with np.errstate(over="ignore", invalid="ignore"):  # see TensorSource.read
                np.copyto(part, exact, casting="same_kind")
        return rows
