"""TensorFlow's checkpoints, read without TensorFlow: a table of entries, and files of bytes.

``model.ckpt.index`` is a table as LevelDB writes it (a footer, an index of blocks, blocks of keys
that share prefixes), whose values are protocol buffers (tensorflow/core/protobuf/
tensor_bundle.proto); ``model.ckpt.data-00000-of-00001`` is the tensors. Checksums are not
verified: CRC32C in Python would take minutes for a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile, RawTensor

_FOOTER: Final = 48
_TRAILER: Final = 5  # behind each block: its compression, and a checksum
_MAX_INDEX: Final = 16 << 20  # bytes; 1.5 B parameters with their optimiser's have 100 KB
_MAX_SHARDS: Final = 1000
_MAX_TENSORS: Final = 100_000
_MAX_NAME: Final = 512  # bytes; names share beginnings, so that few bytes may stand for many
_MAX_RANK: Final = 8
_MAX_NUMBER: Final = 2**53

# Of tensorflow/core/framework/types.proto: safetensors' names, and the bytes of an item. What is
# no float may be there (a step counter), and is not read.
_DTYPES: Final = {
    1: ("F32", 4), 2: ("F64", 8), 3: ("I32", 4), 4: ("U8", 1), 5: ("I16", 2), 6: ("I8", 1),
    9: ("I64", 8), 10: ("BOOL", 1), 14: ("BF16", 2), 19: ("F16", 2),
}  # fmt: skip


@dataclass(frozen=True)
class BundleEntry:
    """What the index says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int


class _BundleError(ValueError):
    """The rest of a sentence that begins with the index's name."""


class TensorBundle:
    """An open checkpoint: `tensors` maps names to what the index says of them."""

    def __init__(self, index: Path) -> None:
        """Raises CheckpointNotFoundError where a file is missing, else CheckpointError."""
        self.path = index
        with_index = RawFile(index)
        self.files: list[RawFile] = [with_index]
        try:
            if with_index.size > _MAX_INDEX:
                raise _BundleError(f"found {with_index.size} bytes, expected at most {_MAX_INDEX}")
            raw = bytes(with_index.pread(with_index.size, 0, "index"))
            n_shards, self.tensors = _read_index(raw)
            prefix = index.name.removesuffix(".index")
            for shard in range(n_shards):
                name = f"{prefix}.data-{shard:05}-of-{n_shards:05}"
                self.files.append(RawFile(index.parent / name))
            self._check_places()
        except _BundleError as reason:
            self.close()
            raise CheckpointError(f"{index}: {reason}") from None
        except BaseException:
            self.close()
            raise

    def source(self, stored: str, name: str, shape: tuple[int, ...]) -> RawTensor:
        """The tensor `stored`, as a source called `name` whose shape has as many items."""
        entry = self.tensors[stored]
        return RawTensor(self.files[1 + entry.shard], name, shape, entry.dtype, entry.offset)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def _check_places(self) -> None:
        """Each tensor has its bytes to itself: a small file cannot stand for a large one."""
        ends = [0] * (len(self.files) - 1)
        for name, entry in sorted(self.tensors.items(), key=lambda item: item[1].offset):
            if entry.shard >= len(ends):
                raise _BundleError(f"tensor {show(name)} is in shard {entry.shard} of {len(ends)}")
            data = self.files[1 + entry.shard]
            if entry.offset < ends[entry.shard]:
                raise _BundleError(f"tensor {show(name)} overlaps the one before it")
            ends[entry.shard] = entry.offset + entry.n_bytes
            if ends[entry.shard] > data.size:
                raise _BundleError(
                    f"tensor {show(name)} ends at byte {ends[entry.shard]} of {data.path.name}, "
                    f"which has {data.size}: it is cut short"
                )


def _read_index(raw: bytes) -> tuple[int, dict[str, BundleEntry]]:
    if len(raw) < _FOOTER or raw[-8:] != signatures.BUNDLE_END:
        raise _BundleError("is no index of a TensorFlow checkpoint (the last 8 bytes are others)")
    footer = _Bytes(raw[-_FOOTER:-8])
    for _ in range(2):
        footer.varint()  # the block of filters
    tensors: dict[str, BundleEntry] = {}
    n_shards = None
    first, last = 0, len(raw) - _FOOTER
    for _, handle in _block(raw, footer.varint(), footer.varint()):
        place = _Bytes(handle)
        offset, size = place.varint(), place.varint()
        # Blocks lie in order, none twice: so the work is bounded by the file's size.
        if offset < first:
            raise _BundleError(f"has a block at byte {offset} that overlaps the one before it")
        first = offset + size + _TRAILER
        if first > last:
            raise _BundleError(f"has a block to byte {first}, where the footer begins at {last}")
        for key, value in _block(raw, offset, size):
            if key == b"":
                n_shards = _header(value)
                continue
            try:
                name = key.decode()
            except UnicodeDecodeError:
                raise _BundleError(f"has the name {show(key)}, which is not UTF-8") from None
            if len(tensors) == _MAX_TENSORS:
                raise _BundleError(f"has more than {_MAX_TENSORS} tensors")
            if name in tensors:
                raise _BundleError(f"has tensor {show(name)} twice")
            tensors[name] = _entry(value, name)
    if n_shards is None:
        raise _BundleError("has no header, which tells the number of shards")
    return n_shards, tensors


