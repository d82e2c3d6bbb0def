"""Checkpoints of nanoGPT, build-nanogpt and minGPT: torch's files of modules of nn.Linear.

Their matrices are [out, in]. nanoGPT saves its ``model_args`` beside the weights, build-nanogpt an
object ``GPTConfig``; minGPT writes the weights alone, and a ``config.json`` of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpt2c.checkpoint.pickle_reader import Record, describe
from gpt2c.checkpoint.source import (
    Checkpoint,
    TensorSource,
    check_n_layer,
    checked_tensors,
    merged,
    tensor_shapes,
)
from gpt2c.checkpoint.torch_file import StoredTensor, TorchFile
from gpt2c.checkpoint.views import Zeros, transposed
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError, ConfigError
from gpt2c.untrusted import show, show_list

_COMPILED: Final = "_orig_mod."  # torch.compile puts it before every name
_BODY: Final = "transformer."
_BUFFER = re.compile(r"h\.[0-9]{1,7}\.attn\.(bias|masked_bias)", re.ASCII)  # the causal mask
_NEEDED: Final = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_OPTIONAL: Final = ("bias", "dropout")

# minGPT's n_head of each model_type.
_MINGPT_HEADS: Final = {
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25,
    "gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip


def is_training_checkpoint(value: object) -> bool:
    """Whether what torch saved is a dict of nanoGPT's or build-nanogpt's."""
    return isinstance(value, dict) and isinstance(value.get("model"), dict)


def open_nanogpt(file: TorchFile) -> Checkpoint:
    """A checkpoint of nanoGPT or build-nanogpt; on success it owns the file.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    arguments: object = file.value.get("model_args")
    # nanoGPT has nn.GELU(); build-nanogpt, which saves its configuration as an object, GPT-2's own.
    activation = "gelu"
    if arguments is None and isinstance(file.value.get("config"), Record):
        arguments, activation = file.value["config"].attributes, "gelu_new"
    if not isinstance(arguments, dict):
        raise ConfigError(
            f"{file.path}: found neither model_args, a dict, as nanoGPT writes, nor config, an "
            "object, as build-nanogpt does"
        )
    if unknown := [describe(key) for key in arguments if key not in _NEEDED + _OPTIONAL]:
        raise ConfigError(
            f"{file.path}: unknown model_args: {show_list(unknown)}; with them it may be another "
            "model than nanoGPT's"
        )
    if missing := [key for key in _NEEDED if key not in arguments]:
        raise ConfigError(f"{file.path}: model_args lack {show_list(missing)}")
    for key in _NEEDED:
        if type(arguments[key]) is not int:
            raise ConfigError(
                f"{file.path}: model_args: {key} is {describe(arguments[key])}, expected an integer"
            )
    has_bias = arguments.get("bias", True)
    if not isinstance(has_bias, bool):
        raise ConfigError(f"{file.path}: model_args: bias is {describe(has_bias)}, expected a bool")
    sources = _sources(file, file.value["model"])
    config = _config(
        str(file.path),
        sources,
        n_positions=arguments["block_size"],
        activation_function=activation,
        tie_word_embeddings="lm_head.weight" not in sources,
        **{key: arguments[key] for key in _NEEDED if key != "block_size"},
    )
    check_n_layer(config, len(sources), str(file.path))
    if not has_bias:
        if biases := sorted(name for name in sources if name.endswith(".bias")):
            raise CheckpointError(
                f"{file.path}: unexpected tensors: {show_list(biases)}; model_args say that there "
                "are no biases"
            )
        for name, shape in tensor_shapes(config).items():
            if name.endswith(".bias"):
                sources[name] = Zeros(name, shape)
    tensors = checked_tensors(config, sources, str(file.path))
    dataset = _dataset(file.value.get("config"))
    return Checkpoint(config, tensors, file.path.parent, (file,), dataset=dataset)


def _dataset(config: object) -> tuple[str, str] | None:
    """What nanoGPT's own configuration says of its data and its folder, where it does."""
    if not isinstance(config, dict):
        return None
    dataset, out_dir = config.get("dataset"), config.get("out_dir")
    if not isinstance(dataset, str):
        return None
    return dataset, out_dir if isinstance(out_dir, str) else ""


def open_mingpt(file: TorchFile, values: Mapping[str, Any], where: str) -> Checkpoint:
    """minGPT's state dict, and the `model` of its config.json, called `where`.

    The sizes come from the tensors, for minGPT writes its configuration before it knows them all.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    if not isinstance(file.value, dict):
        raise CheckpointError(
            f"{file.path}: found a {type(file.value).__name__}, expected a state dict"
        )
    sources = _sources(file, file.value)
    n_head = values.get("n_head") or _MINGPT_HEADS.get(str(values.get("model_type")))
    if n_head is None:
        raise ConfigError(
            f"{where}: found model_type {show(values.get('model_type'))} and no n_head, expected "
            f"one of the two; the types known are {', '.join(_MINGPT_HEADS)}"
        )
    wte, wpe = (_matrix(sources, name, file.path) for name in ("wte.weight", "wpe.weight"))
    config = _config(
        str(file.path),
        sources,
        vocab_size=wte.shape[0],
        n_embd=wte.shape[1],
        n_positions=wpe.shape[0],
        n_layer=sum(name.endswith(".ln_1.weight") for name in sources),
        n_head=n_head,
        tie_word_embeddings="lm_head.weight" not in sources,
    )
    tensors = checked_tensors(config, sources, str(file.path))
    return Checkpoint(config, tensors, file.path.parent, (file,))


def _sources(file: TorchFile, state: dict[Any, Any]) -> dict[str, TensorSource]:
    """Tensors of a state dict by GPT-2's names, matrices [in, out]; no head that is tied."""
    found: list[tuple[str, TensorSource]] = []
    wte = state.get("transformer.wte.weight", state.get("_orig_mod.transformer.wte.weight"))
    for stored, value in state.items():
        if not isinstance(stored, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(
                f"{file.path}: found {describe(stored)} of type {type(value).__name__}, expected a "
                "state dict of tensors alone"
            )
        name = stored.removeprefix(_COMPILED).removeprefix(_BODY)
        if _BUFFER.fullmatch(name) or (name == "lm_head.weight" and value == wte):
            continue
        source: TensorSource = file.source(value, name)
        is_linear = name.endswith(".weight") and not name.startswith(("wte.", "wpe.", "lm_head."))
        found.append((stored, transposed(source) if is_linear else source))
    return merged(found, str(file.path))


def _matrix(sources: Mapping[str, TensorSource], name: str, path: Path) -> TensorSource:
    source = sources.get(name)
    if source is None:
        raise CheckpointError(f"{path}: missing tensors: {name!r}; expected minGPT's state dict")
    if len(source.shape) != 2:
        raise CheckpointError(
            f"{path}: tensor {name!r}: found shape {list(source.shape)}, expected two axes"
        )
    return source


def _config(where: str, sources: Mapping[str, TensorSource], **values: Any) -> GPT2Config:
    """With these values, and the MLP's width of the first block."""
    fc = sources.get("h.0.mlp.c_fc.weight")
    config = GPT2Config.from_sizes(where, **values)
    if fc is None or len(fc.shape) != 2 or fc.shape[1] == config.inner:
        return config
    return GPT2Config.from_sizes(where, **values, n_inner=fc.shape[1])
