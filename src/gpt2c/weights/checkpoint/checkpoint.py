"""The one interface between loaders and backends, and the checks that all loaders share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError
from gpt2c.formats.tensors import STORED_TYPES, BackingFile, TensorSource, check_finite
from gpt2c.text.added_tokens import AddedToken
from gpt2c.text.special_tokens import Around

_COMPARE_ITEMS = 2**20  # of a tied head that is stored twice, at a time: 4 MB on either side


@dataclass(frozen=True, eq=False)
class BytePairs:
    """A vocabulary that a checkpoint's own file has; `source` names it in messages."""

    source: str
    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: tuple[AddedToken, ...]
    around: Around = ((), ())  # tokens put before and after every text


@dataclass(eq=False)
class Checkpoint:
    """What a loader hands to a backend.

    `tensors` holds exactly what `config` calls for (see :func:`tensor_shapes`), under GPT-2's
    names, complete and well shaped. "lm_head.weight" is there only where the head is not tied.
    """

    config: GPT2Config
    tensors: Mapping[str, TensorSource]
    folder: Path | None = None  # None: the weights are in memory
    files: tuple[BackingFile, ...] = ()
    # None: what lies in the folder. A str says why the file's own cannot be used.
    vocabulary: BytePairs | str | None = None
    # nanoGPT's names for its training data and for the folder that it saves in.
    dataset: tuple[str, str] | None = None
    # "int8" or "int4" where the matrices are quantised: see checkpoint/quantized.py.
    packing: str | None = None

    @property
    def where(self) -> str:
        """What begins a message about its weights: the file, or, of several, their folder."""
        if len(self.files) == 1:
            return str(self.files[0].path)
        return "arrays" if self.folder is None else str(self.folder)

    def read_all(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor. Raises CheckpointError where weights of a file are not finite."""
        arrays = {}
        for name, source in self.tensors.items():
            arrays[name] = source.read(0, source.shape[0])
            if self.files:
                check_finite(arrays[name], name, 0, self.where)
        return arrays

    def verify_unchanged(self) -> None:
        """To be called when everything was read.

        Raises CheckpointError if a file's size or time of change is not what it was when it
        was opened: what was read would be neither the old nor the new weights.
        """
        for file in self.files:
            file.verify_unchanged()

    def close(self) -> None:
        """Close the files; a second call does nothing. Not to be called during a read."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Checkpoint:
        """The checkpoint itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; where the block ended well, verify_unchanged first."""
        try:
            if kind is None:
                self.verify_unchanged()
        finally:
            self.close()


def checked_tensors(
    config: GPT2Config, found: Mapping[str, TensorSource], where: str
) -> dict[str, TensorSource]:
    """The tensors that `config` calls for, in the model's order, out of those that were found.

    Raises CheckpointError, beginning with `where`, for missing, unexpected or mis-shaped
    tensors, dtypes that are no floats, and a tied head that differs from wte.
    """
    check_n_layer(config, len(found), where)
    shapes = tensor_shapes(config)
    head = found.get("lm_head.weight") if config.tie_word_embeddings else None
    if head is not None:  # stored although it is tied: compared below, then left out
        shapes["lm_head.weight"] = shapes["wte.weight"]
    _check_names(shapes, found, where)
    for name, shape in shapes.items():
        _check_tensor(found[name], shape, where)
    if head is not None:
        _check_tied(found["wte.weight"], head, where)
        del shapes["lm_head.weight"]
    return {name: found[name] for name in shapes}


def check_n_layer(config: GPT2Config, n_found: int, where: str) -> None:
    """A million blocks in a configuration must not cost a gigabyte of names to refuse.

    Raises CheckpointError where there are more blocks than tensors.
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
            f"{where}: missing tensors: 'wte.weight'; 'lm_head.weight' does not stand for it, "
            "because tie_word_embeddings is false (set it to true in config.json if they are tied)"
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
        problems.append("they are an adapter's: merge it with its model and save that")
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


def _check_tied(wte: TensorSource, head: TensorSource, where: str) -> None:
    rows, width = wte.shape
    step = max(1, _COMPARE_ITEMS // width)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        if not np.array_equal(wte.read(begin, end), head.read(begin, end), equal_nan=True):
            raise CheckpointError(
                f"{where}: 'lm_head.weight' differs from 'wte.weight' in rows {begin} to "
                f"{end - 1}, expected the same because tie_word_embeddings is true (say false "
                "in config.json if the head is meant to be its own)"
            )


def merged(sources: Iterable[tuple[str, TensorSource]], where: str) -> dict[str, TensorSource]:
    """Sources by name. Raises CheckpointError where a name comes twice."""
    result: dict[str, TensorSource] = {}
    for stored, source in sources:
        if source.name in result:
            raise CheckpointError(
                f"{where}: tensor {show(source.name)} is there twice, the second time as "
                f"{show(stored)}"
            )
        result[source.name] = source
    return result
