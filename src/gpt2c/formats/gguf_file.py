"""GGUF files: the header, read by us and bounded by the file's size, and quantised tensors.

The format is that of ggml's docs/gguf.md. Blocks of quantised weights are widened by the package
gguf (an extra), which the authors of the format keep.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError, MissingDependencyError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile, RawTensor
from gpt2c.formats.tensors import TensorSource, check_rows

_VERSIONS: Final = (2, 3)
_MAX_KEYS: Final = 10_000
_MAX_TENSORS: Final = 100_000
_MAX_ITEMS: Final = 1_000_000  # of an array; a vocabulary has 50,000 tokens and as many merges
_MAX_TEXT: Final = 1 << 20  # bytes of a text; chat templates are the longest
_MAX_HEADER: Final = 32 << 20  # bytes
_MAX_RANK: Final = 4
_MAX_NUMBER: Final = 2**53
_CHUNK: Final = 1 << 20

# Metadata's types: struct's letters. 8 is a text, 9 an array.
_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_TEXT: Final = 8
_ARRAY: Final = 9

# ggml's types: name, items of a block, bytes of a block.
_TYPES: Final = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """What the header says of a tensor; `shape` is NumPy's, the last axis contiguous."""

    type: int
    shape: tuple[int, ...]
    begin: int  # in the file
    n_bytes: int


class GGUFFile(RawFile):
    """An open file whose header was read: `metadata` by key, `tensors` by name."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointNotFoundError where there is none, else CheckpointError."""
        super().__init__(path)
        try:
            self.metadata: dict[str, Any] = {}
            self.tensors: dict[str, GGUFTensor] = {}
            self._read_header(_Header(self))
        except BaseException:
            self.close()
            raise

    def source(self, stored: str, name: str) -> TensorSource:
        """The tensor `stored` as a source called `name`."""
        tensor = self.tensors[stored]
        type_name, per_block, _ = _TYPES[tensor.type]
        if per_block == 1:
            return RawTensor(self, name, tensor.shape, type_name, tensor.begin)
        return Quantized(self, name, tensor)

    def _read_header(self, header: _Header) -> None:
        if header.take(4) != signatures.GGUF:
            raise CheckpointError(f"{self.path}: is no GGUF file")
        (version,) = header.numbers("<I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.path}: found version {version} of GGUF, expected 2 or 3 (little-endian)"
            )
        n_tensors, n_keys = header.numbers("<QQ")
        if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
            raise CheckpointError(
                f"{self.path}: found {n_tensors} tensors and {n_keys} keys, expected at most "
                f"{_MAX_TENSORS} and {_MAX_KEYS}"
            )
        for _ in range(n_keys):
            key = header.text()
            if key in self.metadata:
                raise CheckpointError(f"{self.path}: has the key {show(key)} twice")
            self.metadata[key] = header.value(*header.numbers("<I"))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 65536 or alignment % 8:
            raise CheckpointError(f"{self.path}: found alignment {show(alignment)}")
        infos = [self._tensor_info(header) for _ in range(n_tensors)]
        start = -(-header.place // alignment) * alignment
        for name, type_id, shape, offset in infos:
            if name in self.tensors:
                raise CheckpointError(f"{self.path}: has tensor {show(name)} twice")
            n_bytes = self._n_bytes(name, type_id, shape)
            if offset % alignment:
                raise CheckpointError(
                    f"{self.path}: tensor {show(name)} is at {offset}, expected a multiple of "
                    f"{alignment}"
                )
            self.tensors[name] = GGUFTensor(type_id, shape, start + offset, n_bytes)
        self._check_places(start, alignment)

    def _tensor_info(self, header: _Header) -> tuple[str, int, tuple[int, ...], int]:
        name = header.text()
        (rank,) = header.numbers("<I")
        if rank > _MAX_RANK:
            raise CheckpointError(f"{self.path}: tensor {show(name)} has {rank} axes")
        axes = header.numbers(f"<{rank}Q")
        type_id, offset = header.numbers("<IQ")
        if offset > _MAX_NUMBER or math.prod(axes) > _MAX_NUMBER:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} of shape {show(axes[::-1])} at {offset}: the "
                "numbers overflow"
            )
        return name, type_id, axes[::-1], offset

    def _n_bytes(self, name: str, type_id: int, shape: tuple[int, ...]) -> int:
        if type_id not in _TYPES:
            known = ", ".join(name for name, *_ in _TYPES.values())
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} has ggml's type {type_id}, expected one of "
                f"{known}"
            )
        type_name, per_block, n_bytes = _TYPES[type_id]
        width = shape[-1] if shape else 1
        if width % per_block:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} has rows of {width} items, expected a multiple "
                f"of {type_name}'s {per_block}"
            )
        return math.prod(shape) // per_block * n_bytes

    def _check_places(self, start: int, alignment: int) -> None:
        """Tensors follow each other to the file's end, with no more than alignment between."""
        place = start
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].begin):
            if not place <= tensor.begin < place + alignment:
                raise CheckpointError(
                    f"{self.path}: tensor {show(name)} overlaps the one before it, or leaves a hole"
                )
            place = tensor.begin + tensor.n_bytes
            if place > self.size:
                raise CheckpointError(
                    f"{self.path}: tensor {show(name)} ends at byte {place}, and the file at "
                    f"{self.size}: it is cut short"
                )
        if self.tensors and self.size >= place + alignment:
            raise CheckpointError(
                f"{self.path}: found {self.size} bytes, expected the {place} of its tensors"
            )


