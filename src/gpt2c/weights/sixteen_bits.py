"""Choose the matrices that a float32 model stores in 16 bits, because all their weights fit."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.shared.views import WholeReadSource

# The dtypes to try for matrices whose stored dtype has 16 bits.
_STORED: Final = {"F16": ["float16"], "BF16": ["bfloat16"]}


def dtypes_to_try(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the 16-bit dtypes to try for each matrix that may fit, in order, then "float32".

    The dtype of a float32 matrix is guessed from its first row, which costs little time. Most
    matrices that have been trained in float32 do not fit, and do not get past that row.
    """
    tries = {}
    for name, source in checkpoint.tensors.items():
        if len(source.shape) != 2 or name == "wpe.weight":
            continue
        dtypes = _STORED.get(source.dtype) or _dtypes_of_sample(source)
        if dtypes:
            tries[name] = [*dtypes, "float32"]
    return tries


def _dtypes_of_sample(source: TensorSource) -> list[str]:
    # Weights of a bfloat16 model often fit in float16 too, except for the smallest; in a row of a
    # float16 model some weights never fit in bfloat16. So bfloat16 comes first.
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
