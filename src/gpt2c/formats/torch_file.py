"""Reads files of ``torch.save`` without torch: archives, and the format before torch 1.6.

Tensors are read lazily from their places in the file. Everything else becomes plain values and
records; see :mod:`gpt2c.formats.pickle_values`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointError
from gpt2c.formats import signatures
from gpt2c.formats.pickle_reader import Build, PickleReader
from gpt2c.formats.pickle_values import Global, PickleError, Record, describe
from gpt2c.formats.raw_file import RawFile, RawTensor
from gpt2c.formats.zip_archive import Entry, read_directory

# Of a state dict's own description: 100,000 tensors' worth.
MAX_PICKLE: Final = 16 << 20
_MAX_ITEMS: Final = 2**53
_MAX_RANK: Final = 8
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION: Final = 1001

# torch's storage classes, with safetensors' names of their dtypes and the bytes of an item.
_STORAGES: Final = {
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.DoubleStorage": ("F64", 8),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
    # Dtypes that no weight has, to know the size of such storages in the file before a weight.
    "torch.ComplexFloatStorage": ("C64", 8),
    "torch.ComplexDoubleStorage": ("C128", 16),
    "torch.QInt8Storage": ("QI8", 1),
    "torch.QUInt8Storage": ("QU8", 1),
    "torch.QInt32Storage": ("QI32", 4),
    "torch.UntypedStorage": ("bytes", 1),
    "torch.storage.UntypedStorage": ("bytes", 1),
}


@dataclass(frozen=True)
class Storage:
    """Items side by side, of which tensors are views; key says where in the file they are."""

    key: str
    dtype: str
    item_bytes: int
    n_items: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it: its items follow each other in C order."""

    storage: Storage
    offset: int  # in items
    shape: tuple[int, ...]

    @property
    def n_items(self) -> int:
        """The product of the axes."""
        return math.prod(self.shape)


class TorchFile(RawFile):
    """An open file of torch.save; its pickle was read and checked.

    `value` is the saved object: dicts, lists, numbers, strings, :class:`StoredTensor`, and records
    of everything else.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointNotFoundError where there is none, else CheckpointError."""
        super().__init__(path)
        self._storages: dict[str, Storage] = {}
        self._begins: dict[str, int] = {}
        try:
            try:
                is_archive = bytes(self.pread(min(4, self.size), 0, "beginning")) == signatures.ZIP
                self.value = self._read_archive() if is_archive else self._read_legacy()
            except PickleError as reason:
                raise CheckpointError(f"{path}: the pickle {reason}") from None
        except BaseException:
            self.close()
            raise

    def source(self, tensor: StoredTensor, name: str) -> RawTensor:
        """A tensor of the file's, as a source called `name`."""
        storage = tensor.storage
        begin = self._begins[storage.key] + tensor.offset * storage.item_bytes
        return RawTensor(self, name, tensor.shape, storage.dtype, begin)

    # ---- archives ----

    def _read_archive(self) -> Any:
        entries = read_directory(self, may_be_deflated=True)
        self._check_entries(entries)
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path}: found {len(pickles)} entries data.pkl, expected 1")
        root = pickles[0].removesuffix("data.pkl")
        if (order := entries.get(root + "byteorder")) is not None:
            text = bytes(self.pread(min(order.n_bytes, 16), order.begin, "byteorder"))
            if text != b"little":
                raise CheckpointError(f"{self.path}: found byteorder {text!r}, expected b'little'")
        pickle = entries[pickles[0]]
        if pickle.n_bytes > MAX_PICKLE:
            raise CheckpointError(
                f"{self.path}: found data.pkl of {pickle.n_bytes} bytes, expected at most "
                f"{MAX_PICKLE}"
            )
        raw = self.pread(pickle.n_bytes, pickle.begin, "data.pkl")
        value = PickleReader(raw, _BUILDERS, self._load_persistent).read()
        for storage in self._storages.values():
            entry = entries.get(f"{root}data/{storage.key}")
            n_bytes = storage.n_items * storage.item_bytes
            if entry is None or entry.n_bytes != n_bytes:
                found = "none" if entry is None else f"{entry.n_bytes} bytes"
                raise CheckpointError(
                    f"{self.path}: storage {show(storage.key)}: found {found}, expected {n_bytes} "
                    "bytes"
                )
            self._begins[storage.key] = entry.begin
        return value

    def _check_entries(self, entries: Mapping[str, Entry]) -> None:
        if any(name.endswith("/constants.pkl") for name in entries):
            raise CheckpointError(
                f"{self.path}: found a program of TorchScript, which gpt2c never runs, expected a "
                "state dict: save it with torch.save(model.state_dict(), path)"
            )
        for name, entry in entries.items():
            if entry.is_deflated:
                raise CheckpointError(
                    f"{self.path}: entry {show(name)} is compressed or encrypted, expected it "
                    "stored"
                )

    # ---- the format before archives ----

    def _read_legacy(self) -> Any:
        raw = self.pread(min(self.size, MAX_PICKLE), 0, "pickles")
        reader = PickleReader(raw, _BUILDERS, self._load_persistent)
        try:
            magic = reader.read()
        except PickleError:
            magic = None
        if magic != _LEGACY_MAGIC:
            raise CheckpointError(
                f"{self.path}: found {show(bytes(raw[:8]))} at the beginning, expected a file that "
                "torch.save wrote"
            )
        version, system = reader.read(), reader.read()
        if version != _LEGACY_VERSION:
            raise CheckpointError(
                f"{self.path}: found protocol {describe(version)}, expected {_LEGACY_VERSION}"
            )
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError(f"{self.path}: expected a file of a little-endian machine")
        value = reader.read()
        keys = reader.read()
        storages = self._storages
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CheckpointError(f"{self.path}: expected a list of storages' keys")
        if sorted(keys) != sorted(storages):
            raise CheckpointError(
                f"{self.path}: found {len(keys)} storages' keys, expected those of "
                f"{len(storages)} tensors' storages"
            )
        place = reader.position
        for key in keys:
            n_items = int.from_bytes(self.pread(8, place, f"storage {show(key)}"), "little")
            if n_items != storages[key].n_items:
                raise CheckpointError(
                    f"{self.path}: storage {show(key)}: found {n_items} items, expected "
                    f"{storages[key].n_items}"
                )
            self._begins[key] = place + 8
            place += 8 + n_items * storages[key].item_bytes
        if place != self.size:
            raise CheckpointError(
                f"{self.path}: found {self.size} bytes, expected the {place} of its storages"
            )
        return value

    def _load_persistent(self, identifier: object) -> object:
        """The storage of a persistent id; two storages with one key must agree."""
        value = _persistent(identifier)
        if isinstance(value, Storage) and self._storages.setdefault(value.key, value) != value:
            raise PickleError(f"has two storages called {show(value.key)}")
        return value


