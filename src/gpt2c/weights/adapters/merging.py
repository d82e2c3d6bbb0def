"""Merges LoRA adapters (Hu et al. 2021) into a checkpoint's tensors, as they are read.

The merge of a matrix W with adapters 1, 2, ... is W + c1 B1 A1 + c2 B2 A2 + ..., where c is the
adapter's weight times its scale. It is computed in float64, a piece of rows at a time, and rounded
to float32 once. The terms are added in a fixed order (adapters as given, ranks ascending, every
product and sum rounded to float64), so that the result has the same bits on every machine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.adapters.settings import (
    ADAPTER_CONFIG,
    MERGE_WITH_PEFT,
    Settings,
    read_settings,
)
from gpt2c.weights.adapters.tensors import AdapterFile, Factors, open_tensors
from gpt2c.weights.checkpoint.checkpoint import (
    Checkpoint,
    MergedAdapter,
    check_tied,
    checked_tensors,
)
from gpt2c.weights.checkpoint.classifier import ClassifierHead, head_names, read_head
from gpt2c.weights.checkpoint.shared.names import bare_name, is_buffer, is_gpt2_name
from gpt2c.weights.checkpoint.shared.views import Renamed, Update, Updated

_log = logging.getLogger(__name__)

_EMBEDDINGS: Final = ("wte", "wpe")
_HEAD: Final = "lm_head.weight"
_WTE: Final = "wte.weight"


@dataclass
class _Adapter:
    """An open adapter: its settings, its tensors by GPT-2's names, and its weight."""

    folder: Path
    weight: float
    settings: Settings
    file: AdapterFile
    whole: dict[str, TensorSource] = field(default_factory=dict)
    head: dict[str, TensorSource] = field(default_factory=dict)  # of a classifier
    saved: set[str] = field(default_factory=set)  # the names in `whole` from modules_to_save
    updates: dict[str, Update] = field(default_factory=dict)


def merge_adapters(checkpoint: Checkpoint, adapters: Sequence[tuple[Path, float]]) -> Checkpoint:
    """Return a checkpoint with adapters merged; it owns their files and those of `checkpoint`.

    `adapters` has folders and weights. `checkpoint` is closed if this raises.

    Raises CheckpointNotFoundError, or CheckpointError for an adapter that is not plain LoRA or does
    not fit the model, and for adapters that cannot be combined.
    """
    with ExitStack() as stack:
        stack.callback(checkpoint.close)
        opened: list[_Adapter] = []
        for folder, weight in adapters:
            settings = _checked_settings(folder, checkpoint.config)
            adapter = _Adapter(folder, weight, settings, open_tensors(folder))
            stack.callback(adapter.file.file.close)
            _assign(adapter, checkpoint)
            opened.append(adapter)
        _check_combination(opened)
        config, tensors = _merged(checkpoint, opened)
        merged = replace(
            checkpoint,
            config=config,
            tensors=checked_tensors(config, tensors, checkpoint.where),
            files=(*checkpoint.files, *(adapter.file.file for adapter in opened)),
            classifier=_classifier(checkpoint, opened),
            adapters=tuple(MergedAdapter(str(a.folder), a.weight, _changes(a)) for a in opened),
        )
        stack.pop_all()
    return merged


def _changes(adapter: _Adapter) -> tuple[tuple[str, float | None], ...]:
    """Return MergedAdapter.changes."""
    scales: dict[str, float | None] = dict.fromkeys(adapter.whole)
    scales |= {name: update.scale for name, update in adapter.updates.items()}
    return tuple(sorted(scales.items(), key=lambda item: item[0]))


def _checked_settings(folder: Path, config: GPT2Config) -> Settings:
    settings = read_settings(folder / ADAPTER_CONFIG)
    settings.check_cost(len(tensor_shapes(config)))
    if settings.ensures_tying and config.tie_word_embeddings:
        names = [n for n in ("transformer.wte", "lm_head")
                 if settings.is_target(n) or settings.is_saved(n)]  # fmt: skip
        if names:
            raise CheckpointError(
                f"{settings.path}: ensure_weight_tying is true, and the adapter changes "
                f"{show_list(names)}: tied copies are not supported; {MERGE_WITH_PEFT}"
            )
    return settings


