"""Opens NumPy's ``.npz`` archives of named arrays.

The arrays' names are GPT-2's ("h.0.attn.c_attn.weight"), picoGPT's keys joined by dots or slashes
("blocks.0.attn.c_attn.w"), or OpenAI's ("model/h0/attn/c_attn/w").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError
from gpt2c.formats.raw_file import RawFile, RawTensor, bounded_product, closed_on_error
from gpt2c.formats.tensors import TensorSource, widen_into
from gpt2c.formats.zip_archive import Entry, inflated, read_directory
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, sources_by_name
from gpt2c.weights.checkpoint.openai import LEAVES, gpt2_name, gpt2_shape
from gpt2c.weights.checkpoint.shared.hparams import HPARAMS_FILE, config_of_hparams, read_hparams
from gpt2c.weights.checkpoint.shared.names import gpt2_names, is_buffer
from gpt2c.weights.checkpoint.shared.views import (
    FirstRows,
    WholeReadSource,
    transposed,
    with_embedding,
)

_CONFIG: Final = "config.json"
_MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER: Final = 10_000  # bytes; NumPy's own limit
_HPARAM_NAMES: Final = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
_DTYPES: Final = {"<f8": "F64", "<f4": "F32", "<f2": "F16"}
# NumPy reads the header as a Python literal, but always writes it in this form.
_HEADER = re.compile(
    rb"\{'descr': '([<|][biuf][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,16}, ?){0,7}(?:[0-9]{1,16})?)\), ?\} *\n",
    re.ASCII,
)
_PICO_BLOCK = re.compile(r"(?<![^.])blocks\.([0-9]{1,7})\.", re.ASCII)


def open_npz(path: Path, given: Mapping[str, Any] | None = None) -> Checkpoint:
    """Open an archive.

    The number of heads, and the other hparams if there are any, come from `given`, the value of the
    option hparams; else from the archive, which may hold each as an array of one integer; else from
    a config.json or hparams.json in the same folder.

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    file = RawFile(path)
    with closed_on_error(file):
        arrays: list[tuple[str, str, _Array]] = []
        hparams: dict[str, Any] = {}
        for entry in read_directory(file, may_be_deflated=True).values():
            stored = entry.name.removesuffix(".npy")
            array = _Array(file, entry)
            if stored in _HPARAM_NAMES:
                hparams[stored] = array.integer()
            else:
                arrays.append((stored, _gpt2_name(stored), array))
        names = gpt2_names((name for _, name, _ in arrays), str(path))
        sources = sources_by_name(
            (
                (stored, array.source(names[name]))
                for stored, name, array in arrays
                if name in names and not is_buffer(names[name])
            ),
            str(path),
        )
        config = _config(path, sources, hparams if given is None else given)
        if config.tie_word_embeddings:
            sources = with_embedding(sources)
        wpe = sources.get("wpe.weight")
        if wpe is not None and wpe.shape[:1] > (config.n_positions,):
            sources["wpe.weight"] = FirstRows(wpe, config.n_positions)
        return Checkpoint(config, checked_tensors(config, sources, str(path)), path.parent, (file,))


def _gpt2_name(stored: str) -> str:
    if (name := gpt2_name(stored)) is not None:
        return name
    name = stored.replace("/", ".").removeprefix("params.")
    name = _PICO_BLOCK.sub(lambda match: f"h.{int(match[1])}.", name, count=1)
    if name.rpartition(".")[2] in ("wte", "wpe"):
        return name + ".weight"
    head, _, leaf = name.rpartition(".")
    return f"{head}.{LEAVES[leaf]}" if leaf in LEAVES else name


def _config(
    path: Path, sources: Mapping[str, TensorSource], hparams: Mapping[str, Any]
) -> GPT2Config:
    where = str(path)
    if not hparams:
        if (path.parent / _CONFIG).exists():
            return GPT2Config.from_json(path.parent / _CONFIG)
        if (path.parent / HPARAMS_FILE).exists():
            where = str(path.parent / HPARAMS_FILE)
            hparams = read_hparams(path.parent)
    return config_of_hparams(hparams, with_embedding(sources), where)


class _Array:
    """One array of an archive, with a checked header."""

    def __init__(self, file: RawFile, entry: Entry) -> None:
        self.file, self.entry = file, entry
        self.what = f"{file.path}: array {show(entry.name)}"
        n = min(entry.n_bytes, _MAX_HEADER)
        if entry.is_deflated:
            raw = inflated(file, entry, n)
        else:
            raw = file.pread(n, entry.begin, f"array {show(entry.name)}")
        self.descr, self.is_fortran, self.shape, self.header_bytes = self._header(bytes(raw))

    def source(self, name: str) -> TensorSource:
        """Return the array as a source called `name`."""
        shape = gpt2_shape(self.shape)
        dtype = _DTYPES.get(self.descr, self.descr)
        if self.entry.is_deflated:
            return WholeReadSource(name, shape, dtype, lambda: self._read().reshape(shape))
        begin = self.entry.begin + self.header_bytes
        if self.is_fortran and len(shape) > 1:
            return transposed(RawTensor(self.file, name, shape[::-1], dtype, begin))
        return RawTensor(self.file, name, shape, dtype, begin)

    def integer(self) -> int:
        """Return the array's only element, which must be an integer."""
        if self.shape not in ((), (1,)) or self.descr[1] not in "iu":
            raise CheckpointError(
                f"{self.what}: found {self.descr} {list(self.shape)}, expected one integer"
            )
        return int(np.frombuffer(self._bytes(), dtype=self.descr)[0])

    def _bytes(self) -> memoryview:
        if self.entry.is_deflated:
            return memoryview(inflated(self.file, self.entry))[self.header_bytes :]
        n = self.entry.n_bytes - self.header_bytes
        return memoryview(self.file.pread(n, self.entry.begin + self.header_bytes, "array"))

    def _read(self) -> NDArray[np.float32]:
        elements = np.empty(int(np.prod(self.shape)), dtype=np.float32)
        widen_into(elements, self._bytes(), _DTYPES[self.descr])
        return elements.reshape(self.shape, order="F" if self.is_fortran else "C")

    def _header(self, raw: bytes) -> tuple[str, bool, tuple[int, ...], int]:
        """Return NumPy's descr, whether the order is Fortran's, the shape, and the header's size.

        Raises CheckpointError if the dtype and the shape do not match the entry's size.
        """
        if raw[:6] != _MAGIC or raw[6:7] not in (b"\1", b"\2", b"\3"):
            raise CheckpointError(
                f"{self.what} is not a NumPy array: it begins with {show(raw[:8])}"
            )
        width = 2 if raw[6] == 1 else 4
        begin = 8 + width + int.from_bytes(raw[8 : 8 + width], "little")
        match = _HEADER.fullmatch(raw[8 + width : begin])
        if begin > len(raw) or match is None:
            raise CheckpointError(
                f"{self.what}: found the header {show(raw[8 + width : begin])}, expected the "
                "header of an array of little-endian numbers"
            )
        descr = match[1].decode()
        shape = tuple(int(axis) for axis in match[3].replace(b",", b" ").split())
        n_bytes = bounded_product((int(descr[2]), *shape))
        if n_bytes is None:
            raise CheckpointError(f"{self.what}: found shape {show(shape)}, which overflows")
        if self.entry.n_bytes != begin + n_bytes:
            raise CheckpointError(
                f"{self.what}: found {self.entry.n_bytes} bytes, expected {begin + n_bytes} for "
                f"{descr} {show(list(shape))}"
            )
        return descr, match[2] == b"True", shape, begin
