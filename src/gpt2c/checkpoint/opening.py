"""Which loader a path needs: told by what a file holds, not by what it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from gpt2c.checkpoint import signatures
from gpt2c.checkpoint.hf import CONFIG, has_weights, open_hf_folder
from gpt2c.checkpoint.hparams import HPARAMS
from gpt2c.checkpoint.raw_file import RawFile
from gpt2c.checkpoint.source import Checkpoint
from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from gpt2c.untrusted import read_json_object, show, show_list

# Other loaders are imported where they are needed: together they would double the time that
# `import gpt2c` takes.

# Files that hold a model by themselves, by the names that their tools give them.
_ALONE: Final = ("*.gguf", "*.pt", "*.pth", "*.npz", "*.bin")
_MAX_CONFIG: Final = 4 << 20


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a folder, or a file.

    A folder is one of Hugging Face's (``config.json`` with safetensors or torch's weights, whole or
    in shards), OpenAI's (``hparams.json`` with a TensorFlow checkpoint), or holds one file of the
    others: nanoGPT's, build-nanogpt's or minGPT's (torch), llm.c's, GGUF, or NumPy's ``.npz``.

    The configuration and every tensor's name, shape and dtype are checked here; of the
    weights themselves nothing is read yet, except to compare a tied head that is stored twice.
    Close the result, or use it in a ``with``.

    Raises CheckpointNotFoundError (a FileNotFoundError), ConfigError or CheckpointError (both
    ValueErrors), naming the file, the tensor or key, what was found and what was expected.
    """
    place = Path(path)
    # os.path, unlike pathlib, answers also where a parent may not be entered.
    if not os.path.exists(place):
        raise CheckpointNotFoundError(
            f"{place}: there is no such folder or file; expected a folder that holds config.json "
            "and model.safetensors, or a checkpoint of another kind"
        )
    return _open_folder(place) if os.path.isdir(place) else _open_file(place)


def _open_folder(folder: Path) -> Checkpoint:
    values = _mingpt_values(folder)
    if values is not None:
        return _of_torch(_only_file(folder, ("*.pt", "*.pth")), values)
    if not has_weights(folder):
        if os.path.exists(folder / HPARAMS) and any(folder.glob("*.index")):
            from gpt2c.checkpoint.openai import open_openai_folder

            return open_openai_folder(folder)
        alone = [path for glob in _ALONE for path in folder.glob(glob)]
        if alone:
            return _open_file(_only_file(folder, _ALONE))
    return open_hf_folder(folder)


def _open_file(path: Path) -> Checkpoint:
    head, tail = _ends(path)
    if head.startswith(signatures.GGUF):
        from gpt2c.checkpoint.gguf import open_gguf

        return open_gguf(path)
    if head.startswith(signatures.LLMC):
        from gpt2c.checkpoint.llmc import open_llmc

        return open_llmc(path)
    if head.startswith(signatures.ZIP) and _holds_arrays(path):
        from gpt2c.checkpoint.npz import open_npz

        return open_npz(path)
    if tail == signatures.BUNDLE_END:
        from gpt2c.checkpoint.openai import open_openai_folder

        return open_openai_folder(path.parent, path)
    if head[8:9] == signatures.SAFETENSORS_NINTH:
        return open_hf_folder(path.parent, path)
    if head.startswith((signatures.ZIP, signatures.PICKLE)):
        return _of_torch(path, _mingpt_values(path.parent))
    raise CheckpointError(
        f"{path}: found {show(head[:8])} at the beginning, expected a file of safetensors, torch, "
        "GGUF, llm.c, NumPy (.npz), or the index of a TensorFlow checkpoint"
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
    from gpt2c.checkpoint.zip_archive import read_directory

    file = RawFile(path)
    try:
        names = read_directory(file, may_be_deflated=True)
    finally:
        file.close()
    return all(name.endswith(".npy") for name in names)


def _of_torch(path: Path, mingpt: dict[str, Any] | None) -> Checkpoint:
    """A file of torch's: nanoGPT's, minGPT's with those values, or else one of transformers."""
    from gpt2c.checkpoint.nanogpt import is_training_checkpoint, open_mingpt, open_nanogpt
    from gpt2c.checkpoint.torch_file import TorchFile

    file = TorchFile(path)
    try:
        if is_training_checkpoint(file.value):
            return open_nanogpt(file)
        if mingpt is not None:
            return open_mingpt(file, mingpt, str(path.parent / CONFIG))
    except BaseException:
        file.close()
        raise
    file.close()
    if not os.path.exists(path.parent / CONFIG):
        raise ConfigError(
            f"{path}: found weights and no configuration; expected {CONFIG} in the same folder, of "
            "transformers or of minGPT, or a checkpoint of nanoGPT's, which holds its own"
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


def _only_file(folder: Path, globs: tuple[str, ...]) -> Path:
    found = sorted({path for glob in globs for path in folder.glob(glob)})
    if not found:
        raise CheckpointNotFoundError(f"{folder}: found no file {' or '.join(globs)}")
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: found {show_list([path.name for path in found])}: name the file to load"
        )
    return found[0]
