"""Checkpoints of nanoGPT, build-nanogpt and minGPT: torch's files of modules of nn.Linear.

Their matrices are [out, in]. Beside the weights nanoGPT saves ``model_args``, build-nanogpt an
object ``GPTConfig``, and Lightning ``hyper_parameters``; minGPT saves only the weights, and its own
kind of ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError, ConfigError
from gpt2c.formats.pickle_values import Record, describe, fields_of, has_fields
from gpt2c.formats.tensors import TensorSource
from gpt2c.formats.torch_file import TorchFile
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, check_n_layer, checked_tensors, merged
from gpt2c.weights.checkpoint.names import bare_name, gpt2_names, is_buffer
from gpt2c.weights.checkpoint.state_dict import SavedState
from gpt2c.weights.checkpoint.views import Zeros, transposed, with_embedding

_NEEDED: Final = ("n_layer", "n_head", "n_embd", "block_size")
_OPTIONAL: Final = ("vocab_size", "bias", "dropout")
# Where trainers keep a model's sizes among other values; the first two hold only the model's own.
_ARGUMENTS: Final = "model_args"
_CONFIG: Final = "config"
_MIXED: Final = ("hyper_parameters", "hparams", "args", "model_config", "cfg", _CONFIG)

# minGPT's n_head of each model_type.
_MINGPT_HEADS: Final = {
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25,
    "gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip


def settings_of(state: SavedState) -> dict[str, Any] | None:
    """The sizes that a nanoGPT-like trainer saved beside the weights, or None.

    All of nanoGPT's model_args, or of a configuration object, is kept, since an unknown value
    there may mean another model. From hyperparameters only the sizes are kept.
    """
    for around in reversed(state.around):
        if arguments := fields_of(around.get(_ARGUMENTS)):
            return arguments
        config = around.get(_CONFIG)
        if isinstance(config, Record) and has_fields(config, _NEEDED):
            return fields_of(config)
        for key in _MIXED:
            # One level deeper too: {"config": GPTConfig(...), "learning_rate": ...}.
            values = around.get(key)
            for named in (values, *fields_of(values).values()):
                if has_fields(named, _NEEDED):
                    return fields_of(named, (*_NEEDED, *_OPTIONAL))
    return None


def is_linear(state: SavedState) -> bool:
    """Whether matrices are [out, in], as in nn.Linear, rather than transformers' [in, out]."""
    for stored, name in ((stored, bare_name(stored)) for stored in state.tensors):
        shape = state.tensors[stored].shape
        if name.endswith(".attn.c_attn.weight") and len(shape) == 2:
            return shape[1] != 3 * shape[0]
    return True


def open_nanogpt(file: TorchFile, state: SavedState, arguments: dict[str, Any]) -> Checkpoint:
    """Open a checkpoint of nanoGPT, build-nanogpt or a similar trainer; it then owns the file.

    `arguments` are those that :func:`settings_of` found. Without "bias" they come from a nanoGPT
    from before that option, whose GELU had the tanh form, as build-nanogpt's has. With "bias" the
    exact form is used, which nanoGPT has had since 17 May 2023.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    if unknown := [describe(key) for key in arguments if key not in _NEEDED + _OPTIONAL]:
        raise ConfigError(
            f"{file.path}: unknown model_args: {show_list(unknown)}; with them it may be another "
            "model than nanoGPT's"
        )
    if missing := [key for key in _NEEDED if key not in arguments]:
        raise ConfigError(f"{file.path}: model_args lack {show_list(missing)}")
    sizes = {key: arguments[key] for key in _NEEDED}
    if arguments.get("vocab_size") is not None:  # nanoGPT's first versions did not save it
        sizes["vocab_size"] = arguments["vocab_size"]
    for key, value in sizes.items():
        if type(value) is not int:
            raise ConfigError(
                f"{file.path}: model_args: {key} is {describe(value)}, expected an integer"
            )
    has_bias = arguments.get("bias", True)
    if not isinstance(has_bias, bool):
        raise ConfigError(f"{file.path}: model_args: bias is {describe(has_bias)}, expected a bool")
    sources = with_embedding(_sources(file, state))
    sizes.setdefault("vocab_size", _matrix(sources, "wte.weight", file.path).shape[0])
    config = _config(
        str(file.path),
        sources,
        n_positions=sizes.pop("block_size"),
        activation_function="gelu" if "bias" in arguments else "gelu_new",
        tie_word_embeddings="lm_head.weight" not in sources,
        **sizes,
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
    return Checkpoint(config, tensors, file.path.parent, (file,), dataset=_dataset(state))


def _dataset(state: SavedState) -> tuple[str, str] | None:
    """The dataset and out_dir in nanoGPT's own configuration, or None."""
    for values in state.around:
        config = values.get("config")
        dataset = config.get("dataset") if isinstance(config, dict) else None
        if isinstance(config, dict) and isinstance(dataset, str):
            out_dir = config.get("out_dir")
            return dataset, out_dir if isinstance(out_dir, str) else ""
    return None


def open_mingpt(
    file: TorchFile, state: SavedState, values: Mapping[str, Any], where: str
) -> Checkpoint:
    """minGPT's state dict, and the `model` of its config.json, called `where`.

    The sizes come from the tensors, for minGPT writes its configuration before it knows them all.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    sources = _sources(file, state)
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


def _sources(file: TorchFile, state: SavedState) -> dict[str, TensorSource]:
    """Tensors of a state dict by GPT-2's names, matrices [in, out]; no head that is tied."""
    names = gpt2_names(state.tensors, str(file.path))
    embedding = [state.tensors[stored] for stored, name in names.items() if name == "wte.weight"]
    found: list[tuple[str, TensorSource]] = []
    for stored, name in names.items():
        tensor = state.tensors[stored]
        if is_buffer(name) or (name == "lm_head.weight" and tensor in embedding):
            continue
        source: TensorSource = file.source(tensor, name)
        is_linear = name.endswith(".weight") and not name.startswith(("wte.", "wpe.", "lm_head."))
        found.append((stored, transposed(source) if is_linear else source))
    return merged(found, str(file.path))


def _matrix(sources: Mapping[str, TensorSource], name: str, path: Path) -> TensorSource:
    source = sources.get(name)
    if source is None:
        raise CheckpointError(f"{path}: missing tensors: {name!r}")
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