def _block(raw: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; a key is stored as what differs from the one before it."""
    end = offset + size
    if size < 4 or end + _TRAILER > len(raw):
        raise _BundleError(f"has a block of {size} bytes at {offset}, outside of the file")
    if raw[end] != 0:
        raise _BundleError(f"has a compressed block at {offset}, expected none")
    n_restarts = int.from_bytes(raw[end - 4 : end], "little")
    entries = end - 4 - 4 * n_restarts
    if entries < offset:
        raise _BundleError(f"has a block at {offset} with {n_restarts} restarts, which do not fit")
    reader = _Bytes(raw[offset:entries])
    key = b""
    while not reader.is_empty:
        shared, rest, length = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key):
            raise _BundleError(f"has a key that shares {shared} bytes with one of {len(key)}")
        new = key[:shared] + reader.take(rest)
        if len(new) > _MAX_NAME:
            raise _BundleError(f"has a key of {len(new)} bytes")
        key = new
        yield key, reader.take(length)


def _header(value: bytes) -> int:
    """The number of shards of a BundleHeaderProto."""
    n_shards = 0
    for field, number in _fields(value):
        if field == 1 and isinstance(number, int):
            n_shards = number
        if field == 2 and number != 0:
            raise _BundleError("is of a big-endian machine, expected little-endian")
    if not 1 <= n_shards <= _MAX_SHARDS:
        raise _BundleError(f"has {n_shards} shards, expected from 1 to {_MAX_SHARDS}")
    return n_shards


def _entry(value: bytes, name: str) -> BundleEntry:
    """A BundleEntryProto."""
    numbers = dict.fromkeys((1, 3, 4, 5), 0)
    shape: tuple[int, ...] = ()
    for field, found in _fields(value):
        if field in numbers and isinstance(found, int):
            numbers[field] = found
        elif field == 2 and isinstance(found, bytes):
            shape = _shape(found, name)
        elif field == 7:
            raise _BundleError(f"has tensor {show(name)} in slices, expected it whole")
    if numbers[1] not in _DTYPES:
        raise _BundleError(f"has tensor {show(name)} of type {numbers[1]}, which is not known")
    dtype, n_bytes = _DTYPES[numbers[1]]
    for axis in shape:
        n_bytes *= axis
        if n_bytes > _MAX_NUMBER:
            raise _BundleError(f"has tensor {show(name)} of shape {show(shape)}, which overflows")
    if numbers[5] != n_bytes:
        raise _BundleError(
            f"has tensor {show(name)} of {numbers[5]} bytes, expected {n_bytes} for {dtype} "
            f"{show(list(shape))}"
        )
    return BundleEntry(dtype, shape, numbers[3], numbers[4], n_bytes)


def _shape(value: bytes, name: str) -> tuple[int, ...]:
    """A TensorShapeProto."""
    axes: list[int] = []
    for field, dimension in _fields(value):
        if field == 2 and isinstance(dimension, bytes):
            sizes = [size for key, size in _fields(dimension) if key == 1]
            size = sizes[-1] if sizes else 0
            if not isinstance(size, int) or size > _MAX_NUMBER:  # a negative one is huge here
                raise _BundleError(f"has tensor {show(name)} with an axis of {show(size)}")
            axes.append(size)
            if len(axes) > _MAX_RANK:
                raise _BundleError(f"has tensor {show(name)} of more than {_MAX_RANK} axes")
        elif field == 3 and dimension != 0:
            raise _BundleError(f"has tensor {show(name)} of unknown rank")
    return tuple(axes)


def _fields(value: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A protocol buffer's fields: numbers and what they hold."""
    reader = _Bytes(value)
    while not reader.is_empty:
        tag = reader.varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, reader.varint()
        elif kind == 2:
            yield tag >> 3, reader.take(reader.varint())
        elif kind in (1, 5):
            yield tag >> 3, int.from_bytes(reader.take(8 if kind == 1 else 4), "little")
        else:
            raise _BundleError(f"has a field of wire type {kind}")


class _Bytes:
    """Reads from the front of bytes."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._place = raw, 0

    @property
    def is_empty(self) -> bool:
        return self._place >= len(self._raw)

    def take(self, n: int) -> bytes:
        part = self._raw[self._place : self._place + n]
        if len(part) != n:
            raise _BundleError(f"has a value of {n} bytes where {len(part)} are left")
        self._place += n
        return part

    def varint(self) -> int:
        """Seven bits a byte, the lowest first."""
        result = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            result |= (byte & 127) << shift
            if byte < 128:
                return result
        raise _BundleError("has a number of more than ten bytes")
