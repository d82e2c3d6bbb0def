"""Checkpoints over arrays in memory: by GPT-2's names, or as picoGPT nests them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError
from gpt2c.formats.tensors import check_rows
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.hparams import config_of_hparams

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16"}


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A TensorSource over an array; `name` is GPT-2's."""

    name: str
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's own."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """F64, F32 or F16; what is none of these keeps NumPy's name, and is refused by it."""
        return _DTYPES.get(self.array.dtype.name, self.array.dtype.name)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        with np.errstate(over="ignore", invalid="ignore"):  # as with files
            return np.array(self.array[begin:end], dtype=np.float32, order="C")


def from_arrays(config: GPT2Config, arrays: Mapping[str, ArrayLike]) -> Checkpoint:
    """A checkpoint over float16, float32 or float64 arrays under GPT-2's names.

    `arrays` maps "wte.weight", "h.0.attn.c_attn.weight" [in, out], ... (all of
    :func:`tensor_shapes`) to arrays. They are not copied: leave them alone until they are read.

    Raises CheckpointError for missing, unexpected or mis-shaped arrays, other dtypes, and a
    tied head that differs.
    """
    found = {str(name): ArraySource(str(name), _array(str(name), arrays[name])) for name in arrays}
    return Checkpoint(config, checked_tensors(config, found, "arrays"))


def from_picogpt(hparams: Mapping[str, Any], params: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint over picoGPT's nested dict of float16, float32 or float64 arrays.

    params = {"wte": [n_vocab, n_embd], "wpe": [n_ctx, n_embd], "ln_f": {"g", "b"}, "blocks":
    [{"ln_1": {"g", "b"}, "attn": {"c_attn": {"w", "b"}, "c_proj": ...}, "ln_2": ...,
    "mlp": {"c_fc": ..., "c_proj": ...}}, ...]}

    Sizes come from the arrays. hparams' "n_vocab", "n_embd" and "n_layer", where given, must
    agree with them; "n_ctx" may be smaller than wpe has rows, and then limits the positions.
    "n_head" is needed unless there are no blocks. There is no end token.

    Raises CheckpointError, or ConfigError where the sizes make no GPT-2.
    """
    if not isinstance(hparams, Mapping):
        raise CheckpointError(f"hparams: found {show(hparams)}, expected a dict")
    arrays = _flatten(params)
    sources = {name: ArraySource(name, array) for name, array in arrays.items()}
    config = config_of_hparams(hparams, sources, len(params["blocks"]))
    # There is no end token: picoGPT knows none.
    config = replace(config, bos_token_id=None, eos_token_id=None)
    arrays["wpe.weight"] = arrays["wpe.weight"][: config.n_positions]
    return from_arrays(config, arrays)


def to_picogpt(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's tensors, but for an untied head, as picoGPT nests them: float32 arrays.

    Raises CheckpointError where weights of a file are not finite.
    """
    arrays = checkpoint.read_all()
    blocks: list[dict[str, Any]] = []
    for index in range(checkpoint.config.n_layer):
        block: dict[str, Any] = {}
        for path, name in _BLOCK_NAMES.items():
            place = block
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = arrays[f"h.{index}.{name}"]
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
    except (ValueError, TypeError, RuntimeError) as reason:  # uneven lists, torch with a gradient
        raise CheckpointError(f"arrays: tensor {show(name)} is no array: {reason}") from reason


# picoGPT's names of a block's tensors, as paths -> GPT-2's.
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
    top = _leaves(params, {("wte",), ("wpe",), ("blocks",), ("ln_f", "g"), ("ln_f", "b")}, "params")
    blocks = top.pop(("blocks",))
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise CheckpointError(f"params['blocks']: found {show(blocks)}, expected a list")
    values = {
        "wte.weight": top["wte",],
        "wpe.weight": top["wpe",],
        "ln_f.weight": top["ln_f", "g"],
        "ln_f.bias": top["ln_f", "b"],
    }
    for index, block in enumerate(blocks):
        leaves = _leaves(block, set(_BLOCK_NAMES), f"params['blocks'][{index}]")
        for path, value in leaves.items():
            values[f"h.{index}.{_BLOCK_NAMES[path]}"] = value
    return {name: _array(name, value) for name, value in values.items()}


def _leaves(tree: object, paths: set[tuple[str, ...]], where: str) -> dict[tuple[str, ...], Any]:
    """The values at `paths` in nested mappings that hold exactly those paths.

    A bias that is absent is an error like any other: it is a slip more often than a wish, and
    who wishes it can pass zeros.
    """
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{where}: found {show(tree)}, expected a dict")
    heads = {path[0] for path in paths}
    missing = sorted(heads - tree.keys())
    unexpected = sorted(str(key) for key in tree.keys() - heads)
    if missing or unexpected:
        raise CheckpointError(
            f"{where}: missing keys: {show_list(missing) or 'none'}; "
            f"unexpected keys: {show_list(unexpected) or 'none'}"
        )
    leaves: dict[tuple[str, ...], Any] = {}
    for head in sorted(heads):
        rest = {path[1:] for path in paths if path[0] == head}
        if rest == {()}:
            leaves[head,] = tree[head]
        else:
            below = _leaves(tree[head], rest, f"{where}[{head!r}]")
            leaves.update({(head, *path): value for path, value in below.items()})
    return leaves
