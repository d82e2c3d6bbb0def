"""Checkpoints over arrays in memory, given by GPT-2's names or nested as in picoGPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError
from gpt2c.formats.pickle_values import describe
from gpt2c.formats.tensors import check_rows
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.shared.hparams import config_of_hparams

_DTYPES: Final = {"float64": "F64", "float32": "F32", "float16": "F16"}


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A TensorSource over an array in memory."""

    name: str
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """F64, F32 or F16; any other keeps NumPy's name, which later checks reject."""
        return _DTYPES.get(self.array.dtype.name, self.array.dtype.name)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        # TensorSource.read allows infinities and NaNs.
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(self.array[begin:end], dtype=np.float32, order="C")


def from_arrays(config: GPT2Config, arrays: Mapping[str, ArrayLike]) -> Checkpoint:
    """Return a checkpoint over float16, float32 or float64 arrays under GPT-2's names.

    `arrays` maps all names of :func:`tensor_shapes`, such as "wte.weight" [n_vocab, n_embd] and
    "h.0.attn.c_attn.weight" [in, out], to arrays. They are not copied: do not change them before
    they are read.

    Raises CheckpointError for arrays that are missing, unexpected, or of the wrong shape or dtype,
    and for a tied head that differs from wte.
    """
    found = {str(name): ArraySource(str(name), _array(str(name), arrays[name])) for name in arrays}
    return Checkpoint(config, checked_tensors(config, found, "arrays"))


def from_picogpt(hparams: Mapping[str, Any], params: Mapping[str, Any]) -> Checkpoint:
    """Return a checkpoint over picoGPT's nested dict of float16, float32 or float64 arrays.

    params = {"wte": [n_vocab, n_embd], "wpe": [n_ctx, n_embd], "ln_f": {"g", "b"}, "blocks":
    [{"ln_1": {"g", "b"}, "attn": {"c_attn": {"w", "b"}, "c_proj": ...}, "ln_2": ...,
    "mlp": {"c_fc": ..., "c_proj": ...}}, ...]}

    hparams = {"n_head": 12, ...}; only n_head is required, because the other sizes come from the
    arrays: see :func:`config_of_hparams`. The result has no EOS token, because picoGPT has none.

    Raises CheckpointError for missing or unexpected keys and wrong shapes or dtypes, ConfigError
    if the sizes are not those of a GPT-2.
    """
    if not isinstance(hparams, Mapping):
        raise CheckpointError(f"hparams: found {show(hparams)}, expected a dict")
    arrays = _flatten(params)
    sources = {name: ArraySource(name, array) for name, array in arrays.items()}
    config = config_of_hparams(hparams, sources)
    config = replace(config, bos_token_id=None, eos_token_id=None)
    arrays["wpe.weight"] = arrays["wpe.weight"][: config.n_positions]
    return from_arrays(config, arrays)


def to_picogpt(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's tensors as float32 arrays in picoGPT's nested dict (see from_picogpt).

    An untied head is left out. Raises CheckpointError if a file cannot be read or has weights that
    are not finite.
    """
    arrays = checkpoint.read_all()
    blocks: list[dict[str, Any]] = []
    for index in range(checkpoint.config.n_layer):
        block: dict[str, Any] = {}
        for path, name in _BLOCK_NAMES.items():
            parent = block
            for part in path[:-1]:
                parent = parent.setdefault(part, {})
            parent[path[-1]] = arrays[f"h.{index}.{name}"]
        blocks.append(block)
    return {
        "wte": arrays["wte.weight"],
        "wpe": arrays["wpe.weight"],
        "blocks": blocks,
        "ln_f": {"g": arrays["ln_f.weight"], "b": arrays["ln_f.bias"]},
    }


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(value)
    # NumPy raises these for ragged lists, and torch for a tensor that requires grad.
    except (ValueError, TypeError, RuntimeError) as reason:
        raise CheckpointError(f"arrays: tensor {show(name)} is not an array: {reason}") from reason


# picoGPT's paths to a block's tensors -> GPT-2's names: ("ln_1", "g") -> "ln_1.weight".
_BLOCK_NAMES = {
    (*path, short): ".".join((*path, long))
    for path, letters in (
        (("ln_1",), "gb"),
        (("attn", "c_attn"), "wb"),
        (("attn", "c_proj"), "wb"),
        (("ln_2",), "gb"),
        (("mlp", "c_fc"), "wb"),
        (("mlp", "c_proj"), "wb"),
    )
    for short, long in zip(letters, ("weight", "bias"), strict=True)
}


def _flatten(params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays of picoGPT's nested dict by GPT-2's names."""
    return {name: _array(name, value) for name, value in picogpt_values(params).items()}


def picogpt_values(params: Mapping[str, Any], where: str = "params") -> dict[str, Any]:
    """Return the values of picoGPT's nested dict, whatever they are, by GPT-2's names.

    Raises CheckpointError for missing or unexpected keys; messages begin with `where`.
    """
    top = _leaves(params, {("wte",), ("wpe",), ("blocks",), ("ln_f", "g"), ("ln_f", "b")}, where)
    blocks = top.pop(("blocks",))
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise CheckpointError(f"{where}['blocks']: found {describe(blocks)}, expected a list")
    values = {
        "wte.weight": top["wte",],
        "wpe.weight": top["wpe",],
        "ln_f.weight": top["ln_f", "g"],
        "ln_f.bias": top["ln_f", "b"],
    }
    for index, block in enumerate(blocks):
        leaves = _leaves(block, set(_BLOCK_NAMES), f"{where}['blocks'][{index}]")
        for path, value in leaves.items():
            values[f"h.{index}.{_BLOCK_NAMES[path]}"] = value
    return values


def _leaves(tree: object, paths: set[tuple[str, ...]], where: str) -> dict[tuple[str, ...], Any]:
    """Return the values at `paths` of nested mappings, which must hold exactly those paths.

    A missing bias is an error too: it is usually a mistake, and a caller who wants no bias can pass
    zeros.
    """
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{where}: found {describe(tree)}, expected a dict")
    first_keys = {path[0] for path in paths}
    missing = sorted(first_keys - tree.keys())
    unexpected = sorted(str(key) for key in tree.keys() - first_keys)
    if missing or unexpected:
        raise CheckpointError(
            f"{where}: missing keys: {show_list(missing) or 'none'}; "
            f"unexpected keys: {show_list(unexpected) or 'none'}"
        )
    leaves: dict[tuple[str, ...], Any] = {}
    for key in sorted(first_keys):
        rest = {path[1:] for path in paths if path[0] == key}
        if rest == {()}:
            leaves[key,] = tree[key]
        else:
            below = _leaves(tree[key], rest, f"{where}[{key!r}]")
            leaves.update({(key, *path): value for path, value in below.items()})
    return leaves
