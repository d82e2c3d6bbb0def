"""A reader of GGUF files: metadata, and tensors of floats or of ggml's quantised blocks.

The format is defined in ggml's docs/gguf.md. gpt2c parses the header itself, with limits on all
sizes. The package gguf (an extra), by the authors of the format, dequantises blocks.
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
from gpt2c.formats.raw_file import MAX_NUMBER, RawFile, RawTensor, closed_on_error
from gpt2c.formats.tensors import TensorSource, check_rows

_VERSIONS: Final = (2, 3)
_MAX_KEYS: Final = 10_000
_MAX_TENSORS: Final = 100_000
_MAX_ARRAY: Final = 1_000_000  # elements; GPT-2 has 50,257 tokens and 50,000 merges
_MAX_STRING: Final = 1 << 20  # bytes; chat templates are the longest
_MAX_HEADER: Final = 32 << 20  # bytes
_MAX_RANK: Final = 4
_CHUNK: Final = 1 << 20  # bytes read at a time

# Type ids of metadata values; the ids of numbers map to struct's format characters.
_NUMBER_FORMATS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9

# ggml's ids of tensor types -> name, elements per block, bytes per block.
_TYPES: Final = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip
# ggml's other types, which no weight has or which the package gguf does not dequantise.
_OTHER_TYPES: Final = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8", 41: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's description in the header."""

    type_id: int  # a key of _TYPES
    shape: tuple[int, ...]  # as in NumPy: the last axis is contiguous
    begin: int  # offset in the file
    n_bytes: int


class GGUFFile(RawFile):
    """An open GGUF file whose header was checked.

    `metadata` maps keys to values: str, int, float, bool, a list of str, or a NumPy array of
    numbers. `tensors` maps the stored names to :class:`GGUFTensor`.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises CheckpointNotFoundError if there is no such file, CheckpointError if it is not a
        valid GGUF file of version 2 or 3.
        """
        super().__init__(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        with closed_on_error(self):
            self._read_header(_HeaderReader(self))

    def source(self, stored: str, name: str) -> TensorSource:
        """Return the tensor called `stored` in the file as a source called `name`."""
        tensor = self.tensors[stored]
        type_name, per_block, _ = _TYPES[tensor.type_id]
        if per_block == 1:
            return RawTensor(self, name, tensor.shape, type_name, tensor.begin)
        return QuantizedTensor(self, name, tensor)

    def _read_header(self, header: _HeaderReader) -> None:
        if header.read(4) != signatures.GGUF:
            raise CheckpointError(f"{self.path}: is not a GGUF file")
        (version,) = header.unpack("<I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.path}: found version {version} of GGUF, expected 2 or 3 (little-endian)"
            )
        n_tensors, n_keys = header.unpack("<QQ")
        if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
            raise CheckpointError(
                f"{self.path}: found {n_tensors} tensors and {n_keys} keys, expected at most "
                f"{_MAX_TENSORS} and {_MAX_KEYS}"
            )
        for _ in range(n_keys):
            key = header.string()
            if key in self.metadata:
                raise CheckpointError(f"{self.path}: has the key {show(key)} twice")
            self.metadata[key] = header.value(*header.unpack("<I"))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 65536 or alignment % 8:
            raise CheckpointError(
                f"{self.path}: found general.alignment {show(alignment)}, expected a multiple of 8 "
                "from 8 to 65536"
            )
        infos = [self._tensor_info(header) for _ in range(n_tensors)]
        start = -(-header.offset // alignment) * alignment
        for name, type_id, shape, offset in infos:
            if name in self.tensors:
                raise CheckpointError(f"{self.path}: has tensor {show(name)} twice")
            n_bytes = self._n_bytes(name, type_id, shape)
            if offset % alignment:
                raise CheckpointError(
                    f"{self.path}: tensor {show(name)} begins at {offset}, expected a multiple of "
                    f"{alignment}"
                )
            self.tensors[name] = GGUFTensor(type_id, shape, start + offset, n_bytes)
        if self.tensors:
            spans = [(name, t.begin, t.begin + t.n_bytes) for name, t in self.tensors.items()]
            self.check_contiguous(sorted(spans, key=lambda span: span[1]), start, alignment)

    def _tensor_info(self, header: _HeaderReader) -> tuple[str, int, tuple[int, ...], int]:
        """Read a tensor's name, type id, shape, and offset from the start of the tensors."""
        name = header.string()
        (rank,) = header.unpack("<I")
        if rank > _MAX_RANK:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} has {rank} axes, expected at most {_MAX_RANK}"
            )
        axes = header.unpack(f"<{rank}Q")
        type_id, offset = header.unpack("<IQ")
        if offset > MAX_NUMBER or math.prod(axes) > MAX_NUMBER:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)}: found shape {show(axes[::-1])} at {offset}, "
                f"expected at most {MAX_NUMBER} elements and an offset of at most {MAX_NUMBER}"
            )
        return name, type_id, axes[::-1], offset

    def _n_bytes(self, name: str, type_id: int, shape: tuple[int, ...]) -> int:
        if type_id not in _TYPES:
            known = ", ".join(name for name, *_ in _TYPES.values())
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} has ggml's type {_type_name(type_id)}, expected "
                f"one of {known}"
            )
        type_name, per_block, n_bytes = _TYPES[type_id]
        width = shape[-1] if shape else 1
        if width % per_block:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} has rows of {width} elements, expected a "
                f"multiple of {per_block} (a block of {type_name})"
            )
        return math.prod(shape) // per_block * n_bytes


