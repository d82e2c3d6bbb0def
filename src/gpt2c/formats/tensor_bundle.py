"""A reader of TensorFlow checkpoints that does not need TensorFlow.

``model.ckpt.index`` is a table in LevelDB's format: a footer, an index of blocks, and blocks of
entries whose keys share prefixes. The values are protocol buffers
(tensorflow/core/protobuf/tensor_bundle.proto). ``model.ckpt.data-00000-of-00001`` holds the
tensors' bytes. Checksums are not verified: CRC32C in Python would take minutes for a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import MAX_NUMBER, RawFile, RawTensor, bounded_product, closed_on_error

_FOOTER: Final = 48  # bytes
_TRAILER: Final = 5  # bytes after each block: its compression type and a checksum
# The max size of the index, in bytes. That of a model of 1.5 billion parameters, with its
# optimiser's state, has 100 KB.
_MAX_INDEX: Final = 16 << 20
_MAX_SHARDS: Final = 1000
_MAX_TENSORS: Final = 100_000
_MAX_NAME: Final = 512  # bytes; shared prefixes would let a small index expand to huge names
_MAX_RANK: Final = 8

# DataType's numbers in tensorflow/core/framework/types.proto -> safetensors' name of the dtype, and
# the bytes of an element. A checkpoint may hold integers, such as a step counter; gpt2c skips them.
_DTYPES: Final = {
    1: ("F32", 4), 2: ("F64", 8), 3: ("I32", 4), 4: ("U8", 1), 5: ("I16", 2), 6: ("I8", 1),
    9: ("I64", 8), 10: ("BOOL", 1), 14: ("BF16", 2), 19: ("F16", 2),
}  # fmt: skip


@dataclass(frozen=True)
class BundleEntry:
    """A tensor's description in the index."""

    dtype: str  # by safetensors' name
    shape: tuple[int, ...]
    shard: int  # the number of the data file
    offset: int  # in the data file, in bytes
    n_bytes: int


class _BundleError(ValueError):
    """The index is malformed; the caller puts the index's path before the message."""


class TensorBundle:
    """An open TensorFlow checkpoint whose index was checked.

    `tensors` maps the stored names to :class:`BundleEntry`; `files` holds the index and then the
    data files.
    """

    def __init__(self, index: Path) -> None:
        """Open the index and the data files beside it.

        Raises CheckpointNotFoundError if a file is missing, CheckpointError if the index is
        malformed or a data file is too short.
        """
        self.path = index
        index_file = RawFile(index)
        self.files: list[RawFile] = [index_file]
        with closed_on_error(self):
            try:
                if index_file.size > _MAX_INDEX:
                    raise _BundleError(
                        f"found {index_file.size} bytes, expected at most {_MAX_INDEX}"
                    )
                raw = bytes(index_file.pread(index_file.size, 0, "index"))
                n_shards, self.tensors = _read_index(raw)
                prefix = index.name.removesuffix(".index")
                for shard in range(n_shards):
                    name = f"{prefix}.data-{shard:05}-of-{n_shards:05}"
                    self.files.append(RawFile(index.parent / name))
                self._check_layout()
            except _BundleError as reason:
                raise CheckpointError(f"{index}: {reason}") from None

    def source(self, stored: str, name: str, shape: tuple[int, ...]) -> RawTensor:
        """Return the tensor called `stored` as a source called `name`.

        `shape` may differ from the stored shape, but must have the same number of elements.
        """
        entry = self.tensors[stored]
        return RawTensor(self.files[1 + entry.shard], name, shape, entry.dtype, entry.offset)

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        for file in self.files:
            file.close()

    def _check_layout(self) -> None:
        """Check that each tensor lies in its file and overlaps no other.

        If tensors could overlap, a small file could hold many large ones.
        """
        ends = [0] * (len(self.files) - 1)
        for name, entry in sorted(self.tensors.items(), key=lambda item: item[1].offset):
            if entry.shard >= len(ends):
                raise _BundleError(
                    f"tensor {show(name)} is in shard {entry.shard} of {len(ends)}, counted from 0"
                )
            data = self.files[1 + entry.shard]
            if entry.offset < ends[entry.shard]:
                raise _BundleError(f"tensor {show(name)} overlaps the one before it")
            ends[entry.shard] = entry.offset + entry.n_bytes
            if ends[entry.shard] > data.size:
                raise _BundleError(
                    f"tensor {show(name)} ends at byte {ends[entry.shard]} of {data.path.name}, "
                    f"which has {data.size} bytes: the file is cut short"
                )


