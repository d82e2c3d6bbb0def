"""A reader of safetensors files: it checks the header strictly and reads tensors at their offsets.

A file holds the header's length in eight bytes, a JSON header, and the tensors' bytes without gaps.
The reader makes all checks of the safetensors package and more, so the package accepts every file
that the reader accepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import CheckpointError
from gpt2c.formats.raw_file import MAX_NUMBER, RawFile, RawTensor, bounded_product, closed_on_error

MAX_HEADER: Final = 100_000_000  # bytes, the format's own limit
_MAX_RANK: Final = 4

_ELEMENT_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1,
    "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_SUB_BYTE: Final = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description in the header; `begin` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(RawFile):
    """An open safetensors file whose header was checked.

    `tensors` maps the stored names to :class:`TensorInfo`; `metadata` is the header's
    ``__metadata__``.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises CheckpointNotFoundError if there is no such file, CheckpointError if the file
        cannot be read or its header breaks the format's rules.
        """
        super().__init__(path)
        with closed_on_error(self):
            self.tensors, self.metadata = self._read_header()

    def named_source(self, stored: str, name: str) -> RawTensor:
        """Return the tensor called `stored` in the file as a source called `name`."""
        info = self.tensors[stored]
        return RawTensor(self, name, info.shape, info.dtype, info.begin)

    def _read_header(self) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        if self.size < 8:
            raise CheckpointError(
                f"{self.path}: found {self.size} bytes, expected at least 8 (the header length)"
            )
        length = int.from_bytes(self.pread(8, 0, "header length"), "little")
        if length > min(self.size - 8, MAX_HEADER):
            raise CheckpointError(
                f"{self.path}: found a header length of {length}, expected at most "
                f"{min(self.size - 8, MAX_HEADER)}"
            )
        raw = bytes(self.pread(length, 8, "header"))
        if not raw.startswith(b"{"):
            raise CheckpointError(
                f"{self.path}: found {show(raw[:8])} at the header's start, expected '{{'"
            )
        try:
            header = parse_json(raw)
            metadata = _checked_metadata(header.pop("__metadata__", {}))
            tensors = {
                name: _tensor_info(entry, name, 8 + length) for name, entry in header.items()
            }
        except ValueError as reason:
            raise CheckpointError(f"{self.path}: header {reason}") from None
        spans = [(name, info.begin, info.end) for name, info in tensors.items()]
        self.check_contiguous(sorted(spans, key=lambda span: span[1:]), 8 + length)
        return tensors, metadata


# The functions below raise ValueError; _read_header puts "FILE: header" before the message.


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError(f"has __metadata__ {show(metadata)}, expected an object of strings")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ValueError(f"has {show(value)} in __metadata__ at {show(key)}, expected a string")
    return metadata


def _tensor_info(entry: object, name: str, start: int) -> TensorInfo:
    """Parse one entry of the header; `start` is the offset of the tensors' bytes in the file."""
    what = f"has tensor {show(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what}: found {show(entry)}, expected dtype, shape and data_offsets")
    dtype: Any = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _ELEMENT_BYTES:
        kind = "sub-byte dtype" if dtype in _SUB_BYTE else "dtype"
        raise ValueError(
            f"{what}: found {kind} {show(dtype)}, expected a known dtype of whole bytes"
        )
    shape = _checked_integers(entry["shape"], f"{what}: shape")
    offsets = _checked_integers(entry["data_offsets"], f"{what}: data_offsets")
    if len(shape) > _MAX_RANK:
        raise ValueError(f"{what}: found {len(shape)} axes, expected at most {_MAX_RANK}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what}: found data_offsets {show(offsets)}, expected [begin, end]")
    size = bounded_product((_ELEMENT_BYTES[dtype], *shape))
    if size is None:
        raise ValueError(f"{what}: found shape {show(shape)}, whose size overflows")
    if offsets[1] - offsets[0] != size:
        raise ValueError(
            f"{what}: found {offsets[1] - offsets[0]} bytes in data_offsets, expected {size} for "
            f"{dtype} {show(shape)}"
        )
    return TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _checked_integers(value: object, what: str) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"{what}: found {show(value)}, expected a list of integers")
    for number in value:
        if type(number) is not int or not 0 <= number <= MAX_NUMBER:  # rejects bools too
            raise ValueError(
                f"{what}: found {show(number)}, expected an integer from 0 to {MAX_NUMBER}"
            )
    return value