def _type_name(type_id: int) -> str:
    """Return the name and the id of a type that is not in _TYPES."""
    name = _OTHER_TYPES.get(type_id)
    return str(type_id) if name is None else f"{name} ({type_id})"


class _HeaderReader:
    """Reads the header's values in order; `offset` is that of the next value.

    All methods raise CheckpointError if the header is malformed or exceeds a limit.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.offset = file, 0
        self._chunk, self._chunk_begin = b"", 0
        self._end = min(file.size, _MAX_HEADER)

    def read(self, n: int) -> bytes:
        if n > self._end - self.offset:
            raise CheckpointError(
                f"{self.file.path}: header: found a value of {n} bytes at byte {self.offset}, "
                f"expected at most the {self._end - self.offset} that are left"
            )
        begin = self.offset - self._chunk_begin
        if begin + n > len(self._chunk):
            length = min(max(n, _CHUNK), self._end - self.offset)
            self._chunk = bytes(self.file.pread(length, self.offset, "header"))
            self._chunk_begin, begin = self.offset, 0
        self.offset += n
        return self._chunk[begin : begin + n]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))

    def string(self) -> str:
        (n,) = self.unpack("<Q")
        if n > _MAX_STRING:
            raise CheckpointError(
                f"{self.file.path}: header: found a string of {n} bytes, expected at most "
                f"{_MAX_STRING}"
            )
        # Some vocabularies have tokens that are not UTF-8; code that uses the tokens rejects them.
        return self.read(n).decode("utf-8", "surrogateescape")

    def value(self, type_id: int) -> Any:
        """Read a string, a number, a list of strings, or a NumPy array of numbers."""
        if type_id == _STRING:
            return self.string()
        if type_id == _ARRAY:
            return self._array()
        return self.unpack("<" + self._number_format(type_id))[0]

    def _number_format(self, type_id: int) -> str:
        if type_id not in _NUMBER_FORMATS:
            raise CheckpointError(
                f"{self.file.path}: header: found a value of type {type_id} at byte {self.offset}, "
                f"expected one of {', '.join(map(str, sorted(_NUMBER_FORMATS)))}"
            )
        return _NUMBER_FORMATS[type_id]

    def _array(self) -> Any:
        type_id, n = self.unpack("<IQ")
        if n > _MAX_ARRAY:
            raise CheckpointError(
                f"{self.file.path}: header: found an array of {n} elements, expected at most "
                f"{_MAX_ARRAY}"
            )
        if type_id == _STRING:
            return [self.string() for _ in range(n)]
        dtype = np.dtype("<" + self._number_format(type_id))
        return np.frombuffer(self.read(n * dtype.itemsize), dtype=dtype)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A TensorSource over ggml's quantised blocks, which never cross the end of a row."""

    file: GGUFFile
    name: str
    tensor: GGUFTensor
    dtype: str = "F32"  # the dtype after dequantising

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.tensor.shape

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource. Raises MissingDependencyError if gguf is not installed."""
        check_rows(self, begin, end)
        if len(self.shape) == 1:  # the rows of a vector are its elements, many in a block
            return self._dequantised(0, self.tensor.n_bytes)[begin:end].copy()
        row_bytes = self.tensor.n_bytes // max(self.shape[0], 1)
        rows = self._dequantised(begin * row_bytes, (end - begin) * row_bytes)
        return rows.reshape(end - begin, *self.shape[1:])

    def _dequantised(self, offset: int, n_bytes: int) -> NDArray[np.float32]:
        """Return the elements [n] of the blocks in the tensor's n_bytes from `offset`."""
        gguf = _import_gguf(self.file.path)
        raw = self.file.pread(n_bytes, self.tensor.begin + offset, f"tensor {self.name!r}")
        if not raw:
            return np.empty(0, dtype=np.float32)
        blocks = np.frombuffer(raw, dtype=np.uint8)[None]
        with np.errstate(all="ignore"):  # check_finite reports weights that are NaN or infinite
            try:
                kind = gguf.GGMLQuantizationType(self.tensor.type_id)
                elements = gguf.quants.dequantize(blocks, kind)
            except (ValueError, NotImplementedError):
                name = _TYPES[self.tensor.type_id][0]
                raise MissingDependencyError(
                    f"{self.file.path}: its weights of type {name} need a newer version of the "
                    "package gguf: pip install -U gguf"
                ) from None
        return np.ascontiguousarray(elements[0], dtype=np.float32)


def _import_gguf(path: Path) -> Any:
    """Return the package gguf. Raises MissingDependencyError, naming `path`, without it."""
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError(
            f"{path}: its quantised weights need the package gguf: pip install gguf "
            "(the extra gpt2c[gguf])"
        ) from None
    return gguf
