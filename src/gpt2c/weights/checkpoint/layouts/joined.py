"""Tensors made of the stored parts of another layout: joined, reshaped, or zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats.raw_file import RawTensor
from gpt2c.formats.tensors import STORED_TYPES, TensorSource
from gpt2c.weights.checkpoint.shared.views import WholeReadSource, Zeros

# Turns a stored part into a matrix [in, out], or into a vector.
View = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """A stored tensor that is a part of one of GPT-2's, its name in the file, and how to view it.

    `shape` is the shape after `view`.
    """

    stored: str
    source: RawTensor
    shape: tuple[int, ...]
    view: View


def linear_part(stored: str, source: RawTensor) -> Part:
    """Return the weights [out, in] or the bias of an nn.Linear as a part."""
    return Part(stored, source, source.shape[::-1], np.transpose)


def joined(
    name: str, parts: Sequence[Part], part_shape: tuple[int, ...], where: str
) -> TensorSource:
    """Return the parts joined along their last axis; each part must have the shape `part_shape`.

    Raises CheckpointError, with a message that begins with `where`.
    """
    for part in parts:
        if part.shape != part_shape:
            raise CheckpointError(
                f"{where}: tensor {show(part.stored)}: found shape {list(part.source.shape)}, "
                f"which does not fit the model's width {part_shape[0] if part_shape else 0}"
            )
    shape = (*part_shape[:-1], sum(part.shape[-1] for part in parts))
    return WholeReadSource(
        name,
        shape,
        _common_dtype(parts),
        lambda: np.concatenate([_read(part) for part in parts], axis=-1),
    )


def viewed(name: str, part: Part) -> TensorSource:
    """Return one part as a tensor; a part that is stored in its final shape is read in pieces."""
    if part.source.shape == part.shape and part.view is _unchanged:
        return replace(part.source, name=name)
    return WholeReadSource(name, part.shape, part.source.dtype, lambda: _read(part))


def plain_part(stored: str, source: RawTensor) -> Part:
    """Return a stored tensor as a part that needs no other view."""
    return Part(stored, source, source.shape, _unchanged)


def zeros_unless(
    found: dict[str, TensorSource], shapes: dict[str, tuple[int, ...]]
) -> dict[str, TensorSource]:
    """Return `found` with zeros for the names of `shapes` that it lacks."""
    return {name: Zeros(name, shape) for name, shape in shapes.items()} | found


def _unchanged(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array


def _read(part: Part) -> NDArray[np.float32]:
    return part.view(part.source.read(0, part.source.shape[0]))


def _common_dtype(parts: Sequence[Part]) -> str:
    """Return the parts' dtype; F32 for several dtypes; a dtype that weights cannot have first."""
    dtypes = {part.source.dtype for part in parts}
    if unknown := sorted(dtypes - STORED_TYPES.keys()):
        return unknown[0]
    return dtypes.pop() if len(dtypes) == 1 else "F32"
