"""Opens checkpoints of nanoGPT, build-nanogpt and minGPT: torch.save files.

The models use nn.Linear, so the matrices are [out, in]. nanoGPT saves ``model_args`` with the
weights, build-nanogpt an object ``GPTConfig``, and Lightning ``hyper_parameters``. minGPT saves the
weights alone, and a ``config.json`` in a format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import CheckpointError, ConfigError
from gpt2c.formats.pickle_values import Record, describe, fields_of, has_fields
from gpt2c.formats.tensors import TensorSource
from gpt2c.formats.torch_file import TorchFile
from gpt2c.weights.checkpoint.checkpoint import (
    Checkpoint,
    check_n_layer,
    checked_tensors,
    sources_by_name,
)
from gpt2c.weights.checkpoint.shared.hparams import matrix_shape, mlp_width
from gpt2c.weights.checkpoint.shared.names import bare_name, count_blocks, gpt2_names, is_buffer
from gpt2c.weights.checkpoint.shared.state_dict import SavedState
from gpt2c.weights.checkpoint.shared.views import Zeros, from_linear, with_embedding

_REQUIRED: Final = ("n_layer", "n_head", "n_embd", "block_size")
_OPTIONAL: Final = ("vocab_size", "bias", "dropout")
# Keys under which trainers save the model's configuration. The value under _ARGUMENTS, and an
# object under _CONFIG, hold the configuration alone. The values under _MIXED also hold other
# hyperparameters.
_ARGUMENTS: Final = "model_args"
_CONFIG: Final = "config"
_MIXED: Final = ("hyper_parameters", "hparams", "args", "model_config", "cfg", _CONFIG)

# minGPT's model_type -> n_head.
_MINGPT_HEADS: Final = {
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25,
    "gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip


def settings_of(state: SavedState) -> dict[str, Any] | None:
    """Return the model's settings that a trainer like nanoGPT saved with the weights, or None.

    From nanoGPT's model_args and from a configuration object, return all settings: an unknown
    setting may mean that the model is not nanoGPT's. From hyperparameters, return only the settings
    of the model.
    """
    for enclosing in reversed(state.enclosing):
        if arguments := fields_of(enclosing.get(_ARGUMENTS)):
            return arguments
        config = enclosing.get(_CONFIG)
        if isinstance(config, Record) and has_fields(config, _REQUIRED):
            return fields_of(config)
        for key in _MIXED:
            # Look one level deeper too: {"config": GPTConfig(...), "learning_rate": ...}.
            values = enclosing.get(key)
            for named in (values, *fields_of(values).values()):
                if has_fields(named, _REQUIRED):
                    return fields_of(named, (*_REQUIRED, *_OPTIONAL))
    return None


def has_linear_layout(state: SavedState) -> bool:
    """Return whether matrices are stored [out, in], as in nn.Linear, not [in, out], as in HF's."""
    for stored, name in ((stored, bare_name(stored)) for stored in state.tensors):
        shape = state.tensors[stored].shape
        if name.endswith(".attn.c_attn.weight") and len(shape) == 2:
            return shape[1] != 3 * shape[0]
    return True


