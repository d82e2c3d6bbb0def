"""Opens gpt2c's own checkpoints of quantised weights, stored as the engine has them in memory.

``gpt2c.safetensors``, beside a ``config.json``, holds vectors and wpe in float32 and each matrix as
the bytes of its panels, uint8 [panels, groups, bytes of a block], all under GPT-2's names. Loading
copies the bytes without conversion. The metadata names the layout and its version;
docs/quantization.md defines the layout.

A panel holds PANEL adjacent columns of a matrix [k, n]; a group has GROUP consecutive rows. A block
is one group of one panel: its quantised values, then a 16-bit word for each column with the scale
(in int4 also the zero point).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError
from gpt2c.formats.safetensors_file import SafetensorsFile, TensorInfo
from gpt2c.formats.tensors import TensorSource, check_rows
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.classifier import head_names, read_head

VERSION: Final = "1"
GROUP: Final = 32  # consecutive values of a column that share a scale
PANEL: Final = 32  # columns
# Bytes of a block's quantised values, which precede its 16-bit words.
VALUE_BYTES: Final = {"int8": GROUP * PANEL, "int4": GROUP * PANEL // 2}
# These matrices are always int8, and stored transposed: their rows are the panels' columns.
_EMBEDDINGS: Final = ("wte.weight", "lm_head.weight")
_CHECKED_BLOCKS: Final = 2048  # blocks checked at a time, about 2 MB


def metadata(dtype: str) -> dict[str, str]:
    """Return the metadata of a file of this dtype, "int8" or "int4".

    There is only one entry, so that the same weights give the same file: safetensors writes several
    entries in an arbitrary order.
    """
    embeddings = "" if dtype == "int8" else ", embeddings int8"
    return {"gpt2c": f"{dtype}{embeddings}, group {GROUP}, panel {PANEL}, version {VERSION}"}


def matrix_dtype(name: str, dtype: str) -> str:
    """Return the dtype of one matrix in a model of this dtype: "int8" or "int4"."""
    return "int8" if name in _EMBEDDINGS else dtype


def packed_shape(name: str, shape: tuple[int, ...], dtype: str) -> tuple[int, int, int] | None:
    """Return the shape [panels, groups, bytes] of a tensor's panels; None if it stays float32.

    `shape` is the tensor's shape as TensorSource defines it.
    """
    if len(shape) == 1 or name == "wpe.weight":
        return None
    k, n = shape[::-1] if name in _EMBEDDINGS else shape
    return -(-n // PANEL), -(-k // GROUP), VALUE_BYTES[matrix_dtype(name, dtype)] + 2 * PANEL


@dataclass(frozen=True)
class PackedTensor:
    """A TensorSource and PackedSource over a matrix's panels in a file."""

    file: SafetensorsFile
    info: TensorInfo
    name: str
    shape: tuple[int, ...]
    quantized_dtype: str
    dtype: str = "F32"  # the dtype after dequantising

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """See PackedSource."""
        n_panels, n_groups, n_bytes = self.info.shape
        return n_panels, n_groups, n_bytes

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource; the rows are dequantised."""
        check_rows(self, begin, end)
        n_panels, n_groups, n_bytes = self.packed_shape
        if self.name in _EMBEDDINGS:
            first = begin // PANEL
            panels = np.empty((-(-end // PANEL) - first, n_groups, n_bytes), dtype=np.uint8)
            self.read_panels(first, panels)
            columns = dequantised(panels, self.quantized_dtype)[
                : self.shape[1], begin - first * PANEL :
            ]
            return np.ascontiguousarray(columns[:, : end - begin].T)
        panels = np.empty((n_panels, n_groups, n_bytes), dtype=np.uint8)
        self.read_panels(0, panels)
        first = begin // GROUP
        rows = dequantised(panels[:, first : -(-end // GROUP)], self.quantized_dtype)
        at = begin - first * GROUP
        return np.ascontiguousarray(rows[at : at + end - begin, : self.shape[1]])

    def read_panels(self, begin: int, panels: NDArray[np.uint8]) -> None:
        """See PackedSource."""
        offset = self.info.begin + begin * panels[0].size if len(panels) else 0
        self.file.pread_into(panels.reshape(-1).data, offset, f"tensor {self.name!r}")
        if self.quantized_dtype == "int4":  # any word is a valid scale
            return
        for at in range(0, len(panels), step := max(1, _CHECKED_BLOCKS // panels.shape[1])):
            words = panels[at : at + step, :, VALUE_BYTES["int8"] :].view("<u2")
            if (words >= 0x7F80).any():  # the bfloat16 is infinite, NaN or negative
                raise CheckpointError(
                    f"{self.file.path}: tensor {show(self.name)}: found a scale that is not "
                    "positive and finite: the file is damaged"
                )


def dequantised(panels: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Dequantise uint8 [panels, groups, bytes] to float32 [groups * GROUP, panels * PANEL].

    `dtype` is "int8" or "int4".
    """
    n_panels, n_groups, _ = panels.shape
    split = VALUE_BYTES[dtype]
    stored, words = panels[..., :split], panels[..., split:].view("<u2").astype(np.uint32)
    # Four consecutive values of a column are stored together: [k / 4, PANEL, 4] -> [k, PANEL].
    fours = stored.reshape(n_panels, n_groups, -1, PANEL, 4).swapaxes(3, 4)
    values = fours.reshape(n_panels, n_groups, -1, PANEL)
    if dtype == "int8":
        scales = (words << 16).view(np.float32)
        numbers = values.astype(np.int16) - 128
    else:
        scales = (((words & 0xFFF0) << 14) + (32 << 23)).view(np.float32)
        values = np.concatenate([values & 15, values >> 4], axis=2)
        numbers = values.astype(np.int16) - (words & 15).astype(np.int16)[:, :, None]
    wide = numbers.astype(np.float32) * scales[:, :, None]
    return wide.transpose(1, 2, 0, 3).reshape(n_groups * GROUP, n_panels * PANEL)


