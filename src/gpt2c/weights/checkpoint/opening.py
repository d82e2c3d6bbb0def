"""Which loader a path needs: told by what a file holds, not by what it is called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.options import choice
from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.config import ACTIVATIONS
from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ConfigError, OptionError
from gpt2c.formats import signatures
from gpt2c.formats.raw_file import RawFile
from gpt2c.weights.checkpoint.checkpoint import Checkpoint
from gpt2c.weights.checkpoint.hf import CONFIG, has_weights, open_hf_folder
from gpt2c.weights.checkpoint.hparams import HPARAMS, given_hparams
from gpt2c.weights.checkpoint.training_files import is_training_file

# Other loaders are imported where they are needed: together they would double the time that
# `import gpt2c` takes.

# Files that hold a model by themselves, by the names that their tools give them.
_ALONE: Final = ("*.gguf", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.bin")
_ADAPTER_CONFIG: Final = "adapter_config.json"
_ADAPTER: Final = "adapter_model."
_MAX_CONFIG: Final = 4 << 20


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    activation: str | None = None,
    hparams: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Open a checkpoint: a folder, a file, or a TensorFlow prefix.

    A folder is one of Hugging Face's (``config.json`` with safetensors or torch's weights, whole or
    in shards), OpenAI's (``hparams.json`` with a TensorFlow checkpoint), or holds one file of the
    others: nanoGPT's, build-nanogpt's or minGPT's (torch), llm.c's, GGUF, or NumPy's ``.npz``.

    activation, by transformers' names, overrides the checkpoint's. hparams replaces the file
    hparams.json of TensorFlow and NumPy checkpoints: a dict, a path, or a size such as "124M".

    The configuration and every tensor's name, shape and dtype are checked here; of the
    weights themselves nothing is read yet, except to compare a tied head that is stored twice.
    Close the result, or use it in a ``with``.

    Raises CheckpointNotFoundError (a FileNotFoundError), ConfigError or CheckpointError (both
    ValueErrors), naming the file, the tensor or key, what was found and what was expected;
    OptionError or OptionTypeError for a bad activation or hparams.
    """
    if activation is not None:
        choice("activation", activation, tuple(sorted(ACTIVATIONS)))
    given = None if hparams is None else given_hparams(hparams)
    checkpoint = _open(Path(path), given)
    if activation is not None:
        config = replace(checkpoint.config, activation_function=activation)
        checkpoint = replace(checkpoint, config=config)
    return checkpoint


def _open(place: Path, hparams: Mapping[str, Any] | None) -> Checkpoint:
    # os.path, unlike pathlib, answers also where a parent may not be entered.
    if os.path.isdir(place):
        return _open_folder(place, hparams)
    if (index := _tensorflow_index(place)) is not None:
        return _open_file(index, hparams)
    if not os.path.exists(place):
        raise CheckpointNotFoundError(
            f"{place}: there is no such folder or file; expected a folder that holds config.json "
            "and model.safetensors, or a checkpoint of another kind"
        )
    if place.name == "checkpoint" and any(place.parent.glob("*.index")):
        return _open_folder(place.parent, hparams)  # TensorFlow's file that names the latest
    return _open_file(place, hparams)


def _tensorflow_index(place: Path) -> Path | None:
    """The index of the TensorFlow checkpoint with this prefix, data or graph, or None."""
    if os.path.exists(place) and not place.name.endswith(".meta") and ".data-" not in place.name:
        return None
    from gpt2c.weights.checkpoint.openai import index_of

    return index_of(place)


def _open_folder(folder: Path, hparams: Mapping[str, Any] | None) -> Checkpoint:
    if os.path.lexists(folder / _ADAPTER_CONFIG):
        raise _adapter(folder)
    if hparams is None and (values := _mingpt_values(folder)) is not None:
        return _of_torch(_only_file(folder, ("*.pt", "*.pth")), values)
    if hparams is not None or not has_weights(folder):
        alone = _files(folder, _ALONE)
        has_hparams = hparams is not None or os.path.lexists(folder / HPARAMS)
        if any(folder.glob("*.index")) and (has_hparams or not alone):
            from gpt2c.weights.checkpoint.openai import open_openai_folder

            return open_openai_folder(folder, None, hparams)
        if alone:
            return _open_file(_only_file(folder, _ALONE), hparams)
    _refuse_hparams(folder, hparams)
    return open_hf_folder(folder)


