"""The interface between loaders and engines, and the checks that all loaders share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import CheckpointError, OptionError
from gpt2c.text.added_tokens import AddedToken
from gpt2c.text.special_tokens import Around
from gpt2c.weights.config import GPT2Config

# The dtypes that weights may have: safetensors' name, and the NumPy dtype of the stored bits. NumPy
# has no bfloat16, whose bits are the upper half of a float32.
STORED_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

# How many elements of wte and of a tied head are compared at a time: 4 MB each.
_COMPARED_ELEMENTS = 2**20


class TensorSource(Protocol):
    """One tensor of a checkpoint, read by rows, so that each can be packed at once.

    Several threads may read from one source at once.
    """

    @property
    def name(self) -> str:
        """GPT-2's name, without a prefix: "wte.weight", "h.0.attn.c_attn.weight"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Matrices are [in, out], as in HF's Conv1D; embeddings and the head [rows, n_embd]."""

    @property
    def dtype(self) -> str:
        """The stored dtype, by safetensors' name: "F32", "F16", "BF16" or "F64"."""

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return rows [begin, end) of the first axis, as a new C-contiguous array.

        float16 and bfloat16 are widened exactly; float64 is rounded to nearest even, and to an
        infinity beyond float32's range. NaNs and infinities are not an error here; see
        :func:`check_finite`.

        Raises CheckpointError if the file was truncated or cannot be read, ClosedError after
        close, OptionError unless 0 <= begin <= end <= shape[0].
        """


@runtime_checkable
class PackedSource(Protocol):
    """A TensorSource whose quantised matrix is stored as the engine's panels.

    checkpoint/quantized.py defines their layout.
    """

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """The number of panels, the groups in a panel, and the bytes of a group's block."""

    def read_panels(self, begin: int, panels: NDArray[np.uint8]) -> None:
        """Fill panels [n, groups, bytes] with the stored panels [begin, begin + n).

        Raises CheckpointError if they cannot be read or a scale is not positive and finite.
        """


class BackingFile(Protocol):
    """An open file that sources read from."""

    @property
    def path(self) -> Path:
        """The file's path."""

    def verify_unchanged(self) -> None:
        """Raise CheckpointError if the file changed after it was opened."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""


@dataclass(frozen=True, eq=False)
class BytePairs:
    """A byte-level BPE vocabulary that is stored in the checkpoint's own file."""

    source: str  # the file, for messages
    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: tuple[AddedToken, ...]
    around: Around = ((), ())  # the ids put before and after every text