def quantized_checkpoint(file: SafetensorsFile, config: GPT2Config, folder: Path) -> Checkpoint:
    """Return the checkpoint in an open gpt2c.safetensors; it owns the file.

    Raises CheckpointError for another version or layout, and for tensors that are missing,
    unexpected or of the wrong shape.
    """
    dtype = _stored_dtype(file.metadata, file.path)
    shapes = tensor_shapes(config)
    found: dict[str, TensorSource] = {}
    for name, info in file.tensors.items():
        shape = shapes.get(name)
        packed = packed_shape(name, shape, dtype) if shape else None
        if packed is None or shape is None:
            found[name] = file.named_source(name, name)
            continue
        if info.shape != packed or info.dtype != "U8":
            raise CheckpointError(
                f"{file.path}: tensor {show(name)}: found {info.dtype} {list(info.shape)}, "
                f"expected U8 {list(packed)}"
            )
        found[name] = PackedTensor(file, info, name, shape, matrix_dtype(name, dtype))
    of_head = head_names(found)
    head = None
    if of_head:
        sources = {name: found.pop(name) for name in of_head}
        head = read_head(sources, config, folder / "config.json", str(file.path))
    tensors = checked_tensors(config, found, str(file.path))
    return Checkpoint(config, tensors, folder, (file,), quantized_dtype=dtype, classifier=head)


def _stored_dtype(found: dict[str, str], path: Path) -> str:
    for dtype in VALUE_BYTES:
        if found == metadata(dtype):
            return dtype
    raise CheckpointError(
        f"{path}: found the layout {show(found)}, expected one of "
        f"{', '.join(repr(metadata(dtype)) for dtype in VALUE_BYTES)}: it was written by another "
        "version of gpt2c; quantize the original again"
    )