def _matrices(config: GPT2Config, prefix: str) -> dict[str, str]:
    """Return peft's names of all modules that LoRA can change -> the names of their weights."""
    names = [n for n, shape in tensor_shapes(config).items() if len(shape) == 2 and n != _HEAD]
    found = {prefix + name.removesuffix(".weight"): name for name in names}
    return {**found, "lm_head": _HEAD} if prefix else found


def _assign(adapter: _Adapter, checkpoint: Checkpoint) -> None:
    """Find the tensors of the model that an adapter changes or replaces."""
    modules = adapter.file.factors
    # The name of a model without a head, GPT2Model, has no "transformer." in front.
    has_body = any(name.split(".")[0] in ("h", "wte", "wpe") for name in modules)
    matrices = _matrices(checkpoint.config, "" if has_body else "transformer.")
    where = adapter.file.file.path
    targets = [name for name in matrices if adapter.settings.is_target(name)]
    if unexpected := [name for name in modules if name not in matrices]:
        raise CheckpointError(
            f"{where}: found LoRA for {show_list(unexpected)}, and this model of "
            f"{checkpoint.config.n_layer} blocks has no such matrix{_made_for(adapter)}"
        )
    if unnamed := [name for name in modules if name not in targets]:
        raise CheckpointError(
            f"{where}: found LoRA for {show_list(unnamed)}, which target_modules of "
            f"{ADAPTER_CONFIG} do not name, so peft would ignore it"
        )
    if missing := [name for name in targets if name not in modules]:
        raise CheckpointError(
            f"{where}: found no LoRA for {show_list(missing)}, which target_modules of "
            f"{ADAPTER_CONFIG} name{_made_for(adapter)}"
        )
    _assign_whole(adapter, checkpoint)
    vocab_size = _vocab_size(adapter, checkpoint.config)
    shapes = tensor_shapes(replace(checkpoint.config, vocab_size=vocab_size))
    shapes.setdefault(_HEAD, shapes[_WTE])
    for module, factors in modules.items():
        name = matrices[module]
        adapter.updates[name] = _update(adapter, module, factors, shapes[name])


