"""Helpers of the scripts that make fixtures: folders, encoded logits, and names."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path("tests/fixtures")


def new_folder(folder: Path) -> Path:
    """Create an empty folder in place of an old one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def encoded(values: Any) -> str:
    """Return an array or a tensor as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def write_expected(folder: Path, made_with: dict[str, str], ids: list[int], logits: Any) -> None:
    """Write expected.json: token ids and the logits [n_tokens, n_vocab] of a model."""
    expected = {"made_with": made_with, "ids": ids, "logits": encoded(logits)}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def byte_alphabet() -> list[str]:
    """Return GPT-2's character for each byte from 0 to 255."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = itertools.count(256)
    return [chr(byte) if byte in kept else chr(next(shifted)) for byte in range(256)]


def transformers_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return gpt2c's options under transformers' names: only bad_words and logit_bias differ."""
    renamed = dict(options)
    if "bad_words" in renamed:
        renamed["bad_words_ids"] = renamed.pop("bad_words")
    if "logit_bias" in renamed:
        biases = renamed.pop("logit_bias").items()
        renamed["sequence_bias"] = [[[int(id)], bias] for id, bias in biases]
    return renamed