def _open_file(path: Path, hparams: Mapping[str, Any] | None) -> Checkpoint:
    head, tail = _ends(path)
    if head.startswith(signatures.ZIP) and _holds_arrays(path):
        from gpt2c.weights.checkpoint.npz import open_npz

        return open_npz(path, hparams)
    if tail == signatures.BUNDLE_END:
        from gpt2c.weights.checkpoint.openai import open_openai_folder

        return open_openai_folder(path.parent, path, hparams)
    _refuse_hparams(path, hparams)
    if path.name.startswith(_ADAPTER):
        raise _adapter(path)
    if head.startswith(signatures.GGUF):
        from gpt2c.weights.checkpoint.gguf import open_gguf

        return open_gguf(path)
    if head.startswith(signatures.LLMC):
        from gpt2c.weights.checkpoint.llmc import open_llmc

        return open_llmc(path)
    if head[8:9] == signatures.SAFETENSORS_NINTH:
        return open_hf_folder(path.parent, path)
    if head.startswith(signatures.TORCH):
        return _of_torch(path, _mingpt_values(path.parent))
    raise CheckpointError(
        f"{path}: found {show(head[:8])} at the beginning, expected a file of safetensors, torch, "
        "GGUF, llm.c, NumPy (.npz), or the index of a TensorFlow checkpoint"
    )


def _refuse_hparams(path: Path, hparams: Mapping[str, Any] | None) -> None:
    if hparams is not None:
        raise OptionError(
            f"hparams is for checkpoints of TensorFlow and NumPy alone, and {path} is another: "
            "leave it out"
        )


def _adapter(place: Path) -> CheckpointError:
    """The error for an adapter's folder or file; it names the kind and base model if known."""
    folder = place.parent if place.name.startswith(_ADAPTER) else place
    try:
        values = read_json_object(
            folder / _ADAPTER_CONFIG, limit=_MAX_CONFIG, error=CheckpointError
        )
    except (CheckpointError, CheckpointNotFoundError):
        values = {}
    kind, base = values.get("peft_type"), values.get("base_model_name_or_path")
    return CheckpointError(
        f"{place}: is an adapter{f' ({show(kind)})' if kind else ''}, which changes the weights of "
        f"another model{f', {show(base)},' if base else ''} and is no model by itself; merge the "
        "two with the package peft (PeftModel.from_pretrained(base, folder).merge_and_unload(), "
        "then save_pretrained) and load what that writes. Weights beside it can be loaded by "
        "their file's name"
    )


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first 16 and the last 8 bytes, where there are so many."""
    file = RawFile(path)
    try:
        n = min(file.size, 16)
        head = bytes(file.pread(n, 0, "beginning"))
        return head, bytes(file.pread(8, file.size - 8, "end")) if file.size >= 8 else b""
    finally:
        file.close()


def _holds_arrays(path: Path) -> bool:
    """Whether every entry of an archive is called as NumPy's are."""
    from gpt2c.formats.zip_archive import read_directory

    file = RawFile(path)
    try:
        names = read_directory(file, may_be_deflated=True)
    finally:
        file.close()
    return all(name.endswith(".npy") for name in names)


def _of_torch(path: Path, mingpt: dict[str, Any] | None) -> Checkpoint:
    """A file of torch's: nanoGPT's, minGPT's with those values, or else one of transformers."""
    from gpt2c.weights.checkpoint.nanogpt import is_linear, open_mingpt, open_nanogpt, settings_of
    from gpt2c.weights.checkpoint.state_dict import StateDictFile

    file = StateDictFile(path)
    try:
        settings = settings_of(file.state)
        if settings is not None and is_linear(file.state):
            return open_nanogpt(file, file.state, settings)
        if mingpt is not None:
            return open_mingpt(file, file.state, mingpt, str(path.parent / CONFIG))
    except BaseException:
        file.close()
        raise
    file.close()
    if not os.path.exists(path.parent / CONFIG):
        raise ConfigError(
            f"{path}: found weights and no configuration; expected {CONFIG} in the same folder, of "
            "transformers or of minGPT, or beside the weights in the file model_args, a dict, as "
            "nanoGPT writes, or config, an object, as build-nanogpt does"
        )
    return open_hf_folder(path.parent, path)


def _mingpt_values(folder: Path) -> dict[str, Any] | None:
    """The `model` of minGPT's config.json; None where there is no such file."""
    try:
        values = read_json_object(folder / CONFIG, limit=_MAX_CONFIG, error=ConfigError)
    except CheckpointNotFoundError:
        return None
    model = values.get("model")
    is_mingpt = isinstance(model, dict) and "model_type" not in values and "n_embd" not in values
    return model if is_mingpt else None


def _files(folder: Path, globs: tuple[str, ...]) -> list[Path]:
    """The files that match the globs, except those that trainers save besides weights."""
    found = {path for glob in globs for path in folder.glob(glob)}
    return sorted(path for path in found if not is_training_file(path.name))


def _only_file(folder: Path, globs: tuple[str, ...]) -> Path:
    found = _files(folder, globs)
    if not found:
        raise CheckpointNotFoundError(f"{folder}: found no file {' or '.join(globs)}")
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: found {show_list([path.name for path in found])}: name the file to load"
        )
    return found[0]
