"""What every reader of a file hands over: tensors, read by rows and widened to float32."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError, OptionError

# The dtypes that weights may have, as safetensors names them, and NumPy's type of the stored
# bits. bfloat16 has no NumPy type: its bits are the upper half of a float32.
STORED_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


class TensorSource(Protocol):
    """One tensor of a checkpoint, read piece by piece so that it can go straight to its place.

    Reads keep no state, so several threads may read from one source at once.
    """

    @property
    def name(self) -> str:
        """GPT-2's name without a prefix: "wte.weight", "h.0.attn.c_attn.weight"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Matrices are [in, out], as HF's Conv1D stores them; embeddings are [rows, n_embd]."""

    @property
    def dtype(self) -> str:
        """As it is stored: "F32", "F16", "BF16" or "F64"."""

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows [begin, end) of the first axis, C-contiguous, the caller's own.

        float16 and bfloat16 are widened exactly; float64 is rounded to nearest even, to an
        infinity beyond float32. NaNs and infinities pass; see :func:`check_finite`.

        Raises CheckpointError where the file was cut or cannot be read, ClosedError after
        close, OptionError unless 0 <= begin <= end <= shape[0].
        """


@runtime_checkable
class PackedSource(Protocol):
    """A TensorSource whose matrix is there as the panels of quantised groups that the engine has.

    checkpoint/quantized.py says what is in them.
    """

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """Panels, groups in each, and the bytes of a group's block."""

    def read_panels(self, begin: int, panels: NDArray[np.uint8]) -> None:
        """Fills panels [n, groups, bytes] with those from the begin-th on."""


class BackingFile(Protocol):
    """A file that sources read from."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def verify_unchanged(self) -> None:
        """Raises CheckpointError if the file is not what it was when it was opened."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""


def check_rows(source: TensorSource, begin: int, end: int) -> None:
    """Raises OptionError unless 0 <= begin <= end <= shape[0]."""
    if not 0 <= begin <= end <= source.shape[0]:
        raise OptionError(
            f"{source.name}: rows {begin} to {end} were asked for, it has {source.shape[0]}"
        )


def widen_into(out: NDArray[np.float32], raw: bytes | bytearray | memoryview, dtype: str) -> None:
    """Write stored little-endian items to `out` [n]: exact but for float64, which is rounded.

    In place, for a fresh array of some megabytes costs more in page faults than its filling.
    """
    items = np.frombuffer(raw, dtype=STORED_TYPES[dtype])
    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[...] = items
        np.left_shift(bits, 16, out=bits)
    elif dtype == "F16":
        # "wrap" because it writes without a buffer between; no index is outside of the table.
        np.take(_half_table(), items.view("<u2"), out=out, mode="wrap")
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and signalling NaNs
            np.copyto(out, items, casting="same_kind")


@functools.cache
def _half_table() -> NDArray[np.float32]:
    """float16 bits -> float32 [65536]: over twice as fast as NumPy's conversion."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def check_finite(rows: NDArray[np.float32], name: str, begin: int, where: str) -> None:
    """Raises CheckpointError where rows [begin, ...) of a tensor have what is no finite number."""
    finite = np.isfinite(rows)
    if not finite.all():
        at = np.argwhere(~finite)[0]
        raise CheckpointError(
            f"{where}: tensor {show(name)}: found {rows[tuple(at)]} in row {begin + at[0]}, "
            "expected finite numbers: the file is damaged, or the training had failed before"
        )
