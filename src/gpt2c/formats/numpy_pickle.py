"""Reads pickles of NumPy arrays in dicts, lists and tuples, without NumPy's unpickling.

Opening a file reads everything except the arrays' elements, which stay in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats.pickle_reader import PickleReader
from gpt2c.formats.pickle_values import PickleError, Record, describe
from gpt2c.formats.raw_file import RawFile, RawTensor, bounded_product, closed_on_error

_WINDOW: Final = 1 << 20  # bytes of the file that are in memory
_MAX_VALUE: Final = 16 << 20  # bytes of one string or number
_MAX_LINE: Final = 1 << 16
_MAX_RANK: Final = 8
_DTYPES: Final = {"f8": "F64", "f4": "F32", "f2": "F16"}
_RECONSTRUCT: Final = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER: Final = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")


@dataclass(frozen=True)
class BytesInFile:
    """Bytes that a pickle contains: their offset in the file and their number."""

    begin: int
    n_bytes: int


@dataclass(frozen=True)
class StoredArray:
    """An array as the pickle describes it; `dtype` is safetensors' name, or NumPy's if unknown."""

    data: BytesInFile
    dtype: str
    shape: tuple[int, ...]
    is_fortran: bool


class NumpyPickle(RawFile):
    """An open file with one pickle; `value` is its value, with records for the arrays."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its pickle.

        Raises CheckpointNotFoundError if there is no such file, CheckpointError if the pickle is
        malformed.
        """
        super().__init__(path)
        with closed_on_error(self):
            reader = PickleReader(_Window(self), {}, _no_persistent_id, keep_bytes=BytesInFile)
            try:
                self.value = reader.read()
            except PickleError as reason:
                raise CheckpointError(f"{path}: the pickle {reason}") from None

    def array(self, value: object, what: str) -> StoredArray:
        """Return the array that a value of the pickle describes; `what` names it in messages.

        Raises CheckpointError if the value is not an array of numbers that fit its bytes.
        """
        if not isinstance(value, Record):
            raise CheckpointError(
                f"{self.path}: {what}: found {describe(value)}, expected a NumPy array"
            )
        if value.path in _RECONSTRUCT and isinstance(value.state, tuple) and len(value.state) == 5:
            _, shape, dtype, is_fortran, data = value.state
        elif value.path in _FROM_BUFFER and len(value.arguments) == 4:
            data, dtype, shape, order = value.arguments
            is_fortran = order == "F" if isinstance(order, str) else None
        else:
            raise CheckpointError(
                f"{self.path}: {what}: found {describe(value)}, expected a NumPy array: convert it "
                "with numpy.asarray before it is pickled"
            )
        if not isinstance(data, BytesInFile):
            raise CheckpointError(
                f"{self.path}: {what}: its elements are {describe(data)}, expected bytes: pickle "
                "it with protocol 3 or later (pickle.dump's default)"
            )
        return self._checked(
            StoredArray(data, _dtype(dtype), _shape(shape), is_fortran is True), what
        )

    def source(self, array: StoredArray, name: str) -> RawTensor:
        """Return an array of this file as a source called `name`; of Fortran's order, transposed.

        A transposed source has the reversed shape.
        """
        shape = array.shape[::-1] if array.is_fortran else array.shape
        return RawTensor(self, name, shape, array.dtype, array.data.begin)

    def _checked(self, array: StoredArray, what: str) -> StoredArray:
        width = {"F64": 8, "F32": 4, "F16": 2}.get(array.dtype)
        if width is None:
            raise CheckpointError(
                f"{self.path}: {what}: found dtype {show(array.dtype)}, expected float16, float32 "
                "or float64, little-endian"
            )
        if bounded_product((width, *array.shape)) != array.data.n_bytes:
            raise CheckpointError(
                f"{self.path}: {what}: found {array.data.n_bytes} bytes for the shape "
                f"{list(array.shape)} of {array.dtype}"
            )
        return array


def _dtype(value: object) -> str:
    """Return the dtype of a pickled numpy.dtype by safetensors' name; another value described."""
    if isinstance(value, Record) and value.path == "numpy.dtype" and value.arguments:
        kind = value.arguments[0]
        order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
        if isinstance(kind, str) and order == "<":
            return _DTYPES.get(kind, kind[:20])
        return f"{kind!s:.20} of another byte order"
    return describe(value)


def _shape(value: object) -> tuple[int, ...]:
    """Return a shape; (-1,), which fits no number of bytes, for a value that is not a shape."""
    axes = value if isinstance(value, tuple) and len(value) <= _MAX_RANK else (-1,)
    return axes if all(type(axis) is int and 0 <= axis < 2**48 for axis in axes) else (-1,)


def _no_persistent_id(_: object) -> NoReturn:
    raise PickleError("has a persistent id, which only torch's files have")


class _Window:
    """The bytes of a file, of which a part at a time is in memory; PickleReader reads slices."""

    def __init__(self, file: RawFile) -> None:
        self._file, self._begin, self._bytes = file, 0, b""

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, part: slice) -> bytes:
        begin, end = part.start, min(part.stop, self._file.size)
        if end - begin > _MAX_VALUE:
            raise PickleError(f"has a string of {end - begin} bytes, expected at most {_MAX_VALUE}")
        if not self._begin <= begin <= end <= self._begin + len(self._bytes):
            n_bytes = min(max(_WINDOW, end - begin), self._file.size - begin)
            self._bytes = bytes(self._file.pread(n_bytes, begin, "pickle"))
            self._begin = begin
        return self._bytes[begin - self._begin : end - self._begin]

    def find(self, separator: bytes, begin: int) -> int:
        at = self[slice(begin, begin + _MAX_LINE)].find(separator)
        return at if at < 0 else begin + at