class _Header:
    """Reads a header from the front, a piece of the file at a time."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.place = file, 0
        self._raw, self._begin = b"", 0
        self._end = min(file.size, _MAX_HEADER)

    def take(self, n: int) -> bytes:
        if n > self._end - self.place:
            raise CheckpointError(
                f"{self.file.path}: header: found a value of {n} bytes at byte {self.place}, where "
                f"{self._end - self.place} are left"
            )
        at = self.place - self._begin
        if at + n > len(self._raw):
            length = min(max(n, _CHUNK), self._end - self.place)
            self._raw = bytes(self.file.pread(length, self.place, "header"))
            self._begin, at = self.place, 0
        self.place += n
        return self._raw[at : at + n]

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self) -> str:
        (n,) = self.numbers("<Q")
        if n > _MAX_TEXT:
            raise CheckpointError(
                f"{self.file.path}: header: found a text of {n} bytes, expected at most {_MAX_TEXT}"
            )
        # Tokens of some vocabularies are no UTF-8; they are refused where they are needed.
        return self.take(n).decode("utf-8", "surrogateescape")

    def value(self, type_id: int) -> Any:
        """A text, a number, a list of texts, or an array of numbers."""
        if type_id == _TEXT:
            return self.text()
        if type_id == _ARRAY:
            return self._array()
        return self.numbers("<" + self._letter(type_id))[0]

    def _letter(self, type_id: int) -> str:
        if type_id not in _NUMBERS:
            raise CheckpointError(
                f"{self.file.path}: header: found a value of type {type_id} at byte {self.place}, "
                "which is not known"
            )
        return _NUMBERS[type_id]

    def _array(self) -> Any:
        type_id, n = self.numbers("<IQ")
        if n > _MAX_ITEMS:
            raise CheckpointError(
                f"{self.file.path}: header: found an array of {n} items, expected at most "
                f"{_MAX_ITEMS}"
            )
        if type_id == _TEXT:
            return [self.text() for _ in range(n)]
        kind = np.dtype("<" + self._letter(type_id))
        return np.frombuffer(self.take(n * kind.itemsize), dtype=kind)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A TensorSource over blocks of quantised weights; rows are whole blocks."""

    file: GGUFFile
    name: str
    tensor: GGUFTensor
    dtype: str = "F32"  # what reading gives

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return self.tensor.shape

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        if len(self.shape) == 1:  # its blocks do not end where items do
            return self._widened(0, self.tensor.n_bytes)[begin:end].copy()
        row_bytes = self.tensor.n_bytes // max(self.shape[0], 1)
        widened = self._widened(begin * row_bytes, (end - begin) * row_bytes)
        return widened.reshape(end - begin, *self.shape[1:])

    def _widened(self, place: int, n_bytes: int) -> NDArray[np.float32]:
        """The items [n] of the blocks in n_bytes of the tensor's."""
        quants = _quants(self.file.path)
        raw = self.file.pread(n_bytes, self.tensor.begin + place, f"tensor {self.name!r}")
        if not raw:
            return np.empty(0, dtype=np.float32)
        blocks = np.frombuffer(raw, dtype=np.uint8)[None]
        with np.errstate(all="ignore"):  # scales that are no numbers give weights that are none
            widened = quants.dequantize(blocks, _gguf_type(self.tensor.type))
        return np.ascontiguousarray(widened[0], dtype=np.float32)


def _quants(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError(
            f"{path}: to widen its quantised weights the package gguf is needed: pip install gguf "
            "(the extra gpt2c[gguf])"
        ) from None
    return gguf.quants


def _gguf_type(type_id: int) -> Any:
    import gguf

    return gguf.GGMLQuantizationType(type_id)
