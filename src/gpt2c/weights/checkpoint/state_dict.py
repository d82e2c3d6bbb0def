"""Finds the state dict in a file of torch.save: by itself, or inside a trainer's dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import CheckpointError
from gpt2c.formats.pickle_values import Record, describe, entries_of, module_of
from gpt2c.formats.raw_file import RawTensor
from gpt2c.formats.torch_file import StoredTensor, TorchFile
from gpt2c.weights.checkpoint.names import bare_name, is_buffer, is_gpt2s, is_of_body
from gpt2c.weights.checkpoint.training_files import training_state

# Keys under which trainers save a model's weights, in order of preference.
_KEYS: Final = ("model", "state_dict", "model_state_dict", "module", "model_state")
_DEEPEST: Final = 4  # levels of dicts around a state dict


@dataclass(frozen=True)
class _Place:
    """A dict in a file: the keys that lead to it, and the dicts from the outermost to this one."""

    keys: tuple[str, ...]
    dicts: tuple[Mapping[Any, Any], ...]

    @property
    def rank(self) -> tuple[int, ...]:
        """Smaller ranks are likelier to be the model; an unknown key counts len(_KEYS)."""
        return tuple(_KEYS.index(key) if key in _KEYS else len(_KEYS) for key in self.keys)


@dataclass(frozen=True)
class SavedState:
    """A state dict in a file: its tensors by their stored names, and the dicts around it.

    `around` has the outermost dict first; it is empty if the state dict was saved by itself.
    """

    tensors: Mapping[str, StoredTensor]
    around: tuple[Mapping[Any, Any], ...]


class StateDictFile(TorchFile):
    """A file of torch.save that holds a state dict: `tensors` maps names to tensors."""

    def __init__(self, path: Path) -> None:
        """Raises as :class:`TorchFile`, and CheckpointError if it holds something else."""
        super().__init__(path)
        try:
            self.state = find_state(self)
        except BaseException:
            self.close()
            raise

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The state dict's tensors by their names in the file."""
        return self.state.tensors

    def named_source(self, stored: str, name: str) -> RawTensor:
        """The tensor called `stored` in the file, as a source called `name`."""
        return self.source(self.state.tensors[stored], name)


def find_state(file: TorchFile) -> SavedState:
    """The state dict that a file holds.

    Raises CheckpointError if there is none, if there are several, or if an entry that GPT-2 needs
    is not a tensor.
    """
    if (module := module_of(file.value)) is not None:
        raise _whole_module(file.path, module)
    top = entries_of(file.value)
    if top is None:
        raise _nothing_found(file)
    level: list[_Place] = [_Place((), (top,))]
    seen = {id(top)}
    modules: list[str] = []
    for _ in range(_DEEPEST):
        if found := [place for place in level if _has_weights(place.dicts[-1])]:
            return _checked(file, _chosen(file, found))
        below = []
        for place in level:
            for key, value in place.dicts[-1].items():
                if (module := module_of(value)) is not None:
                    modules.append(module)
                inner = entries_of(value)
                if inner and isinstance(key, str) and id(inner) not in seen:
                    seen.add(id(inner))
                    below.append(_Place((*place.keys, key), (*place.dicts, inner)))
        level = below
    if modules:
        raise _whole_module(file.path, modules[0])
    if any(isinstance(value, StoredTensor) for value in top.values()) and not training_state(
        file.value, file.path.name
    ):
        return _checked(file, (top,))
    raise _nothing_found(file)


def _has_weights(values: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(key, str)
        and isinstance(value, StoredTensor | Record)
        and is_of_body(bare_name(key))
        for key, value in values.items()
    )


def _chosen(file: TorchFile, found: list[_Place]) -> tuple[Mapping[Any, Any], ...]:
    first, *others = sorted(found, key=lambda place: place.rank)
    if others and (len(_KEYS) in first.rank or others[0].rank == first.rank):
        names = [".".join(place.keys) for place in found]
        raise CheckpointError(
            f"{file.path}: found weights under the keys {show_list(names)}, expected them under "
            f"one key, or one of them under {show(_KEYS[0])}: save the one to load by itself"
        )
    return first.dicts


def _checked(file: TorchFile, chain: tuple[Mapping[Any, Any], ...]) -> SavedState:
    """Check the last dict's tensors; together they must not exceed twice the file's size."""
    tensors: dict[str, StoredTensor] = {}
    n_bytes = 0
    for key, value in chain[-1].items():
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
    # A tied head's tensor appears twice. More sharing would let a small file claim a large model.
    if n_bytes > 2 * file.size:
        raise CheckpointError(f"{file.path}: its tensors together exceed twice the file's size")
    return SavedState(tensors, chain[:-1])


def _is_needed(name: str) -> bool:
    return is_gpt2s(name) and not is_buffer(name)


def _nothing_found(file: TorchFile) -> CheckpointError:
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
        f"{file.path}: found {found}, expected the state dict of a GPT-2, by itself or under the "
        f"key {show(_KEYS[0])}; save it with torch.save(model.state_dict(), path)"
    )


def _whole_module(path: Path, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: found a whole module, {show(kind)}, pickled as an object; reading it would need "
        "the code of its class, which gpt2c never runs: load it where it was saved, and save its "
        "state dict with torch.save(model.state_dict(), path)"
    )
