"""The interface of stored tensors, which all file readers provide; rows are read as float32."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError, OptionError

# The dtypes that weights may have: safetensors' name, and the NumPy dtype of the stored bits. NumPy
# has no bfloat16, whose bits are the upper half of a float32.
STORED_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


class TensorSource(Protocol):
    """One tensor of a checkpoint, which is read in parts, so that it need not fit in memory.

    Several threads may read from one source at the same time.
    """

    @property
    def name(self) -> str:
        """GPT-2's name, without a prefix: "wte.weight", "h.0.attn.c_attn.weight"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Matrices are [in, out], as in HF's Conv1D; wte, wpe and lm_head [rows, n_embd]."""

    @property
    def dtype(self) -> str:
        """The stored dtype, by safetensors' name: "F32", "F16", "BF16" or "F64"."""

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return rows [begin, end) of the first axis, as a new C-contiguous array.

        float16 and bfloat16 are widened exactly; float64 is rounded to nearest even, and to an
        infinity beyond float32's range. NaNs and infinities are not an error here; see
        :func:`check_finite`.

        Raises CheckpointError if the file was truncated or cannot be read, ClosedError after
        close, OptionError unless 0 <= begin <= end <= shape[0].
        """


@runtime_checkable
class PackedSource(Protocol):
    """A TensorSource whose quantised matrix is stored as the engine's panels.

    weights/checkpoint/quantized.py describes panels, groups and blocks.
    """

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """The shape [panels, groups in a panel, bytes of a group's block]."""

    def read_panels(self, begin: int, panels: NDArray[np.uint8]) -> None:
        """Fill `panels`, uint8 [n, groups, bytes], with the stored panels [begin, begin + n).

        Raises CheckpointError if the panels cannot be read or a scale is not positive and finite.
        """


class BackingFile(Protocol):
    """An open file that sources read from."""

    @property
    def path(self) -> Path:
        """The file's path."""

    def identity(self) -> tuple[int, int, int, int, int]:
        """Return the device, the inode, the size in bytes, and the times in nanoseconds.

        The times are the modification time and, last, the change time, which is the time of
        creation on Windows.
        """

    def verify_unchanged(self) -> None:
        """Raise CheckpointError if the file changed after it was opened."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""


def check_rows(source: TensorSource, begin: int, end: int) -> None:
    """Raise OptionError unless 0 <= begin <= end <= source.shape[0]."""
    if not 0 <= begin <= end <= source.shape[0]:
        raise OptionError(
            f"{source.name}: found rows [{begin}, {end}), expected a range in its "
            f"{source.shape[0]} rows"
        )


def widen_into(out: NDArray[np.float32], raw: bytes | bytearray | memoryview, dtype: str) -> None:
    """Convert n stored little-endian elements of `dtype` to float32 in `out` [n].

    The conversion is exact, except that float64 is rounded. The caller provides `out`, because the
    page faults of a new array of a few megabytes take longer than filling the array.
    """
    stored = np.frombuffer(raw, dtype=STORED_TYPES[dtype])
    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    elif dtype == "F16":
        # mode="wrap" makes NumPy write to `out` without a temporary; no index ever wraps.
        np.take(_half_table(), stored.view("<u2"), out=out, mode="wrap")
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and signalling NaNs
            np.copyto(out, stored, casting="same_kind")


@functools.cache
def _half_table() -> NDArray[np.float32]:
    """Return a table [65536] from each float16 bit pattern to its float32 value.

    Looking values up is over twice as fast as NumPy's conversion.
    """
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def check_finite(rows: NDArray[np.float32], name: str, begin: int, where: str) -> None:
    """Raise CheckpointError unless all `rows` are finite; rows[0] is row `begin` of the tensor.

    `name` is the tensor's name; the message begins with `where`, the checkpoint's path.
    """
    finite = np.isfinite(rows)
    if not finite.all():
        index = np.argwhere(~finite)[0]  # of the first element that is not finite
        raise CheckpointError(
            f"{where}: tensor {show(name)}: found {rows[tuple(index)]} in row {begin + index[0]}, "
            "expected finite numbers: the file is damaged, or the training diverged"
        )
