"""Finds the state dict in a torch.save file: at the top level, or inside a trainer's dicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import CheckpointError
from gpt2c.formats.pickle_values import Record, describe, entries_of, torch_module_class
from gpt2c.formats.raw_file import RawTensor, closed_on_error
from gpt2c.formats.torch_file import StoredTensor, TorchFile
from gpt2c.weights.checkpoint.shared.names import (
    bare_name,
    is_body_name,
    is_buffer,
    is_gpt2_name,
    is_other_layout_name,
)
from gpt2c.weights.checkpoint.shared.training_files import training_state

# Keys under which trainers save a model's weights, in order of preference.
_KEYS: Final = ("model", "state_dict", "model_state_dict", "module", "model_state")
_MAX_LEVELS: Final = 4  # levels of dicts that are searched


@dataclass(frozen=True)
class _NestedDict:
    """A dict in a file: the keys that lead to it, and the dicts from the outermost to this one."""

    keys: tuple[str, ...]
    dicts: tuple[Mapping[Any, Any], ...]

    @property
    def rank(self) -> tuple[int, ...]:
        """The keys' positions in _KEYS; the smallest rank is likeliest to be the model."""
        return tuple(_KEYS.index(key) if key in _KEYS else len(_KEYS) for key in self.keys)


@dataclass(frozen=True)
class SavedState:
    """A state dict in a file: its tensors by their stored names, and the dicts that contain it.

    `enclosing` begins with the outermost dict; it is empty for a state dict at the top level.
    """

    tensors: Mapping[str, StoredTensor]
    enclosing: tuple[Mapping[Any, Any], ...]


class StateDictFile(TorchFile):
    """An open torch.save file that holds a state dict."""

    def __init__(self, path: Path) -> None:
        """Open the file and find the state dict.

        Raises the errors of :class:`TorchFile` and of :func:`find_state`.
        """
        super().__init__(path)
        with closed_on_error(self):
            self.state = find_state(self)

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The state dict's tensors by their stored names."""
        return self.state.tensors

    def shared_names(self) -> frozenset[str]:
        """Return the stored names of tensors whose elements another tensor has too."""
        counts = Counter(self.state.tensors.values())
        return frozenset(name for name, t in self.state.tensors.items() if counts[t] > 1)

    def named_source(self, stored: str, name: str) -> RawTensor:
        """Return the tensor called `stored` in the file as a source called `name`."""
        return self.source(self.state.tensors[stored], name)


def find_state(file: TorchFile) -> SavedState:
    """Find the state dict of a GPT-2 in a file, level by level.

    Raises CheckpointError if there is none, if several are equally likely, or if an entry that
    GPT-2 needs is not a tensor.
    """
    if (module := torch_module_class(file.value)) is not None:
        raise _whole_module(file.path, module)
    top = entries_of(file.value)
    if top is None:
        raise _nothing_found(file)
    level: list[_NestedDict] = [_NestedDict((), (top,))]
    seen = {id(top)}
    modules: list[str] = []
    for _ in range(_MAX_LEVELS):
        if found := [nested for nested in level if _has_gpt2_weights(nested.dicts[-1])]:
            return _checked_state(file, _chosen_dicts(file, found))
        below = []
        for nested in level:
            for key, value in nested.dicts[-1].items():
                if (module := torch_module_class(value)) is not None:
                    modules.append(module)
                inner = entries_of(value)
                if inner and isinstance(key, str) and id(inner) not in seen:
                    seen.add(id(inner))
                    below.append(_NestedDict((*nested.keys, key), (*nested.dicts, inner)))
        level = below
    if modules:
        raise _whole_module(file.path, modules[0])
    if any(isinstance(value, StoredTensor) for value in top.values()) and not training_state(
        file.value, file.path.name
    ):
        return _checked_state(file, (top,))
    raise _nothing_found(file)


def _has_gpt2_weights(values: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(key, str)
        and isinstance(value, StoredTensor | Record)
        and (is_body_name(name := bare_name(key)) or is_other_layout_name(name))
        for key, value in values.items()
    )


def _chosen_dicts(file: TorchFile, found: list[_NestedDict]) -> tuple[Mapping[Any, Any], ...]:
    first, *others = sorted(found, key=lambda nested: nested.rank)
    if others and (len(_KEYS) in first.rank or others[0].rank == first.rank):
        names = [".".join(nested.keys) for nested in found]
        raise CheckpointError(
            f"{file.path}: found weights under the keys {show_list(names)}, expected only one of "
            f"them, or one called {show(_KEYS[0])}: save the weights to load in their own file"
        )
    return first.dicts


def _checked_state(file: TorchFile, dicts: tuple[Mapping[Any, Any], ...]) -> SavedState:
    """Return the tensors of the last dict after checking them.

    An entry that GPT-2 needs must be a tensor. Tensors that share more data than a tied head does
    would let a small file claim a large model, so together they must not exceed twice the file's
    size.
    """
    tensors: dict[str, StoredTensor] = {}
    n_bytes = 0
    for key, value in dicts[-1].items():
        if isinstance(key, str) and isinstance(value, StoredTensor):
            tensors[key] = value
            n_bytes += value.n_elements * value.storage.element_bytes
        elif isinstance(key, str) and value is not None and _is_needed(bare_name(key)):
            problem = value.problem if isinstance(value, Record) else None
            raise CheckpointError(
                f"{file.path}: {show(key)} {problem}"
                if problem
                else f"{file.path}: {show(key)}: found {describe(value)}, expected a tensor"
            )
    if n_bytes > 2 * file.size:
        raise CheckpointError(f"{file.path}: its tensors together exceed twice the file's size")
    return SavedState(tensors, dicts[:-1])


def _is_needed(name: str) -> bool:
    return (is_gpt2_name(name) and not is_buffer(name)) or is_other_layout_name(name)


def _nothing_found(file: TorchFile) -> CheckpointError:
    """Return the error for a file without a GPT-2's state dict; it says what the file holds."""
    if (what := training_state(file.value, file.path.name)) is not None:
        return CheckpointError(
            f"{file.path}: found {what}, expected the weights of a model, which are in another "
            "file, such as model.safetensors or pytorch_model.bin"
        )
    value = file.value
    if (entries := entries_of(value)) is not None:
        keys = [describe(key) for key in list(entries)[:9]]
        found = f"a dict of {', '.join(keys[:8])}{' and more' if len(keys) > 8 else ''}"
        found = found if keys else "an empty dict"
    else:
        found = describe(value)
    return CheckpointError(
        f"{file.path}: found {found}, expected the state dict of a GPT-2, at the top level or "
        f"under the key {show(_KEYS[0])}; save it with torch.save(model.state_dict(), path)"
    )


def _whole_module(path: Path, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: found a whole module, {show(kind)}, pickled as an object; reading it would need "
        "the code of its class, which gpt2c never runs: load it where it was saved, and save its "
        "state dict with torch.save(model.state_dict(), path)"
    )