def _read_index(raw: bytes) -> tuple[int, dict[str, BundleEntry]]:
    """Return the number of shards, and the tensors by name."""
    if len(raw) < _FOOTER or raw[-8:] != signatures.BUNDLE_END:
        raise _BundleError(
            "is not the index of a TensorFlow checkpoint: its last 8 bytes are not the magic number"
        )
    footer = _ByteReader(raw[-_FOOTER:-8])
    for _ in range(2):
        footer.varint()  # offset and size of the metaindex
    tensors: dict[str, BundleEntry] = {}
    n_shards = None
    end, footer_begin = 0, len(raw) - _FOOTER
    for _, block_handle in _read_block(raw, footer.varint(), footer.varint()):
        handle = _ByteReader(block_handle)
        offset, size = handle.varint(), handle.varint()
        # Blocks must not overlap, so that the file's size limits the work.
        if offset < end:
            raise _BundleError(f"has a block at byte {offset} that overlaps the one before it")
        end = offset + size + _TRAILER
        if end > footer_begin:
            raise _BundleError(
                f"has a block that ends at byte {end}, but the footer begins at {footer_begin}"
            )
        for key, value in _read_block(raw, offset, size):
            if key == b"":
                n_shards = _read_n_shards(value)
                continue
            try:
                name = key.decode()
            except UnicodeDecodeError:
                raise _BundleError(f"has the name {show(key)}, which is not UTF-8") from None
            if len(tensors) == _MAX_TENSORS:
                raise _BundleError(f"has more than {_MAX_TENSORS} tensors")
            if name in tensors:
                raise _BundleError(f"has tensor {show(name)} twice")
            tensors[name] = _read_entry(value, name)
    if n_shards is None:
        raise _BundleError("has no header entry, which gives the number of shards")
    return n_shards, tensors


