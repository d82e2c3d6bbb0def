"""Detects tokenizer files that gpt2c does not read, where using GPT-2's vocabulary is a guess."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import open_regular, read_json_object, show
from gpt2c.errors import Error, TokenizerError

_MOST_FILES: Final = 10_000  # max entries checked in a folder
_MOST_READ: Final = 8  # max JSON files whose first bytes are read
_SNIFFED: Final = 1 << 16  # bytes read of each
_MOST_CONFIG: Final = 4 << 20

# Files that describe a tokenizer but do not contain one.
_HARMLESS: Final = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)
_NAMES: Final = re.compile(
    r"tokeni[sz]er|tokeni[sz]ation|tokens?\.|vocab|merges|(^|[^a-z])bpe|spiece|sentencepiece"
    r"|(^|[^a-z])spm|^encoder\.|^dict\.|charset|alphabet|^meta\.pkl$"
    r"|\.(model|spm|tiktoken|bpe|codes)$",
    re.IGNORECASE,
)
# Suffixes of weights, data and texts, whose names prove nothing.
_OTHER_KINDS: Final = re.compile(
    r"\.(bin|npy|npz|pt|pth|ckpt|safetensors|gguf|h5|msgpack|onnx|arrow|parquet|md|log|png|svg)$",
    re.IGNORECASE,
)
# Contents of a renamed tokenizer.json, or of a vocab.json, whose values are all integers.
_DUMP: Final = re.compile(rb'"(merges|added_tokens|pre_tokenizer)"\s*:')
_ENTRIES: Final = re.compile(rb'\A\s*\{(\s*"(?:[^"\\]|\\.)*"\s*:\s*\d+\s*,){20}')

_GPT2_CLASSES: Final = ("GPT2Tokenizer", "GPT2TokenizerFast")


def foreign_tokenizer(folder: Path) -> str | None:
    """Describe, for a message, a sign of a tokenizer that we do not read; None without one."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.is_dir()) for entry in itertools.islice(entries, _MOST_FILES)
            )
    except OSError:
        return None
    for name, is_folder in found:
        if name in _HARMLESS or (not is_folder and _OTHER_KINDS.search(name)):
            continue
        if _NAMES.search(name):
            return f"{folder / name}: looks like {'a' if is_folder else 'part of a'} tokenizer"
    others = [n for n, is_dir in found if n.endswith(".json") and not is_dir and n not in _HARMLESS]
    for name in others[:_MOST_READ]:
        if _holds_tokens(folder / name):
            return f"{folder / name}: looks like a tokenizer"
    for name in ("tokenizer_config.json", "config.json"):
        kind = _named_class(folder / name)
        if kind is not None:
            return f"{folder / name}: names a tokenizer of class {show(kind)}"
    return None


def _holds_tokens(path: Path) -> bool:
    try:
        with open_regular(path, TokenizerError) as file:
            head = file.read(_SNIFFED) or b""
    except (Error, OSError):
        return False
    return bool(_DUMP.search(head) or _ENTRIES.match(head))


def _named_class(path: Path) -> object:
    """The tokenizer_class in a configuration; None if it is GPT-2's."""
    try:
        values = read_json_object(path, limit=_MOST_CONFIG, error=TokenizerError)
    except Error:
        return None
    kind = values.get("tokenizer_class")
    return None if kind is None or kind in _GPT2_CLASSES else kind
