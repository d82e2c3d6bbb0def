"""Opens a checkpoint of any kind: the content, not the file's name, selects the loader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.options import choice, integer
from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.config import ACTIVATIONS, MAX_SIZE
from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ConfigError, OptionError
from gpt2c.files import long_path
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile, closed_on_error
from gpt2c.formats.safetensors_file import SafetensorsFile
from gpt2c.weights.checkpoint.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.foreign import foreign_format
from gpt2c.weights.checkpoint.hf import CONFIG, open_hf_folder, weight_files_in
from gpt2c.weights.checkpoint.shared.hparams import (
    HPARAMS_FILE,
    given_hparams,
    refuse_hparams,
)
from gpt2c.weights.checkpoint.shared.training_files import is_training_file

# The other loaders are imported lazily: together they would double the time of `import gpt2c`.

# The usual names of files that hold a whole model. hf._OTHER_FORMATS has the names that gpt2c
# refuses: when you add a loader here, remove its file name there.
_WHOLE_MODELS: Final = ("*.gguf", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.bin")
# The magic number of torch.save's old format, as pickles store it.
_TORCH_MAGIC: Final = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_ADAPTER_CONFIG: Final = "adapter_config.json"
_ADAPTER: Final = "adapter_model."  # the beginning of an adapter's file name
_MAX_CONFIG: Final = 4 << 20  # bytes


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    activation: str | None = None,
    hparams: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    n_head: int | None = None,
) -> Checkpoint:
    """Open a checkpoint: a folder, a file, or a TensorFlow prefix.

    A folder is Hugging Face's (``config.json`` with weights of safetensors or torch, in one file or
    in shards), OpenAI's (``hparams.json`` with a TensorFlow checkpoint), or holds one file of
    another kind: a torch file of nanoGPT, build-nanogpt or minGPT, a file of llm.c, GGUF, or an
    ``.npz`` of NumPy.

    `activation` is transformers' name of a function that overrides the checkpoint's activation
    function. `hparams` (a dict, a path, or a size such as "124M") replaces the file hparams.json of
    TensorFlow and NumPy checkpoints. `n_head` is the number of heads, for kinds of files that do
    not store it; it is short for hparams={"n_head": n_head}.

    This checks the configuration and every tensor's name, shape and dtype. It does not read the
    weights yet, except to compare a tied head that is stored twice. Close the result, or use it in
    a ``with`` statement.

    Raises CheckpointNotFoundError (a FileNotFoundError), ConfigError or CheckpointError (both
    ValueErrors), naming the file, the tensor or key, what was found and what was expected;
    OptionError or OptionTypeError for an invalid activation, hparams or n_head.
    """
    if activation is not None:
        choice("activation", activation, tuple(sorted(ACTIVATIONS)))
    given = None if hparams is None else given_hparams(hparams)
    if n_head is not None:
        if given is not None:
            raise OptionError("n_head and hparams exclude each other: put n_head into hparams")
        given = {"n_head": integer("n_head", n_head, 1, MAX_SIZE)}
    checkpoint = _open(long_path(Path(path)), given)
    if activation is not None:
        config = replace(checkpoint.config, activation_function=activation)
        checkpoint = replace(checkpoint, config=config)
    return checkpoint


def _open(path: Path, hparams: Mapping[str, Any] | None) -> Checkpoint:
    # os.path returns False if a parent folder is not searchable; pathlib raises.
    if os.path.isdir(path):
        return _open_folder(path, hparams)
    if (index := _tensorflow_index(path)) is not None:
        return _open_file(index, hparams)
    if not os.path.exists(path):
        raise CheckpointNotFoundError(
            f"{path}: there is no such folder or file; expected a folder that holds config.json "
            "and model.safetensors, or a checkpoint of another kind"
        )
    if path.name == "checkpoint" and any(path.parent.glob("*.index")):
        # TensorFlow's file that names the latest checkpoint.
        return _open_folder(path.parent, hparams)
    return _open_file(path, hparams)


def _tensorflow_index(path: Path) -> Path | None:
    """Return the index of the TensorFlow checkpoint whose prefix, data or graph file `path` is.

    None means that `path` names no such checkpoint.
    """
    if os.path.exists(path) and not path.name.endswith(".meta") and ".data-" not in path.name:
        return None
    from gpt2c.weights.checkpoint.openai import index_of

    return index_of(path)


def _open_folder(folder: Path, hparams: Mapping[str, Any] | None) -> Checkpoint:
    """Open a folder of minGPT, of Hugging Face, with a TensorFlow checkpoint, or with one file.

    With `hparams`, the folder must have a TensorFlow checkpoint or one file.
    """
    if os.path.lexists(folder / _ADAPTER_CONFIG):
        raise _adapter_error(folder)
    if hparams is None and (values := _mingpt_values(folder)) is not None:
        return _open_torch(_only_file(folder, ("*.pt", "*.pth")), values, None)
    if hparams is not None or not weight_files_in(folder):
        whole = _files(folder, _WHOLE_MODELS)
        has_hparams = hparams is not None or os.path.lexists(folder / HPARAMS_FILE)
        if any(folder.glob("*.index")) and (has_hparams or not whole):
            from gpt2c.weights.checkpoint.openai import open_openai_folder

            return open_openai_folder(folder, None, hparams)
        if whole:
            return _open_file(_only_file(folder, _WHOLE_MODELS), hparams)
    refuse_hparams(folder, hparams)
    return open_hf_folder(folder)


def _open_file(path: Path, hparams: Mapping[str, Any] | None) -> Checkpoint:
    """Open a file of any kind; its first and last bytes select the loader."""
    head, tail = _head_and_tail(path)
    if path.suffix.lower() == ".ot" and (reason := foreign_format(path.name)) is not None:
        raise CheckpointError(f"{path}: {reason}")  # a ZIP archive, like a torch file
    if head.startswith(signatures.ZIP) and _holds_arrays(path):
        from gpt2c.weights.checkpoint.npz import open_npz

        return open_npz(path, hparams)
    if tail == signatures.BUNDLE_END:
        from gpt2c.weights.checkpoint.openai import open_openai_folder

        return open_openai_folder(path.parent, path, hparams)
    if path.name.startswith(_ADAPTER):
        raise _adapter_error(path)
    if head[8:9] != signatures.SAFETENSORS_NINTH and head.startswith(signatures.TORCH):
        if head.startswith(signatures.PICKLE) and _TORCH_MAGIC not in head:
            from gpt2c.weights.checkpoint.pico_file import open_pico_file

            return open_pico_file(path, hparams)
        return _open_torch(path, _mingpt_values(path.parent), hparams)
    if head[8:9] == signatures.SAFETENSORS_NINTH:
        if (checkpoint := _other_layout_in_safetensors(path, hparams)) is not None:
            return checkpoint
        refuse_hparams(path, hparams)
        return open_hf_folder(path.parent, path)
    refuse_hparams(path, hparams)
    if head.startswith(signatures.GGUF):
        from gpt2c.weights.checkpoint.gguf import open_gguf

        return open_gguf(path)
    if head.startswith(signatures.LLMC):
        from gpt2c.weights.checkpoint.llmc import open_llmc

        return open_llmc(path)
    if (reason := foreign_format(path.name, head)) is not None:
        raise CheckpointError(f"{path}: {reason}")
    raise CheckpointError(
        f"{path}: found {show(head[:8])} at the beginning, expected a file of safetensors, torch, "
        "GGUF, llm.c, NumPy (.npz), or the index of a TensorFlow checkpoint"
    )


def _adapter_error(path: Path) -> CheckpointError:
    """Return the error for an adapter's folder or file; it names the adapter's base model."""
    folder = path.parent if path.name.startswith(_ADAPTER) else path
    try:
        values = read_json_object(
            folder / _ADAPTER_CONFIG, limit=_MAX_CONFIG, error=CheckpointError
        )
    except (CheckpointError, CheckpointNotFoundError):
        values = {}
    kind, base = values.get("peft_type"), values.get("base_model_name_or_path")
    named = show(base) if isinstance(base, str) and base else "the base model"
    return CheckpointError(
        f"{path}: is an adapter{f' ({show(kind)})' if kind else ''}, which changes the weights of "
        f"another model, {named}, and is not a model by itself; load that model with the adapter: "
        f"GPT2.from_pretrained({named}, adapter={show(str(folder))}), or --model {named} --adapter "
        f"{show(str(folder))}. If the folder also holds a model's weights, load that file by its "
        "path"
    )


def _head_and_tail(path: Path) -> tuple[bytes, bytes]:
    """Return the first 32 and the last 8 bytes of a file; fewer if the file is shorter."""
    with closing(RawFile(path)) as file:
        head = bytes(file.pread(min(file.size, 32), 0, "beginning"))
        return head, bytes(file.pread(8, file.size - 8, "end")) if file.size >= 8 else b""


def _holds_arrays(path: Path) -> bool:
    """Return whether every entry of a ZIP archive is named ``*.npy``."""
    from gpt2c.formats.zip_archive import read_directory

    with closing(RawFile(path)) as file:
        names = read_directory(file, may_be_deflated=True)
    return all(name.endswith(".npy") for name in names)


def _open_torch(
    path: Path, mingpt: dict[str, Any] | None, hparams: Mapping[str, Any] | None
) -> Checkpoint:
    """Open a torch file: of another layout, else nanoGPT's, else minGPT's if `mingpt` is its
    configuration, else HF's.
    """
    from gpt2c.weights.checkpoint.layouts.opening import open_other_layout
    from gpt2c.weights.checkpoint.nanogpt import (
        has_linear_layout,
        open_mingpt,
        open_nanogpt,
        settings_of,
    )
    from gpt2c.weights.checkpoint.shared.state_dict import StateDictFile

    file = StateDictFile(path)
    with closed_on_error(file):
        settings = settings_of(file.state)
        stored = {name: file.named_source(name, name) for name in file.tensors}
        given = hparams
        if given is None and settings is not None and "n_head" in settings:
            given = {"n_head": settings["n_head"]}
        other = open_other_layout(
            stored, path, file, given, enclosing=file.state.enclosing, shared=file.shared_names()
        )
        if other is not None:
            return other
        refuse_hparams(path, hparams)
        if settings is not None and has_linear_layout(file.state):
            return open_nanogpt(file, file.state, settings)
        if mingpt is not None:
            return open_mingpt(file, file.state, mingpt, str(path.parent / CONFIG))
    file.close()
    if not os.path.exists(path.parent / CONFIG):
        raise ConfigError(
            f"{path}: found weights and no configuration; expected {CONFIG} of transformers or "
            "minGPT in the same folder, or nanoGPT's dict model_args or build-nanogpt's object "
            "config in the file itself"
        )
    return open_hf_folder(path.parent, path)


def _other_layout_in_safetensors(
    path: Path, hparams: Mapping[str, Any] | None
) -> Checkpoint | None:
    """Return the checkpoint of a safetensors file in another layout than GPT-2's; else None."""
    from gpt2c.weights.checkpoint.layouts.opening import open_other_layout

    file = SafetensorsFile(path)
    with closed_on_error(file):
        stored = {name: file.named_source(name, name) for name in file.tensors}
        if (checkpoint := open_other_layout(stored, path, file, hparams)) is not None:
            return checkpoint
    file.close()
    return None


def _mingpt_values(folder: Path) -> dict[str, Any] | None:
    """Return the "model" section of minGPT's config.json, or None if the folder has no such file.

    Raises ConfigError if config.json is not a JSON object.
    """
    try:
        values = read_json_object(folder / CONFIG, limit=_MAX_CONFIG, error=ConfigError)
    except CheckpointNotFoundError:
        return None
    model = values.get("model")
    is_mingpt = isinstance(model, dict) and "model_type" not in values and "n_embd" not in values
    return model if is_mingpt else None


def _files(folder: Path, globs: tuple[str, ...]) -> list[Path]:
    """Return the files that match the globs, except trainers' files without weights."""
    found = {path for glob in globs for path in folder.glob(glob)}
    return sorted(path for path in found if not is_training_file(path.name))


def _only_file(folder: Path, globs: tuple[str, ...]) -> Path:
    found = _files(folder, globs)
    if not found:
        raise CheckpointNotFoundError(f"{folder}: found no file named {' or '.join(globs)}")
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: found {show_list([path.name for path in found])}: name the file to load"
        )
    return found[0]