def _read_block(raw: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of the block of `size` bytes at `offset`.

    Each entry holds the number of bytes that its key shares with the previous key, the rest of the
    key, and the value.
    """
    end = offset + size
    if size < 4:
        raise _BundleError(f"has a block of {size} bytes at {offset}, expected at least 4")
    if end + _TRAILER > len(raw):
        raise _BundleError(f"has a block of {size} bytes at {offset}, outside the file")
    if raw[end] != 0:
        raise _BundleError(f"has a compressed block at {offset}, expected uncompressed ones")
    n_restarts = int.from_bytes(raw[end - 4 : end], "little")
    entries_end = end - 4 - 4 * n_restarts
    if entries_end < offset:
        raise _BundleError(f"has a block at {offset} with {n_restarts} restarts, which do not fit")
    reader = _ByteReader(raw[offset:entries_end])
    key = b""
    while not reader.is_empty:
        n_shared, n_rest, n_value = reader.varint(), reader.varint(), reader.varint()
        if n_shared > len(key):
            raise _BundleError(
                f"has a key that shares {n_shared} bytes with the previous key, which has "
                f"{len(key)}"
            )
        key = key[:n_shared] + reader.read(n_rest)
        if len(key) > _MAX_NAME:
            raise _BundleError(f"has a key of {len(key)} bytes, expected at most {_MAX_NAME}")
        yield key, reader.read(n_value)


def _read_n_shards(value: bytes) -> int:
    """Read the number of shards in a BundleHeaderProto; its fields: 1 num_shards, 2 endianness."""
    n_shards = 0
    for field, found in _read_fields(value):
        if field == 1 and isinstance(found, int):
            n_shards = found
        if field == 2 and found != 0:
            raise _BundleError("was written in big-endian byte order, expected little-endian")
    if not 1 <= n_shards <= _MAX_SHARDS:
        raise _BundleError(f"has {n_shards} shards, expected from 1 to {_MAX_SHARDS}")
    return n_shards


def _read_entry(value: bytes, name: str) -> BundleEntry:
    """Read a BundleEntryProto: 1 dtype, 2 shape, 3 shard_id, 4 offset, 5 size, 7 slices."""
    numbers = dict.fromkeys((1, 3, 4, 5), 0)
    shape: tuple[int, ...] = ()
    for field, found in _read_fields(value):
        if field in numbers and isinstance(found, int):
            numbers[field] = found
        elif field == 2 and isinstance(found, bytes):
            shape = _read_shape(found, name)
        elif field == 7:
            raise _BundleError(f"has tensor {show(name)} in slices, expected whole tensors")
    type_number, shard, offset, size = numbers.values()
    if type_number not in _DTYPES:
        raise _BundleError(f"has tensor {show(name)} of type {type_number}, which is unknown")
    dtype, element_bytes = _DTYPES[type_number]
    n_bytes = bounded_product((element_bytes, *shape))
    if n_bytes is None:
        raise _BundleError(f"has tensor {show(name)} of shape {show(shape)}, which overflows")
    if size != n_bytes:
        raise _BundleError(
            f"has tensor {show(name)} of {size} bytes, expected {n_bytes} for {dtype} "
            f"{show(list(shape))}"
        )
    return BundleEntry(dtype, shape, shard, offset, n_bytes)


def _read_shape(value: bytes, name: str) -> tuple[int, ...]:
    """Read a TensorShapeProto: 2 dim (repeated; its field 1 is the size), 3 unknown_rank."""
    axes: list[int] = []
    for field, dimension in _read_fields(value):
        if field == 2 and isinstance(dimension, bytes):
            sizes = [size for key, size in _read_fields(dimension) if key == 1]
            size = sizes[-1] if sizes else 0
            if not isinstance(size, int) or size > MAX_NUMBER:  # negative sizes read as huge ones
                raise _BundleError(
                    f"has tensor {show(name)} with an axis of {show(size)}, expected at most "
                    f"{MAX_NUMBER}"
                )
            axes.append(size)
            if len(axes) > _MAX_RANK:
                raise _BundleError(f"has tensor {show(name)} of more than {_MAX_RANK} axes")
        elif field == 3 and dimension != 0:
            raise _BundleError(f"has tensor {show(name)} of unknown rank")
    return tuple(axes)


def _read_fields(value: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a protocol buffer."""
    reader = _ByteReader(value)
    while not reader.is_empty:
        tag = reader.varint()
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            yield field, reader.varint()
        elif wire_type == 2:
            yield field, reader.read(reader.varint())
        elif wire_type in (1, 5):
            yield field, int.from_bytes(reader.read(8 if wire_type == 1 else 4), "little")
        else:
            raise _BundleError(f"has a field of wire type {wire_type}, expected 0, 1, 2 or 5")


class _ByteReader:
    """Reads values from bytes, in order."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._offset = raw, 0

    @property
    def is_empty(self) -> bool:
        return self._offset >= len(self._raw)

    def read(self, n: int) -> bytes:
        part = self._raw[self._offset : self._offset + n]
        if len(part) != n:
            raise _BundleError(f"has a value of {n} bytes where {len(part)} are left")
        self._offset += n
        return part

    def varint(self) -> int:
        """Read an integer of seven bits per byte, lowest first; the last byte is below 128."""
        result = 0
        for shift in range(0, 70, 7):
            byte = self.read(1)[0]
            result |= (byte & 127) << shift
            if byte < 128:
                return result
        raise _BundleError("has a number of more than ten bytes")