# ---- what the pickles' globals stand for ----


def _persistent(identifier: object) -> object:
    """Parse ("storage", class, key, device, items), followed by a view of None in old files.

    ("module", class, source, code) is the class of a whole module in an old file.
    """
    if not isinstance(identifier, tuple) or len(identifier) not in (4, 5, 6):
        raise PickleError("has a persistent id that is no storage")
    if identifier[0] == "module" and isinstance(identifier[1], Global):
        return identifier[1]
    kind, storage_class, key = identifier[:3]
    if kind != "storage" or not isinstance(storage_class, Global) or not isinstance(key, str):
        raise PickleError("has a persistent id that is no storage")
    n_items = identifier[4] if len(identifier) > 4 else None
    if len(identifier) == 6 and identifier[5] is not None:
        raise PickleError("has a storage that is a view of another")
    if storage_class.path not in _STORAGES:
        return Record(storage_class.path)
    if type(n_items) is not int or not 0 <= n_items <= _MAX_ITEMS:
        raise PickleError(f"has a storage of {describe(n_items)} items")
    dtype, item_bytes = _STORAGES[storage_class.path]
    return Storage(key, dtype, item_bytes, n_items)


def _rebuild_tensor(
    storage: object, offset: object, shape: object, stride: object, *_: object
) -> StoredTensor | Record:
    if isinstance(storage, Record):
        return Record(_TENSOR, problem=f"has a tensor of {show(storage.path)}, which is not known")
    if not isinstance(storage, Storage):
        raise PickleError("has a tensor without a storage")
    if type(offset) is not int or not 0 <= offset <= _MAX_ITEMS:
        raise PickleError(f"has a tensor at offset {describe(offset)}")
    axes, strides = _integers(shape), _integers(stride)
    if len(axes) != len(strides):
        raise PickleError(f"has a tensor of {len(axes)} axes and {len(strides)} strides")
    n_items = 1
    for axis in axes:
        n_items *= axis
        if n_items > _MAX_ITEMS:
            raise PickleError(f"has a tensor of shape {show(axes)}, whose size overflows")
    expected = 1
    for axis, found in zip(reversed(axes), reversed(strides), strict=True):
        if axis > 1 and found != expected and n_items:
            return Record(
                _TENSOR,
                problem=f"has a tensor of shape {show(axes)} with strides {show(strides)}, which "
                "do not follow each other in memory: save it with .contiguous()",
            )
        expected *= axis
    if offset + n_items > storage.n_items:
        raise PickleError(
            f"has a tensor of {n_items} items at offset {offset} of a storage of {storage.n_items}"
        )
    return StoredTensor(storage, offset, axes)


def _rebuild_with_type(function: object, _: object, arguments: object, *__: object) -> object:
    """A tensor with extra attributes, or of a class derived from Tensor."""
    is_known = isinstance(function, Global) and function.path in _REBUILDS
    if not is_known or not isinstance(arguments, tuple) or len(arguments) > _MAX_RANK:
        return Record(_TENSOR)
    return _rebuild_tensor(*arguments)


def _integers(value: object) -> tuple[int, ...]:
    # Its length first: one tuple may be given as often as the pickle has steps.
    if (
        not isinstance(value, tuple)
        or len(value) > _MAX_RANK
        or not all(type(item) is int and 0 <= item <= _MAX_ITEMS for item in value)
    ):
        raise PickleError("has a tensor whose shape or strides are no sizes")
    return value


def _parameter(tensor: object, *_: object) -> object:
    return tensor


def _ordered_dict(*arguments: object) -> object:
    # Python 2 wrote it with arguments, which entries_of reads lazily.
    return Record("collections.OrderedDict", arguments) if arguments else {}


def _default_dict(*_: object) -> dict[Any, Any]:
    return {}


def _size(sizes: object) -> object:
    return _integers(sizes)


def _reconstructed(kind: object, *_: object) -> Record:
    """An object in protocols 0 and 1; the first argument is its class."""
    return Record(kind.path if isinstance(kind, Global) else "copyreg._reconstructor")


_TENSOR: Final = "torch.Tensor"
_REBUILDS: Final = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_BUILDERS: Final[dict[str, Build]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    **dict.fromkeys(_REBUILDS, _rebuild_tensor),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_with_type,
    "torch.Size": _size,
}
