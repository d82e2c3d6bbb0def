"""`Checkpoint`, which loaders return and engines read, and the checks that all loaders share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.closable import Closable
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError
from gpt2c.formats.tensors import STORED_TYPES, BackingFile, TensorSource, check_finite
from gpt2c.text.added_tokens import AddedToken
from gpt2c.text.special_tokens import Template

if TYPE_CHECKING:
    from gpt2c.weights.checkpoint.classifier import ClassifierHead

# How many elements of wte and of a tied head are compared at a time: 4 MB each.
_COMPARED_ELEMENTS = 2**20


@dataclass(frozen=True, eq=False)
class StoredVocabulary:
    """A byte-level BPE vocabulary that is stored in the checkpoint's own file."""

    source: str  # the file's path, which messages name
    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: tuple[AddedToken, ...]
    template: Template = ((), ())  # the ids put before and after every text


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter that was merged into a checkpoint's weights: its folder, and its weight.

    `changes` are the tensors that it changes, each with the factor of its change, which depends on
    the adapter's settings; None stands for a tensor that it replaces.
    """

    source: str
    weight: float
    changes: tuple[tuple[str, float | None], ...] = ()


@dataclass(eq=False)
class Checkpoint(Closable):
    """An open checkpoint, as a loader hands it to an engine.

    `tensors` holds exactly the tensors that `config` needs (see :func:`tensor_shapes`), under
    GPT-2's names and with the right shapes. "lm_head.weight" is included only if the head is not
    tied.
    """

    config: GPT2Config
    tensors: Mapping[str, TensorSource]
    folder: Path | None = None  # None: the weights are in memory
    files: tuple[BackingFile, ...] = ()
    # None: look for a tokenizer in the folder. A str says why the vocabulary in the file is
    # unusable.
    vocabulary: StoredVocabulary | str | None = None
    # nanoGPT's settings `dataset` (the name of its data) and `out_dir` (the folder it saves in).
    dataset: tuple[str, str] | None = None
    # "int8" or "int4" if the matrices are quantised as in checkpoint/quantized.py.
    quantized_dtype: str | None = None
    classifier: ClassifierHead | None = None
    adapters: tuple[MergedAdapter, ...] = ()  # merged into the tensors; each has one of the files

    @property
    def where(self) -> str:
        """What messages about the weights begin with: the file, or the folder of several files."""
        if len(self.files) - len(self.adapters) == 1:
            return str(self.files[0].path)
        return "arrays" if self.folder is None else str(self.folder)

    def read_all(self) -> dict[str, NDArray[np.float32]]:
        """Read every tensor, and return the arrays by name.

        Raises CheckpointError if weights from a file are not finite, and the errors of
        :meth:`TensorSource.read`.
        """
        arrays = {}
        for name, source in self.tensors.items():
            arrays[name] = source.read(0, source.shape[0])
            if self.files:
                check_finite(arrays[name], name, 0, self.where)
        return arrays

    def verify_unchanged(self) -> None:
        """Check that no file changed since it was opened; call it after reading everything.

        Raises CheckpointError if a file's size or modification time changed, because the weights
        may then be a mixture of old and new weights.
        """
        for file in self.files:
            file.verify_unchanged()

    def close(self) -> None:
        """Close the files; a second call does nothing. Do not call it during a read."""
        for file in self.files:
            file.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files; if the block did not raise, call verify_unchanged first."""
        try:
            if kind is None:
                self.verify_unchanged()
        finally:
            self.close()


