"""Opens GGUF files of the architecture gpt2, as llama.cpp's converter writes them."""

from __future__ import annotations

import itertools
import re
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import MAX_SIZE, GPT2Config
from gpt2c.errors import ConfigError
from gpt2c.formats.gguf_file import GGUFFile
from gpt2c.formats.raw_file import closed_on_error
from gpt2c.formats.tensors import TensorSource
from gpt2c.text.added_tokens import AddedToken
from gpt2c.text.special_tokens import Template
from gpt2c.weights.checkpoint.checkpoint import (
    Checkpoint,
    StoredVocabulary,
    checked_tensors,
    sources_by_name,
)
from gpt2c.weights.checkpoint.shared.hparams import matrix_shape
from gpt2c.weights.checkpoint.shared.views import from_linear

_MODULES: Final = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
}
_BLOCK_MODULES: Final = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BLOCK = re.compile(r"blk\.([0-9]{1,7})\.([a-z_]+)\.(weight|bias)", re.ASCII)

# GPT2Config's names -> keys of the metadata, after "gpt2.".
_SIZE_KEYS: Final = {
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
}
_EPSILON_KEY: Final = "attention.layer_norm_epsilon"
# Other keys that may be present. llama.cpp does not read them for gpt2 either.
_IGNORED_KEYS: Final = ("rope.dimension_count", "vocab_size", "attention.head_count_kv")

# Values of tokenizer.ggml.token_type, from ggml's docs/gguf.md.
_ADDED_TYPES: Final = (2, 3, 4)  # unknown, control, user-defined
_USER_DEFINED_TYPE: Final = 4
_UNUSED_TYPE: Final = 5


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file whose general.architecture is gpt2.

    Raises CheckpointNotFoundError, CheckpointError or ConfigError, naming the file.
    """
    file = GGUFFile(path)
    with closed_on_error(file):
        architecture = file.metadata.get("general.architecture")
        if architecture != "gpt2":
            raise ConfigError(
                f"{path}: found general.architecture {_shown(architecture)}, expected 'gpt2'"
            )
        sources = sources_by_name(
            (
                (stored, from_linear(file.source(stored, _gpt2_name(stored))))
                for stored in file.tensors
            ),
            str(path),
        )
        config = _config(file, sources)
        tensors = checked_tensors(config, sources, str(path))
        vocabulary = _vocabulary(file, config)
        return Checkpoint(config, tensors, path.parent, (file,), vocabulary)


def read_vocabulary(path: Path) -> StoredVocabulary | str:
    """Return the vocabulary of a GGUF file of any model, or the reason why it cannot be used.

    Raises CheckpointNotFoundError or CheckpointError, naming the file.
    """
    with closing(GGUFFile(path)) as file:
        return _vocabulary(file, GPT2Config(vocab_size=MAX_SIZE))


def _gpt2_name(stored: str) -> str:
    if (match := _BLOCK.fullmatch(stored)) and match[2] in _BLOCK_MODULES:
        return f"h.{int(match[1])}.{_BLOCK_MODULES[match[2]]}.{match[3]}"
    module, _, leaf = stored.rpartition(".")
    return f"{_MODULES[module]}.{leaf}" if module in _MODULES else stored


def _config(file: GGUFFile, sources: dict[str, TensorSource]) -> GPT2Config:
    values: dict[str, Any] = {}
    for name, key in _SIZE_KEYS.items():
        value = file.metadata.get(f"gpt2.{key}")
        if type(value) is not int:
            raise ConfigError(f"{file.path}: found gpt2.{key} {_shown(value)}, expected an integer")
        values[name] = value
    epsilon = file.metadata.get(f"gpt2.{_EPSILON_KEY}", 1e-5)
    known = {*_SIZE_KEYS.values(), _EPSILON_KEY, *_IGNORED_KEYS}
    unknown = sorted(
        key for key in file.metadata if key.startswith("gpt2.") and key[5:] not in known
    )
    if unknown:
        raise ConfigError(
            f"{file.path}: unknown metadata: {show_list(unknown)}; this may not be a GPT-2"
        )
    special_ids = {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos")
    }
    for name, id in special_ids.items():
        if id is not None and type(id) is not int:
            raise ConfigError(
                f"{file.path}: found tokenizer.ggml.{name} {_shown(id)}, expected an integer"
            )
    inner = values.pop("n_inner")
    return GPT2Config.from_sizes(
        str(file.path),
        **values,
        **{name: id for name, id in special_ids.items() if id is not None},
        vocab_size=matrix_shape(sources, "wte.weight", str(file.path))[0],
        n_inner=None if inner == 4 * values["n_embd"] else inner,
        # The file stores a float32; the one nearest to 1e-5 means 1e-5.
        layer_norm_epsilon=1e-5 if epsilon == float(np.float32(1e-5)) else epsilon,
        tie_word_embeddings="lm_head.weight" not in sources,
    )


def _vocabulary(file: GGUFFile, config: GPT2Config) -> StoredVocabulary | str:
    """Return the vocabulary of a file, or the reason why it cannot be used."""
    get = file.metadata.get
    if get("tokenizer.ggml.model") != "gpt2":
        return f"{file.path}: its tokenizer is {_shown(get('tokenizer.ggml.model'))}, not 'gpt2'"
    if get("tokenizer.ggml.pre", "gpt-2") not in ("gpt-2", "default"):
        pre = get("tokenizer.ggml.pre")
        return f"{file.path}: its tokenizer splits texts like {_shown(pre)}, not like 'gpt-2'"
    tokens, merges = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list):
        return f"{file.path}: it has no lists of tokens and merges"
    try:
        "".join(itertools.chain(tokens, merges)).encode()
    except UnicodeEncodeError:
        return f"{file.path}: it has tokens that are not UTF-8"
    types = get("tokenizer.ggml.token_type")
    if types is None:
        types = np.ones(len(tokens), dtype=np.int32)
    if (
        not isinstance(types, np.ndarray)
        or types.dtype.kind not in "iu"
        or len(types) != len(tokens)
    ):
        return (
            f"{file.path}: its token_type is not one integer for each of its {len(tokens)} tokens"
        )
    # Unused tokens pad the end of the vocabulary. They never appear in texts.
    n = len(tokens)
    while n and types[n - 1] == _UNUSED_TYPE:
        n -= 1
    added = tuple(
        AddedToken(tokens[id], id, special=bool(types[id] != _USER_DEFINED_TYPE))
        for id in range(n)
        if types[id] in _ADDED_TYPES
    )
    vocab = {token: id for id, token in enumerate(tokens[:n])}
    if len(vocab) != n or n > config.vocab_size:
        return (
            f"{file.path}: its {n} tokens are not distinct, or more than the model's "
            f"{config.vocab_size}"
        )
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            return f"{file.path}: found the merge {show(merge)}, expected two tokens"
        pairs.append((left, right))
    return StoredVocabulary(str(file.path), vocab, pairs, added, _template(file, n))


def _template(file: GGUFFile, n_tokens: int) -> Template:
    """Return the ids that the file says to put before and after a text; llama.cpp does so too."""
    get = file.metadata.get

    def ids(name: str) -> tuple[int, ...]:
        id = get(f"tokenizer.ggml.{name}_token_id")
        is_added = get(f"tokenizer.ggml.add_{name}_token") is True
        return (id,) if is_added and type(id) is int and 0 <= id < n_tokens else ()

    return ids("bos"), ids("eos")


def _shown(value: object) -> str:
    """Return a metadata value for a message; an array is shown as its type only."""
    return show(value) if isinstance(value, str | int | float) else type(value).__name__