def open_nanogpt(file: TorchFile, state: SavedState, arguments: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint of nanoGPT, build-nanogpt or a similar trainer.

    The checkpoint owns the file. `arguments` is the result of :func:`settings_of`. If it has no key
    "bias", the model comes from an old nanoGPT or from build-nanogpt, whose GELU is the tanh
    approximation. If it has this key, GELU is exact, as in nanoGPT since 17 May 2023.

    Raises CheckpointError or ConfigError, naming the file and what is wrong. The caller then
    closes the file.
    """
    where = str(file.path)
    if unknown := [describe(key) for key in arguments if key not in _REQUIRED + _OPTIONAL]:
        raise ConfigError(
            f"{where}: unknown model_args: {show_list(unknown)}; this may be a model other than "
            "nanoGPT's"
        )
    if missing := [key for key in _REQUIRED if key not in arguments]:
        raise ConfigError(f"{where}: model_args lacks {show_list(missing)}")
    sizes = {key: arguments[key] for key in _REQUIRED}
    if arguments.get("vocab_size") is not None:  # nanoGPT's first versions did not save vocab_size
        sizes["vocab_size"] = arguments["vocab_size"]
    for key, value in sizes.items():
        if type(value) is not int:
            raise ConfigError(
                f"{where}: model_args: {key} is {describe(value)}, expected an integer"
            )
    has_bias = arguments.get("bias", True)
    if not isinstance(has_bias, bool):
        raise ConfigError(f"{where}: model_args: bias is {describe(has_bias)}, expected a bool")
    sources = with_embedding(_sources(file, state))
    sizes.setdefault("vocab_size", matrix_shape(sources, "wte.weight", where)[0])
    config = GPT2Config.from_sizes(
        where,
        n_positions=sizes.pop("block_size"),
        activation_function="gelu" if "bias" in arguments else "gelu_new",
        tie_word_embeddings="lm_head.weight" not in sources,
        n_inner=mlp_width(sources, sizes["n_embd"]),
        **sizes,
    )
    check_n_layer(config, len(sources), where)
    if not has_bias:
        if biases := sorted(name for name in sources if name.endswith(".bias")):
            raise CheckpointError(
                f"{where}: unexpected tensors: {show_list(biases)}; model_args says that "
                "there are no biases"
            )
        for name, shape in tensor_shapes(config).items():
            if name.endswith(".bias"):
                sources[name] = Zeros(name, shape)
    tensors = checked_tensors(config, sources, where)
    return Checkpoint(config, tensors, file.path.parent, (file,), dataset=_dataset(state))


def _dataset(state: SavedState) -> tuple[str, str] | None:
    """Return dataset and out_dir of nanoGPT's training configuration, or None without a dataset."""
    for values in state.enclosing:
        config = values.get("config")
        if isinstance(config, dict) and isinstance(dataset := config.get("dataset"), str):
            out_dir = config.get("out_dir")
            return dataset, out_dir if isinstance(out_dir, str) else ""
    return None


def open_mingpt(
    file: TorchFile, state: SavedState, values: Mapping[str, Any], config_path: str
) -> Checkpoint:
    """Return minGPT's checkpoint, which owns the file.

    `values` is the "model" section of minGPT's config.json, and `config_path` is the path of
    config.json. The number of heads comes from `values`. The other sizes come from the tensors,
    because minGPT writes its configuration before it knows all of them.

    Raises CheckpointError or ConfigError, naming the file and what is wrong. The caller then
    closes the file.
    """
    where = str(file.path)
    sources = _sources(file, state)
    n_head = values.get("n_head") or _MINGPT_HEADS.get(str(values.get("model_type")))
    if n_head is None:
        raise ConfigError(
            f"{config_path}: found no n_head and the unknown model_type "
            f"{show(values.get('model_type'))}, expected n_head or one of the model types "
            f"{', '.join(_MINGPT_HEADS)}"
        )
    wte, wpe = (matrix_shape(sources, name, where) for name in ("wte.weight", "wpe.weight"))
    config = GPT2Config.from_sizes(
        where,
        vocab_size=wte[0],
        n_embd=wte[1],
        n_positions=wpe[0],
        n_layer=count_blocks(sources),
        n_head=n_head,
        n_inner=mlp_width(sources, wte[1]),
        tie_word_embeddings="lm_head.weight" not in sources,
    )
    tensors = checked_tensors(config, sources, where)
    return Checkpoint(config, tensors, file.path.parent, (file,))


def _sources(file: TorchFile, state: SavedState) -> dict[str, TensorSource]:
    """Return the tensors, without a tied head, by GPT-2's names, with matrices as [in, out]."""
    names = gpt2_names(state.tensors, str(file.path))
    embedding = [state.tensors[stored] for stored, name in names.items() if name == "wte.weight"]
    found: list[tuple[str, TensorSource]] = []
    for stored, name in names.items():
        tensor = state.tensors[stored]
        if is_buffer(name) or (name == "lm_head.weight" and tensor in embedding):
            continue
        found.append((stored, from_linear(file.source(tensor, name))))
    return sources_by_name(found, str(file.path))
