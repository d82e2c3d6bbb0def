"""Makes folders in Hugging Face's format with a small random model, and hostile pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import FIXTURES, config_of, model_on, random_weights

RECORDED = json.loads((FIXTURES / "special_tokens.json").read_text())
VOCAB: dict[str, int] = RECORDED["vocab"]  # 256 single bytes; <|endoftext|> has id 256
N_VOCAB = 270


def random_folder(path: Path, **shape: Any) -> Path:
    """Save a random model of the given shape, without a tokenizer."""
    config = config_of(**{"vocab_size": 258, "n_layer": 1, "n_embd": 6, **shape})
    model_on("numpy", config, random_weights(config)).save_pretrained(path)
    return path


def as_hub_cache(folder: Path, repository: Path) -> Path:
    """Move a folder's files into a repository of the hub's cache; return the snapshot of links."""
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(n))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(n))
    return snapshot


class PickledCall:
    """An object whose pickle calls function(*arguments) when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def folder_of(
    path: Path,
    *,
    config: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    likeliest: int | None = None,
    has_tokenizer: bool = True,
    **files: Any,
) -> Path:
    """Save a model folder; each further argument is a JSON file: its name and its content.

    `config` adds keys to config.json and `without` removes keys from it. `likeliest` is the id that
    the model generates after every prompt.
    """
    shape = config_of(vocab_size=N_VOCAB, n_positions=64, n_layer=1, n_embd=12, n_head=2)
    weights = random_weights(shape, seed=5)
    if likeliest is not None:
        weights["ln_f.weight"] = np.zeros(12, dtype=np.float32)
        weights["wte.weight"][likeliest] *= 10  # so that no other row has a larger product
        weights["ln_f.bias"] = weights["wte.weight"][likeliest]
    model_on("numpy", shape, weights).save_pretrained(path)
    values = json.loads((path / "config.json").read_text())
    values |= {"bos_token_id": 256, "eos_token_id": 256, **(config or {})}
    values = {name: value for name, value in values.items() if name not in without}
    (path / "config.json").write_text(json.dumps(values))
    if has_tokenizer:
        files = {"vocab": VOCAB, **files}
        (path / "merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / f"{name}.json").write_text(text, encoding="utf-8")
    return path