@dataclass(eq=False)
class Checkpoint:
    """An open checkpoint, as a loader hands it to an engine.

    `tensors` holds exactly the tensors that `config` needs (see :func:`tensor_shapes`), under
    GPT-2's names and with the right shapes. "lm_head.weight" is among them only if the head is not
    tied.
    """

    config: GPT2Config
    tensors: Mapping[str, TensorSource]
    folder: Path | None = None  # None: the weights are in memory
    files: tuple[BackingFile, ...] = ()
    # None: the folder's files have it. A str tells why the checkpoint's own cannot be used.
    vocabulary: BytePairs | str | None = None
    # nanoGPT's `dataset` (its training data) and `out_dir` (the folder it saves in).
    dataset: tuple[str, str] | None = None
    # "int8" or "int4" if the matrices are quantised as in checkpoint/quantized.py.
    packing: str | None = None

    @property
    def where(self) -> str:
        """The start of messages about the weights: the file, or the folder of several files."""
        if len(self.files) == 1:
            return str(self.files[0].path)
        return "arrays" if self.folder is None else str(self.folder)

    def read_all(self) -> dict[str, NDArray[np.float32]]:
        """Read every tensor; return arrays by name.

        Raises CheckpointError if weights from a file are not finite, or as a source's read.
        """
        arrays = {}
        for name, source in self.tensors.items():
            arrays[name] = source.read(0, source.shape[0])
            if self.files:
                check_finite(arrays[name], name, 0, self.where)
        return arrays

    def verify_unchanged(self) -> None:
        """Check, after everything was read, that no file changed in the meantime.

        Raises CheckpointError if a file's size or modification time changed after it was opened:
        the weights would be a mixture of old and new ones.
        """
        for file in self.files:
            file.verify_unchanged()

    def close(self) -> None:
        """Close the files; a second call does nothing. Do not call it during a read."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Checkpoint:
        """Return the checkpoint itself."""
        return self

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


def tensor_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that `config` needs, in the model's order."""
    width, inner = config.n_embd, config.inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.n_positions, width),
    }
    for block in range(config.n_layer):
        h = f"h.{block}."
        shapes[h + "ln_1.weight"] = (width,)
        shapes[h + "ln_1.bias"] = (width,)
        shapes[h + "attn.c_attn.weight"] = (width, 3 * width)
        shapes[h + "attn.c_attn.bias"] = (3 * width,)
        shapes[h + "attn.c_proj.weight"] = (width, width)
        shapes[h + "attn.c_proj.bias"] = (width,)
        shapes[h + "ln_2.weight"] = (width,)
        shapes[h + "ln_2.bias"] = (width,)
        shapes[h + "mlp.c_fc.weight"] = (width, inner)
        shapes[h + "mlp.c_fc.bias"] = (inner,)
        shapes[h + "mlp.c_proj.weight"] = (inner, width)
        shapes[h + "mlp.c_proj.bias"] = (width,)
    shapes["ln_f.weight"] = (width,)
    shapes["ln_f.bias"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def checked_tensors(
    config: GPT2Config, found: Mapping[str, TensorSource], where: str
) -> dict[str, TensorSource]:
    """Return the tensors that `config` needs, in the model's order, from those that were found.

    Raises CheckpointError, with a message that begins with `where`, for tensors that are missing,
    unexpected, of the wrong shape or not of a float dtype, and for a tied head that differs from
    wte.
    """
    check_n_layer(config, len(found), where)
    shapes = tensor_shapes(config)
    head = found.get("lm_head.weight") if config.tie_word_embeddings else None
    if head is not None:  # stored although it is tied: it is compared below and then dropped
        shapes["lm_head.weight"] = shapes["wte.weight"]
    _check_names(shapes, found, where)
    for name, shape in shapes.items():
        _check_tensor(found[name], shape, where)
    if head is not None:
        _check_tied(found["wte.weight"], head, where)
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


def check_rows(source: TensorSource, begin: int, end: int) -> None:
    """Raise OptionError unless 0 <= begin <= end <= shape[0]."""
    if not 0 <= begin <= end <= source.shape[0]:
        raise OptionError(
            f"{source.name}: found rows [{begin}, {end}), expected a range in its "
            f"{source.shape[0]} rows"
        )


def widen_into(out: NDArray[np.float32], raw: bytes | bytearray | memoryview, dtype: str) -> None:
    """Convert stored little-endian elements to float32 in `out` [n].

    The conversion is exact, except that float64 is rounded. It is in place because a fresh array
    of a few megabytes costs more in page faults than in filling it.
    """
    stored = np.frombuffer(raw, dtype=STORED_TYPES[dtype])
    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    elif dtype == "F16":
        # mode="wrap" makes NumPy write to `out` without a temporary; no index ever wraps.
        np.take(_half_table(), stored.view("<u2"), out=out, mode="wrap")
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and signalling NaNs
            np.copyto(out, stored, casting="same_kind")


@functools.cache
def _half_table() -> NDArray[np.float32]:
    """Return float32 [65536] by float16 bits: over twice as fast as NumPy's conversion."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def check_finite(rows: NDArray[np.float32], name: str, begin: int, where: str) -> None:
    """Raise CheckpointError if `rows`, read from row `begin` on, are not all finite."""
    finite = np.isfinite(rows)
    if not finite.all():
        at = np.argwhere(~finite)[0]
        raise CheckpointError(
            f"{where}: tensor {show(name)}: found {rows[tuple(at)]} in row {begin + at[0]}, "
            "expected finite numbers: the file is damaged, or the training diverged"
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
        problems.append("they are an adapter's: merge it into its base model and save the result")
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
    step = max(1, _COMPARED_ELEMENTS // width)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        if not np.array_equal(wte.read(begin, end), head.read(begin, end), equal_nan=True):
            raise CheckpointError(
                f"{where}: 'lm_head.weight' differs from 'wte.weight' in rows {begin} to "
                f"{end - 1}, expected them equal because tie_word_embeddings is true (set it to "
                "false in config.json if the head has weights of its own)"
            )


def merged(sources: Iterable[tuple[str, TensorSource]], where: str) -> dict[str, TensorSource]:
    """Return sources by name, from pairs of a stored name and a source.

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
