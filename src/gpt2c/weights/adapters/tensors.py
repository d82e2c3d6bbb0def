"""Reads an adapter's adapter_model.safetensors or adapter_model.bin, and sorts its tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import CheckpointError, CheckpointNotFoundError
from gpt2c.formats.pickle_values import entries_of
from gpt2c.formats.raw_file import RawFile, RawTensor, closed_on_error
from gpt2c.formats.safetensors_file import SafetensorsFile
from gpt2c.formats.tensors import STORED_TYPES, check_finite
from gpt2c.formats.torch_file import StoredTensor, TorchFile
from gpt2c.weights.adapters.settings import MERGE_WITH_PEFT

ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
_MAX_TENSORS: Final = 100_000
_PREFIX: Final = "base_model.model."
# Parts that wrappers insert anywhere in a name: torch.compile, and PEFT around a layer.
_WRAPPERS: Final = frozenset(("_orig_mod", "_fsdp_wrapped_module", "base_layer"))
# "MODULE.lora_A.weight" of a matrix, "MODULE.lora_embedding_A" of an embedding.
_FACTOR: Final = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))", re.ASCII)
_WHOLE: Final = re.compile(r"(.+)\.(weight|bias)", re.ASCII)


@dataclass
class Factors:
    """The matrices of a module with LoRA: A [r, in] and B [out, r], float32."""

    a: NDArray[np.float32] | None = None
    b: NDArray[np.float32] | None = None
    is_embedding: bool = False


@dataclass
class AdapterFile:
    """An open file of an adapter's tensors. `factors` were read; `whole` tensors were not.

    `factors` has the factors by peft's name of the module, without the prefix that all names have.
    `whole` has copies of the base model's tensors, by their names there, such as
    "transformer.ln_f.weight".
    """

    file: RawFile
    factors: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, RawTensor] = field(default_factory=dict)


def open_tensors(folder: Path) -> AdapterFile:
    """Open an adapter's file in a folder, and read its factors.

    Raises CheckpointNotFoundError if there is no such file, and CheckpointError for a damaged file,
    a factor that is missing, not finite or no matrix, and tensors that are not LoRA's.
    """
    found = [name for name in ADAPTER_FILES if os.path.lexists(folder / name)]
    if not found:
        raise CheckpointNotFoundError(
            f"{folder}: found no {' or '.join(ADAPTER_FILES)}, which an adapter of peft has"
        )
    file, tensors = _open(folder / found[0])
    with closed_on_error(file):
        opened = AdapterFile(file)
        for stored, tensor in tensors.items():
            _sort(opened, stored, tensor)
        for module, factors in opened.factors.items():
            if factors.a is None or factors.b is None:
                there, missing = ("B", "A") if factors.a is None else ("A", "B")
                raise CheckpointError(
                    f"{file.path}: module {show(module)} has lora_{there} and no lora_{missing}"
                )
        return opened


def _open(path: Path) -> tuple[RawFile, dict[str, RawTensor]]:
    """Open the file; return its tensors by their stored names."""
    if path.name.endswith(".safetensors"):
        file = SafetensorsFile(path)
        tensors = {name: file.named_source(name, name) for name in file.tensors}
        return file, tensors
    torch_file = TorchFile(path)
    with closed_on_error(torch_file):
        return torch_file, _torch_tensors(torch_file)


def _torch_tensors(file: TorchFile) -> dict[str, RawTensor]:
    entries = entries_of(file.value)
    if entries is None or len(entries) > _MAX_TENSORS:
        raise CheckpointError(f"{file.path}: expected a dict of at most {_MAX_TENSORS} tensors")
    others = [key for key, value in entries.items() if not isinstance(value, StoredTensor)]
    if others or not all(isinstance(key, str) for key in entries):
        found = show_list([str(key)[:99] for key in others or entries])
        raise CheckpointError(
            f"{file.path}: found {found}, expected only tensors, as peft saves them"
        )
    stored: Mapping[str, StoredTensor] = entries
    n_bytes = sum(t.n_elements * t.storage.element_bytes for t in stored.values())
    if n_bytes > 2 * file.size:  # tensors that share data: a small file could claim a large model
        raise CheckpointError(f"{file.path}: its tensors together exceed twice the file's size")
    return {name: file.source(tensor, name) for name, tensor in stored.items()}


def _sort(opened: AdapterFile, stored: str, tensor: RawTensor) -> None:
    """Read a factor, or keep a whole tensor for later."""
    where = f"{opened.file.path}: tensor {show(stored)}"
    name = _without_wrappers(stored)
    factor = _FACTOR.fullmatch(name)
    whole = None if factor or "lora_" in name else _WHOLE.fullmatch(name)
    if factor is None and whole is None:
        raise CheckpointError(
            f"{where} is not one of plain LoRA's (lora_A.weight, lora_B.weight, lora_embedding_A, "
            f"lora_embedding_B, weight, bias); {MERGE_WITH_PEFT}"
        )
    if tensor.dtype not in STORED_TYPES:
        raise CheckpointError(
            f"{where}: found dtype {tensor.dtype}, expected one of {', '.join(STORED_TYPES)}"
        )
    if factor is None:
        if name in opened.whole:
            raise CheckpointError(f"{where} appears twice, the second time under this name")
        opened.whole[name] = tensor
        return
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise CheckpointError(
            f"{where}: found shape {list(tensor.shape)}, expected a matrix: it was not gathered "
            "from its shards before it was saved"
        )
    module, is_embedding = factor[1], factor[3] is not None
    factors = opened.factors.setdefault(module, Factors(is_embedding=is_embedding))
    letter = factor[2] or factor[3]
    if getattr(factors, letter.lower()) is not None or factors.is_embedding != is_embedding:
        raise CheckpointError(f"{where}: module {show(module)} has another lora_{letter}")
    values = tensor.read(0, tensor.shape[0])
    check_finite(values, stored, 0, str(opened.file.path))
    setattr(factors, letter.lower(), values)


def _without_wrappers(stored: str) -> str:
    parts = stored.removeprefix(_PREFIX).split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)
