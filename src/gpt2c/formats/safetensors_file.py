"""Reading a safetensors file: a strict check of its header, then pread.

The layout is eight bytes of header length, a JSON header, and the tensors' bytes without a
gap. The rules are those of the format's own reader and a little stricter: whatever is accepted
here is accepted there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import CheckpointError
from gpt2c.formats.raw_file import RawFile, RawTensor

MAX_HEADER = 100_000_000  # bytes, the format's own limit
_MAX_NUMBER = 2**53  # beyond it other parsers lose integers
_MAX_RANK = 4

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1,
    "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_SUB_BYTE = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor; `begin` and `end` count from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(RawFile):
    """An open safetensors file whose header was checked.

    `tensors` maps the stored names to :class:`TensorInfo`; `metadata` is the header's own.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointNotFoundError where there is none, else CheckpointError."""
        super().__init__(path)
        try:
            self.tensors, self.metadata = self._read_header(self.size)
        except BaseException:
            self.close()
            raise

    def named_source(self, stored: str, name: str) -> RawTensor:
        """The tensor called `stored` in the file, as a source called `name`."""
        info = self.tensors[stored]
        return RawTensor(self, name, info.shape, info.dtype, info.begin)

    def _read_header(self, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        if size < 8:
            raise CheckpointError(
                f"{self.path}: found {size} bytes, expected the 8 of a header's length"
            )
        length = int.from_bytes(self.pread(8, 0, "header length"), "little")
        if length > min(size - 8, MAX_HEADER):
            raise CheckpointError(
                f"{self.path}: found a header length of {length}, expected at most "
                f"{min(size - 8, MAX_HEADER)}"
            )
        raw = bytes(self.pread(length, 8, "header"))
        if not raw.startswith(b"{"):
            raise CheckpointError(
                f"{self.path}: found {show(raw[:8])} at the header's start, expected '{{'"
            )
        try:
            header = parse_json(raw)
            metadata = _check_metadata(header.pop("__metadata__", {}))
            tensors = {
                name: _tensor_info(entry, name, 8 + length) for name, entry in header.items()
            }
            _check_layout(tensors, 8 + length, size)
        except ValueError as reason:
            raise CheckpointError(f"{self.path}: header {reason}") from None
        return tensors, metadata


# The checks below raise ValueError with the rest of a sentence that begins "FILE: header".


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError(f"has __metadata__ {show(metadata)}, expected an object of strings")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ValueError(f"has {show(value)} in __metadata__ at {show(key)}, expected a string")
    return metadata


def _tensor_info(entry: object, name: str, start: int) -> TensorInfo:
    """Check all of an entry that does not need the others; `start` is where the data begins."""
    what = f"has tensor {show(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what}: found {show(entry)}, expected dtype, shape and data_offsets")
    dtype: Any = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        kind = "sub-byte dtype" if dtype in _SUB_BYTE else "dtype"
        raise ValueError(f"{what}: found {kind} {show(dtype)}, expected a known one of whole bytes")
    shape = _numbers(entry["shape"], f"{what}: shape")
    offsets = _numbers(entry["data_offsets"], f"{what}: data_offsets")
    if len(shape) > _MAX_RANK:
        raise ValueError(f"{what}: found {len(shape)} axes, expected at most {_MAX_RANK}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what}: found data_offsets {show(offsets)}, expected [begin, end]")
    size = _ITEM_BYTES[dtype]
    for axis in shape:
        size *= axis
        if size > _MAX_NUMBER:
            raise ValueError(f"{what}: found shape {show(shape)}, whose size overflows")
    if offsets[1] - offsets[0] != size:
        raise ValueError(
            f"{what}: found {offsets[1] - offsets[0]} bytes in data_offsets, expected {size} for "
            f"{dtype} {show(shape)}"
        )
    return TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _numbers(value: object, what: str) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"{what}: found {show(value)}, expected a list of integers")
    for number in value:
        if type(number) is not int or not 0 <= number <= _MAX_NUMBER:  # a bool is not an int here
            raise ValueError(
                f"{what}: found {show(number)}, expected an integer from 0 to {_MAX_NUMBER}"
            )
    return value


def _check_layout(tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """The tensors' bytes must follow each other from `start` to the end of the file.

    That rules out overlaps, with which a small file could stand for terabytes, and holes, in
    which another file could hide.
    """
    place = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != place:
            problem = "overlaps the one before it" if info.begin < place else "leaves a hole"
            raise ValueError(
                f"has tensor {show(name)}: it {problem}: found data_offsets from "
                f"{info.begin - start}, expected {place - start}"
            )
        place = info.end
        if place > size:
            raise ValueError(
                f"has tensor {show(name)}: found data_offsets to {place - start}, expected at most "
                f"{size - start}: the file is cut short"
            )
    if place != size:
        raise ValueError(
            f"is followed by {size - start} bytes, expected the {place - start} of its tensors"
        )
