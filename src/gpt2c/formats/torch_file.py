"""A reader of ``torch.save`` files that does not need torch.

It reads ZIP archives, and the legacy format, which torch wrote before version 1.6. Opening a file
reads everything except the elements of tensors, as plain values and records; see
:mod:`gpt2c.formats.pickle_values`.
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
from gpt2c.formats.pickle_reader import Builder, PickleReader
from gpt2c.formats.pickle_values import Global, PickleError, Record, describe
from gpt2c.formats.raw_file import MAX_NUMBER, RawFile, RawTensor, bounded_product, closed_on_error
from gpt2c.formats.zip_archive import Entry, read_directory

MAX_PICKLE: Final = 16 << 20  # bytes, without the tensors' data: enough for 100,000 tensors
_MAX_RANK: Final = 8
_MAX_ARGUMENTS: Final = 8  # arguments of a function that rebuilds a tensor
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION: Final = 1001

# torch's storage classes -> safetensors' name of the dtype, and the bytes of an element.
_STORAGE_DTYPES: Final = {
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
    # Weights never have these dtypes, but the reader must know their sizes to skip such storages in
    # files of the legacy format.
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
    """Contiguous elements, of which tensors are views; `key` is the storage's name in the file."""

    key: str
    dtype: str  # by safetensors' name
    element_bytes: int
    n_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it; its elements are contiguous, in C order."""

    storage: Storage
    offset: int  # in elements
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class TorchFile(RawFile):
    """An open torch.save file whose pickle was read and checked.

    `value` is the saved object. It consists of dicts, lists, tuples, numbers, strings,
    :class:`StoredTensor`, and records of everything else.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and read its pickle.

        Raises CheckpointNotFoundError if there is no such file, CheckpointError if it is not a
        valid torch.save file from a little-endian machine.
        """
        super().__init__(path)
        self._storages: dict[str, Storage] = {}
        self._begins: dict[str, int] = {}  # storage key -> its elements' offset in the file
        with closed_on_error(self):
            try:
                is_archive = bytes(self.pread(min(4, self.size), 0, "beginning")) == signatures.ZIP
                self.value = self._read_archive() if is_archive else self._read_legacy()
            except PickleError as reason:
                raise CheckpointError(f"{path}: the pickle {reason}") from None

    def source(self, tensor: StoredTensor, name: str) -> RawTensor:
        """Return a tensor of this file as a source called `name`."""
        storage = tensor.storage
        begin = self._begins[storage.key] + tensor.offset * storage.element_bytes
        return RawTensor(self, name, tensor.shape, storage.dtype, begin)

    # ---- archives ----

    def _read_archive(self) -> Any:
        entries = read_directory(self, may_be_deflated=True)
        self._check_entries(entries)
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path}: found {len(pickles)} entries data.pkl, expected 1")
        root = pickles[0].removesuffix("data.pkl")
        if (byteorder := entries.get(root + "byteorder")) is not None:
            found = bytes(self.pread(min(byteorder.n_bytes, 16), byteorder.begin, "byteorder"))
            if found != b"little":
                raise CheckpointError(f"{self.path}: found byteorder {found!r}, expected b'little'")
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
            n_bytes = storage.n_elements * storage.element_bytes
            if entry is None or entry.n_bytes != n_bytes:
                size = "none" if entry is None else f"{entry.n_bytes} bytes"
                raise CheckpointError(
                    f"{self.path}: storage {show(storage.key)}: found {size}, expected {n_bytes} "
                    "bytes"
                )
            self._begins[storage.key] = entry.begin
        return value

    def _check_entries(self, entries: Mapping[str, Entry]) -> None:
        # Check this first, because it is the more helpful error: TorchScript archives have deflated
        # entries too.
        if any(name.endswith("/constants.pkl") for name in entries):
            raise CheckpointError(
                f"{self.path}: found a TorchScript program, which gpt2c never runs, expected a "
                "state dict: save it with torch.save(model.state_dict(), path)"
            )
        for name, entry in entries.items():
            if entry.is_deflated:
                raise CheckpointError(
                    f"{self.path}: entry {show(name)} is compressed, expected an uncompressed one"
                )

    # ---- the legacy format, of torch before 1.6 ----

    def _read_legacy(self) -> Any:
        """Read five pickles: magic number, version, system, the saved object, and storage keys.

        The storages follow: for each, its number of elements in eight bytes, then the elements.
        """
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
            raise CheckpointError(
                f"{self.path}: is not marked as little-endian, expected a file from a "
                "little-endian machine"
            )
        value = reader.read()
        keys = reader.read()
        storages = self._storages
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CheckpointError(
                f"{self.path}: found {describe(keys)}, expected a list of storage keys"
            )
        if sorted(keys) != sorted(storages):
            raise CheckpointError(
                f"{self.path}: its {len(keys)} storage keys do not match the {len(storages)} "
                "storages that its tensors use"
            )
        offset = reader.position
        for key in keys:
            storage = storages[key]
            n_elements = int.from_bytes(self.pread(8, offset, f"storage {show(key)}"), "little")
            if n_elements != storage.n_elements:
                raise CheckpointError(
                    f"{self.path}: storage {show(key)}: found {n_elements} elements, expected "
                    f"{storage.n_elements}"
                )
            self._begins[key] = offset + 8
            offset += 8 + n_elements * storage.element_bytes
        if offset != self.size:
            raise CheckpointError(
                f"{self.path}: found {self.size} bytes, expected {offset}, where the last storage "
                "ends"
            )
        return value

    def _load_persistent(self, identifier: object) -> object:
        """Return the storage or class of a persistent id.

        Raises PickleError if two storages have the same key but differ.
        """
        value = _parse_persistent_id(identifier)
        if isinstance(value, Storage) and self._storages.setdefault(value.key, value) != value:
            raise PickleError(f"has two storages called {show(value.key)}")
        return value


def _parse_persistent_id(identifier: object) -> object:
    """Parse ("storage", class, key, device, number of elements); return a Storage.

    Files of the legacy format have a sixth element, which describes a view of another storage; it
    must be None. They may also have ("module", class, source, code), the class of a whole module:
    return its Global. Return a Record for an unknown class of storage.
    """
    if not isinstance(identifier, tuple) or len(identifier) not in (4, 5, 6):
        raise PickleError("has a persistent id that is not a storage")
    if identifier[0] == "module" and isinstance(identifier[1], Global):
        return identifier[1]
    kind, storage_class, key = identifier[:3]
    if kind != "storage" or not isinstance(storage_class, Global) or not isinstance(key, str):
        raise PickleError("has a persistent id that is not a storage")
    n_elements = identifier[4] if len(identifier) > 4 else None
    if len(identifier) == 6 and identifier[5] is not None:
        raise PickleError("has a storage that is a view of another")
    if storage_class.path not in _STORAGE_DTYPES:
        return Record(storage_class.path)
    if type(n_elements) is not int or not 0 <= n_elements <= MAX_NUMBER:
        raise PickleError(f"has a storage of {describe(n_elements)} elements")
    dtype, element_bytes = _STORAGE_DTYPES[storage_class.path]
    return Storage(key, dtype, element_bytes, n_elements)


# ---- replacements for the functions and classes that the pickles call ----


def _rebuild_tensor(
    storage: object, offset: object, shape: object, stride: object, *_: object
) -> StoredTensor | Record:
    if isinstance(storage, Record):
        return Record(_TENSOR, problem=f"has a tensor of {show(storage.path)}, which is not known")
    if not isinstance(storage, Storage):
        raise PickleError("has a tensor without a storage")
    if type(offset) is not int or not 0 <= offset <= MAX_NUMBER:
        raise PickleError(f"has a tensor at offset {describe(offset)}")
    sizes, strides = _sizes(shape), _sizes(stride)
    if len(sizes) != len(strides):
        raise PickleError(f"has a tensor of {len(sizes)} axes and {len(strides)} strides")
    n_elements = bounded_product(sizes)
    if n_elements is None:
        raise PickleError(f"has a tensor of shape {show(sizes)}, whose size overflows")
    expected_stride = 1  # the stride of the last axis of a contiguous tensor
    for size, found in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and found != expected_stride and n_elements:
            return Record(
                _TENSOR,
                problem=f"has a tensor of shape {show(sizes)} with strides {show(strides)}, which "
                "is not contiguous: save it with .contiguous()",
            )
        expected_stride *= size
    if offset + n_elements > storage.n_elements:
        raise PickleError(
            f"has a tensor of {n_elements} elements at offset {offset} of a storage of "
            f"{storage.n_elements}"
        )
    return StoredTensor(storage, offset, sizes)


def _rebuild_with_type(function: object, _: object, arguments: object, *__: object) -> object:
    """Rebuild a tensor that has extra attributes or a class derived from Tensor."""
    is_known = isinstance(function, Global) and function.path in _REBUILDS
    if not is_known or not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
        return Record(_TENSOR)
    return _rebuild_tensor(*arguments)


def _sizes(value: object) -> tuple[int, ...]:
    """Return the sizes in a torch.Size, a shape or strides; raise PickleError if one is invalid."""
    # Check the length first: a file may pass one long tuple to many calls.
    if (
        not isinstance(value, tuple)
        or len(value) > _MAX_RANK
        or not all(type(size) is int and 0 <= size <= MAX_NUMBER for size in value)
    ):
        raise PickleError("has a tensor whose shape or strides are not sizes")
    return value


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


def _make_ordered_dict(*arguments: object) -> object:
    # Python 2 wrote an OrderedDict with arguments, which entries_of converts lazily.
    return Record("collections.OrderedDict", arguments) if arguments else {}


def _make_default_dict(*_: object) -> dict[Any, Any]:
    return {}


def _reconstruct(cls: object, *_: object) -> Record:
    """Return a record of an object of class `cls` that protocol 0 or 1 wrote."""
    return Record(cls.path if isinstance(cls, Global) else "copyreg._reconstructor")


_TENSOR: Final = "torch.Tensor"
_REBUILDS: Final = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_BUILDERS: Final[dict[str, Builder]] = {
    "collections.OrderedDict": _make_ordered_dict,
    "collections.defaultdict": _make_default_dict,
    "copyreg._reconstructor": _reconstruct,
    "copy_reg._reconstructor": _reconstruct,
    **dict.fromkeys(_REBUILDS, _rebuild_tensor),
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_with_type,
    "torch.Size": _sizes,
}
