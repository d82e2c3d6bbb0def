"""Choose the matrices that a float32 model tries to store in 16 bits."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.shared.views import Updated, WholeReadSource

# The dtypes to try for matrices that the checkpoint stores in 16 bits.
_STORED: Final = {"F16": ["float16"], "BF16": ["bfloat16"]}


def dtypes_to_try(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the dtypes to try, in order, for each matrix that may fit in 16 bits.

    The last one is "float32". A matrix that the checkpoint does not store in 16 bits is tried if
    its first row fits (its first column, if the loader transposes it). Reading one row takes little
    time, and most matrices trained in float32 have values there that do not fit. If one row cannot
    be read alone, the matrix is not tried; neither is a matrix that an adapter changes.
    """
    tries = {}
    for name, source in checkpoint.tensors.items():
        if len(source.shape) != 2 or name == "wpe.weight" or isinstance(source, Updated):
            continue
        dtypes = _STORED.get(source.dtype) or _dtypes_of_sample(source)
        if dtypes:
            tries[name] = [*dtypes, "float32"]
    return tries


def _dtypes_of_sample(source: TensorSource) -> list[str]:
    # bfloat16 comes first: many rows of a bfloat16 model fit in float16 too, since only the
    # smallest weights do not, but hardly any row of a float16 model fits in bfloat16.
    sample = source.sample() if isinstance(source, WholeReadSource) else source.read(0, 1)
    if sample is None:
        return []
    return [dtype for dtype, fits in _FITS.items() if fits(sample)]


def _fits_bfloat16(values: NDArray[np.float32]) -> bool:
    return not (values.view(np.uint32) & 0xFFFF).any()


def _fits_float16(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


_FITS: Final = {"bfloat16": _fits_bfloat16, "float16": _fits_float16}
