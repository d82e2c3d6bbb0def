"""Detects files of tokenizers that gpt2c cannot read.

If a folder has such a file, its model may not use GPT-2's vocabulary, so gpt2c tells the user.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import open_regular, read_json_object, show
from gpt2c.errors import Error, TokenizerError

_MAX_ENTRIES: Final = 10_000  # entries of a folder that are checked
_MAX_SNIFFED: Final = 8  # JSON files whose beginning is read
_HEAD: Final = 1 << 16  # bytes read from the beginning of each of these files
_MAX_CONFIG: Final = 4 << 20  # bytes

# Files that describe a tokenizer but do not contain one.
_DESCRIPTIONS: Final = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)
_TOKENIZER_NAMES: Final = re.compile(
    r"tokeni[sz]er|tokeni[sz]ation|tokens?\.|vocab|merges|(^|[^a-z])bpe|spiece|sentencepiece"
    r"|(^|[^a-z])spm|^encoder\.|^dict\.|charset|alphabet|^meta\.pkl$"
    r"|\.(model|spm|tiktoken|bpe|codes)$",
    re.IGNORECASE,
)
# Suffixes of weights, data and texts. Such a file is not a tokenizer, whatever its name.
_OTHER_SUFFIXES: Final = re.compile(
    r"\.(bin|npy|npz|pt|pth|ckpt|safetensors|gguf|h5|msgpack|onnx|arrow|parquet|md|log|png|svg)$",
    re.IGNORECASE,
)
# A tokenizer.json contains one of these keys; a vocab.json begins with at least 20 strings that map
# to integers.
_JSON_KEYS: Final = re.compile(rb'"(merges|added_tokens|pre_tokenizer)"\s*:')
_VOCABULARY: Final = re.compile(rb'\A\s*\{(\s*"(?:[^"\\]|\\.)*"\s*:\s*\d+\s*,){20}')

_GPT2_CLASSES: Final = ("GPT2Tokenizer", "GPT2TokenizerFast")


def foreign_tokenizer(folder: Path) -> str | None:
    """Return a message if a checkpoint's folder seems to have a tokenizer that gpt2c cannot read.

    An example is "PATH: looks like a tokenizer, which gpt2c does not read". Return None if there is
    no sign of such a tokenizer. Files that cannot be opened are skipped.
    """
    sign = _foreign_sign(folder)
    return None if sign is None else f"{sign}, which gpt2c does not read"


def _foreign_sign(folder: Path) -> str | None:
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.is_dir()) for entry in itertools.islice(entries, _MAX_ENTRIES)
            )
    except OSError:
        return None
    for name, is_folder in found:
        if name in _DESCRIPTIONS or (not is_folder and _OTHER_SUFFIXES.search(name)):
            continue
        if _TOKENIZER_NAMES.search(name):
            return f"{folder / name}: looks like {'a' if is_folder else 'part of a'} tokenizer"
    others = [
        name
        for name, is_folder in found
        if name.endswith(".json") and not is_folder and name not in _DESCRIPTIONS
    ]
    for name in others[:_MAX_SNIFFED]:
        if _holds_tokens(folder / name):
            return f"{folder / name}: looks like a tokenizer"
    for name in ("tokenizer_config.json", "config.json"):
        kind = _named_class(folder / name)
        if kind is not None:
            return f"{folder / name}: names a tokenizer of class {show(kind)}"
    return None


def _holds_tokens(path: Path) -> bool:
    """Return whether a JSON file begins like a tokenizer.json or a vocab.json."""
    try:
        with open_regular(path, TokenizerError) as file:
            head = file.read(_HEAD) or b""
    except (Error, OSError):
        return False
    return bool(_JSON_KEYS.search(head) or _VOCABULARY.match(head))


def _named_class(path: Path) -> object:
    """Return the tokenizer_class in a configuration file; None if it is missing or GPT-2's."""
    try:
        values = read_json_object(path, limit=_MAX_CONFIG, error=TokenizerError)
    except Error:
        return None
    kind = values.get("tokenizer_class")
    return None if kind is None or kind in _GPT2_CLASSES else kind