def checked_tensors(
    config: GPT2Config, found: Mapping[str, TensorSource], where: str
) -> dict[str, TensorSource]:
    """Return the tensors of `found` that `config` needs, in the order of the forward pass.

    Raises CheckpointError, with a message that begins with `where`, for tensors that are missing,
    unexpected, of the wrong shape or not of a float dtype, and for a tied head that differs from
    wte.
    """
    check_n_layer(config, len(found), where)
    shapes = tensor_shapes(config)
    head = found.get("lm_head.weight") if config.tie_word_embeddings else None
    if head is not None:  # The file stores a tied head: compare it with wte, then drop it.
        shapes["lm_head.weight"] = shapes["wte.weight"]
    _check_names(shapes, found, where)
    for name, shape in shapes.items():
        _check_tensor(found[name], shape, where)
    if head is not None:
        check_tied(found["wte.weight"], head, where)
        del shapes["lm_head.weight"]
    return {name: found[name] for name in shapes}


def check_n_layer(config: GPT2Config, n_found: int, where: str) -> None:
    """Raise CheckpointError if there are more blocks than tensors (and more than 1000).

    Listing the missing names of a million blocks would take a gigabyte of memory.
    """
    if config.n_layer > max(n_found, 1000):
        raise CheckpointError(
            f"{where}: found {n_found} tensors, which are too few for n_layer {config.n_layer}"
        )


def _check_names(
    shapes: Mapping[str, object], found: Mapping[str, TensorSource], where: str
) -> None:
    missing = [name for name in shapes if name not in found]
    unexpected = sorted(found.keys() - shapes.keys())
    if missing == ["lm_head.weight"] and not unexpected:
        raise CheckpointError(
            f"{where}: missing tensors: 'lm_head.weight'; expected because "
            "tie_word_embeddings is false"
        )
    if missing == ["wte.weight"] and "lm_head.weight" in found:
        raise CheckpointError(
            f"{where}: missing tensors: 'wte.weight'; 'lm_head.weight' does not replace it, "
            "because tie_word_embeddings is false (set it to true in config.json for a tied head)"
        )
    if any(part in name for name in unexpected for part in ("crossattention.", "ln_cross_attn.")):
        raise CheckpointError(
            f"{where}: cross-attention is not supported, found {show_list(unexpected)}"
        )
    problems = []
    if missing:
        problems.append(f"missing tensors: {show_list(missing)}")
    if unexpected:
        problems.append(f"unexpected tensors: {show_list(unexpected)}")
    if any("lora_" in name for name in unexpected):
        problems.append(
            "some belong to an adapter: merge it into its base model and save the result"
        )
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")


def _check_tensor(source: TensorSource, shape: tuple[int, ...], where: str) -> None:
    if source.dtype not in STORED_TYPES:
        raise CheckpointError(
            f"{where}: tensor {show(source.name)}: found dtype {source.dtype}, "
            f"expected one of {', '.join(STORED_TYPES)}"
        )
    if source.shape != shape:
        hint = ""
        if len(shape) == 2 and source.shape == shape[::-1]:
            hint = " (it is transposed: matrices are stored [in, out])"
        raise CheckpointError(
            f"{where}: tensor {show(source.name)}: found shape {list(source.shape)}, "
            f"expected {list(shape)}{hint}"
        )


def check_tied(wte: TensorSource, head: TensorSource, where: str) -> None:
    """Raise CheckpointError unless a tied head, which a file stores too, equals wte."""
    rows, width = wte.shape
    step = max(1, _COMPARED_ELEMENTS // width)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        if not np.array_equal(wte.read(begin, end), head.read(begin, end), equal_nan=True):
            raise CheckpointError(
                f"{where}: 'lm_head.weight' differs from 'wte.weight' in rows {begin} to "
                f"{end - 1}, expected equal rows because tie_word_embeddings is true (set it to "
                "false in config.json if the head has weights of its own)"
            )


def sources_by_name(
    sources: Iterable[tuple[str, TensorSource]], where: str
) -> dict[str, TensorSource]:
    """Return a dict from names to sources. `sources` has pairs (name in the file, source).

    Raises CheckpointError if two sources have the same name.
    """
    result: dict[str, TensorSource] = {}
    for stored, source in sources:
        if source.name in result:
            raise CheckpointError(
                f"{where}: tensor {show(source.name)} appears twice, the second time as "
                f"{show(stored)}"
            )
        result[source.name] = source
    return result
