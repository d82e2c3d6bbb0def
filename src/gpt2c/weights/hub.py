"""Finds a model's files: those of the embedded model, on disk, or on Hugging Face's hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import CheckpointNotFoundError, MissingDependencyError, OptionTypeError
from gpt2c.files import long_path

EMBEDDED: Final = "tales"

# All files that a model needs. Weights in other formats are downloaded only if the repository has
# no safetensors.
FILES: Final = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "adapter_config.json",  # lets the error say that the repository is an adapter
)

_TORCH_FILES: Final = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-*-of-*.bin",
)

_ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
_TORCH_ADAPTER: Final = ("adapter_model.bin",)

_LONGEST_NAME: Final = 200  # the hub's own limit is 96 for each part
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def is_hub_name(name: str) -> bool:
    r"""Return whether this has the form of a model's name on the hub: "name" or "user/name".

    A string that begins with ``.``, ``/`` or ``~``, has two slashes, or has a ``\`` or ``:`` of
    Windows, does not.
    """
    return len(name) <= _LONGEST_NAME and _HUB_NAME.fullmatch(name) is not None


def locate(
    path: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the path of a model's files; download them into huggingface_hub's cache if needed.

    None means the embedded model, and so does "tales" if no such path exists. An existing path
    takes precedence over a name on the hub. A path that does not exist and cannot be a name on the
    hub is returned unchanged. huggingface_hub defines `revision`, `token` and `local_files_only`.

    Raises CheckpointNotFoundError if the hub has no such model or cannot be reached,
    MissingDependencyError if huggingface_hub is needed and not installed, OptionTypeError unless
    path is None, a str or a Path.
    """
    if path is None:
        return embedded_folder()
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise OptionTypeError(
            f"the model is {show(path)}; it must be a folder or a name, a str or a Path"
        )
    name = os.fspath(path)
    if not name:
        raise CheckpointNotFoundError("the model's path is empty; it must be a folder or a name")
    # A TensorFlow checkpoint is named by its prefix, without suffixes: "run1/model-9".
    if os.path.lexists(found := long_path(Path(name))) or os.path.lexists(f"{found}.index"):
        return found
    if name == EMBEDDED:
        return embedded_folder()
    if not isinstance(path, str) or not is_hub_name(name):
        return Path(name)  # code that reads the path reports what is missing
    return _download(name, revision, token, local_files_only)


def locate_adapter(
    path: str | os.PathLike[str], *, token: str | bool | None = None, local_files_only: bool = False
) -> Path:
    """Return the folder of an adapter; download it into huggingface_hub's cache if needed.

    As in :func:`locate`, an existing path takes precedence over a name on the hub. The path of an
    adapter's file, adapter_model.*, means its folder. Raises the errors of :func:`locate`.
    """
    name = os.fspath(path)
    if os.path.lexists(found := long_path(Path(name))):
        is_file = found.name.startswith("adapter_") and not os.path.isdir(found)
        return found.parent if is_file else found
    if not isinstance(path, str) or not is_hub_name(name):
        return Path(name)  # code that reads the path reports what is missing
    files = (_ADAPTER_FILES, _ADAPTER_FILES + _TORCH_ADAPTER)
    return _download(name, None, token, local_files_only, files, "adapter_model.safetensors")


def embedded_folder() -> Path:
    """Return the folder of the model that is part of the package."""
    return Path(__file__).parents[1] / "models" / EMBEDDED


def _download(
    name: str,
    revision: str | None,
    token: str | bool | None,
    local_files_only: bool,
    choices: tuple[tuple[str, ...], ...] = (FILES, FILES + _TORCH_FILES),
    preferred: str = "model*.safetensors",
) -> Path:
    """Download the first of the `choices` of files that has the `preferred` file, or the last."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise MissingDependencyError(
            f"{name}: there is no such folder, and looking for it on Hugging Face's hub needs the "
            "package huggingface_hub: pip install huggingface_hub (the extra gpt2c[hub])"
        ) from None
    described = name if revision is None else f"{name} at revision {revision}"
    try:
        for files in choices:
            folder = Path(
                huggingface_hub.snapshot_download(
                    name,
                    revision=revision,
                    token=token,
                    local_files_only=local_files_only,
                    allow_patterns=list(files),
                )
            )
            if any(folder.glob(preferred)):
                break
    except errors.GatedRepoError:
        why = "access must be requested on the hub; then pass token= or log in"
    except errors.RepositoryNotFoundError:
        why = (
            "there is no such folder here, and no such model on the hub; for a private model, pass "
            "token="
        )
    except errors.RevisionNotFoundError:
        why = "the hub has the model, but not this revision"
    except errors.LocalEntryNotFoundError as error:
        why = (
            "there is no such folder here, and the model is not in the hub's cache, "
            f"{_why_offline(error)}"
        )
    except Exception as error:  # the HTTP client's exceptions vary
        why = f"it could not be downloaded from the hub ({_first_line(error)})"
    else:
        return folder
    raise CheckpointNotFoundError(f"{described}: {why}") from None


def _why_offline(error: BaseException) -> str:
    if error.__cause__ is None:
        return "which is all that local_files_only=True allows"
    if type(error.__cause__).__name__ == "OfflineModeIsEnabled":
        return "which is all that HF_HUB_OFFLINE=1 allows"
    return f"and the hub cannot be reached ({_first_line(error.__cause__)})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