def _assign_whole(adapter: _Adapter, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    known = {*tensor_shapes(config), _HEAD}
    ignored = []
    of_head = head_names(adapter.file.whole)
    adapter.head = {name: adapter.file.whole[stored] for stored, name in of_head.items()}
    for stored, source in adapter.file.whole.items():
        if stored in of_head:
            continue
        name = bare_name(stored)
        if is_buffer(name, config.n_layer):
            continue
        if name in known:
            adapter.whole[name] = Renamed(source, name)
            module = stored.rpartition(".")[0]
            if any(adapter.settings.is_saved(part) for part in _parents(module)):
                adapter.saved.add(name)
        elif is_gpt2_name(name):
            raise CheckpointError(
                f"{adapter.file.file.path}: found the tensor {show(stored)}, which this model "
                f"does not have{_made_for(adapter)}"
            )
        else:
            ignored.append(stored)
    if ignored:
        _log.warning(
            "%s: tensors that the GPT-2 language model does not have are left out: %s",
            adapter.file.file.path,
            show_list(sorted(ignored)),
        )


def _classifier(checkpoint: Checkpoint, adapters: list[_Adapter]) -> ClassifierHead | None:
    """Return the head of the last adapter that has one, or else the checkpoint's own.

    config.json of the base model names the labels if it has as many.
    """
    found = [adapter for adapter in adapters if adapter.head]
    if not found:
        return checkpoint.classifier
    head = read_head(found[-1].head, checkpoint.config, None, str(found[-1].file.file.path))
    own = checkpoint.classifier
    if head is not None and own is not None and len(own.labels) == len(head.labels):
        head = replace(head, labels=own.labels, problem_type=own.problem_type)
    return head


def _parents(module: str) -> Iterator[str]:
    """Yield a module's name and the names of the modules that contain it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _made_for(adapter: _Adapter) -> str:
    base = adapter.settings.base
    return f" (the adapter says that it was made for {show(base)})" if base else ""


def _vocab_size(adapter: _Adapter, config: GPT2Config) -> int:
    """Return the size of the vocabulary, which an adapter's own embedding may change."""
    source = adapter.whole.get(_WTE)
    return config.vocab_size if source is None or not source.shape else source.shape[0]


def _update(adapter: _Adapter, module: str, factors: Factors, shape: tuple[int, ...]) -> Update:
    """Return the change of a matrix of this shape, after checking the factors' shapes."""
    assert factors.a is not None  # open_tensors has checked
    assert factors.b is not None
    settings = adapter.settings
    is_linear = not factors.is_embedding
    n_in, n_out = shape[::-1] if module == "lm_head" else shape
    rank = settings.rank_of(module)
    expected = (rank, n_in), (n_out, rank)
    where = f"{adapter.file.file.path}: module {show(module)}"
    if is_linear == (module.rpartition(".")[2] in _EMBEDDINGS):
        raise CheckpointError(
            f"{where}: found the factors of {'a linear layer' if is_linear else 'an embedding'}, "
            "which this module is not"
        )
    if (factors.a.shape, factors.b.shape) != expected:
        raise CheckpointError(
            f"{where}: found lora_A {list(factors.a.shape)} and lora_B {list(factors.b.shape)}, "
            f"expected {list(expected[0])} and {list(expected[1])} for this model and the rank "
            f"{rank} of {ADAPTER_CONFIG}{_made_for(adapter)}"
        )
    scale = adapter.weight * settings.scale_of(module)
    # The matrix is stored [in, out], and lm_head [out, in].
    left, right = (factors.b, factors.a.T) if module == "lm_head" else (factors.a.T, factors.b)
    return Update(left, np.ascontiguousarray(right.T), scale)


def _check_combination(adapters: list[_Adapter]) -> None:
    """Raise CheckpointError if whole tensors prevent the adapters' combination or a weight."""
    seen: dict[str, _Adapter] = {}
    for adapter in adapters:
        for name in adapter.whole:
            if len(adapters) > 1 and name in seen:
                raise CheckpointError(
                    f"{adapter.file.file.path}: has a whole copy of {show(name)}, and so has "
                    f"{seen[name].file.file.path}: only one of them can be used"
                )
            seen[name] = adapter
        if adapter.whole and adapter.weight != 1:
            raise CheckpointError(
                f"{adapter.file.file.path}: has whole copies of tensors "
                f"({show_list(sorted(adapter.whole), 3)}), from bias, modules_to_save or a new "
                f"vocabulary, which replace those of the model; so the adapter's weight must be 1, "
                f"not {adapter.weight:g}"
            )


def _merged(
    checkpoint: Checkpoint, adapters: list[_Adapter]
) -> tuple[GPT2Config, dict[str, TensorSource]]:
    """Return the merged model's configuration and tensors."""
    config = checkpoint.config
    tensors: dict[str, TensorSource] = dict(checkpoint.tensors)
    whole = {name: source for a in adapters for name, source in a.whole.items()}
    updates: dict[str, list[Update]] = {}
    for adapter in adapters:
        for name, update in adapter.updates.items():
            updates.setdefault(name, []).append(update)
        config = replace(config, vocab_size=_vocab_size(adapter, config))
    if config.tie_word_embeddings:
        config = _untie_or_share(config, tensors, whole, updates, adapters)
    tensors.update(whole)
    for name, found in updates.items():
        tensors[name] = Updated(tensors[name], tuple(found))
    return config, tensors


def _untie_or_share(
    config: GPT2Config,
    tensors: dict[str, TensorSource],
    whole: dict[str, TensorSource],
    updates: dict[str, list[Update]],
    adapters: list[_Adapter],
) -> GPT2Config:
    """Do with a tied head what peft's merge does; return the configuration.

    modules_to_save makes a copy of wte or lm_head, so the two are no longer tied. Otherwise they
    remain one matrix, and LoRA on either of them changes both.
    """
    if any(name in adapter.saved for adapter in adapters for name in (_WTE, _HEAD)):
        tensors[_HEAD] = Renamed(tensors[_WTE], _HEAD)
        return replace(config, tie_word_embeddings=False)
    if (head := whole.pop(_HEAD, None)) is not None:
        check_tied(whole.setdefault(_WTE, Renamed(head, _WTE)), head, str(adapters[0].folder))
    for adapter in adapters:
        if changed := [name for name in (_WTE, _HEAD) if name in adapter.updates]:
            _log.warning(
                "%s: LoRA of %s changes both wte and lm_head, which are tied, as peft's merge does",
                adapter.folder,
                show_list(changed),
            )
    if head_updates := updates.pop(_HEAD, []):
        updates[_WTE] = [*updates.get(_WTE, []), *head_updates]
    return config
