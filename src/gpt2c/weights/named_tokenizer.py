"""Loads the tokenizer that a user passes as tokenizer=: a file, a folder or a Tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import open_regular, show
from gpt2c.errors import (
    CheckpointNotFoundError,
    MissingDependencyError,
    OptionTypeError,
    TokenizerError,
)
from gpt2c.formats import signatures
from gpt2c.text.characters import META, read_meta
from gpt2c.text.foreign_files import foreign_tokenizer
from gpt2c.text.sentence_piece import SPIECE, read_sentence_piece
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.text.vocab_txt import VOCAB_TXT, read_vocab_txt
from gpt2c.weights.checkpoint import Checkpoint
from gpt2c.weights.tokenizer_files import (
    FILE_PAIRS,
    TOKENIZER_JSON,
    candidates_in,
    check_size,
    load_files,
    load_json,
    load_stored_vocabulary,
    tokenizer_of,
)

GPT2_NAME: Final = "gpt2"  # the name of GPT-2's own tokenizer, unless a path of that name exists
_PICKLE_MAGIC: Final = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_EXPECTED: Final = (
    f"{TOKENIZER_JSON}, {' or '.join(' with '.join(names) for names in FILE_PAIRS)}, {VOCAB_TXT}, "
    f"{SPIECE}, nanoGPT's "
    f'{META}, a folder that has one of them, a GGUF file, or "gpt2" for GPT-2\'s own'
)


def tokenizer_for(
    checkpoint: Checkpoint, given: object = None
) -> Tokenizer | MissingTokenizer | None:
    """Return the given tokenizer, or else the checkpoint's. A result of None means GPT-2's own.

    Raises the errors of named_tokenizer, and TokenizerError if the given tokenizer does not fit the
    model.
    """
    if given is None:
        return tokenizer_of(checkpoint)
    tokenizer = named_tokenizer(given)
    if isinstance(tokenizer, Tokenizer):
        check_size(tokenizer, checkpoint.config.vocab_size)
    return tokenizer


def named_tokenizer(given: object) -> Tokenizer | MissingTokenizer:
    """Load the tokenizer at a path, or GPT-2's own for "gpt2"; return a Tokenizer unchanged.

    Raises OptionTypeError for anything else; CheckpointNotFoundError if the path does not exist, or
    is a folder without a tokenizer; TokenizerError, naming the file, if the file cannot be read;
    and MissingDependencyError if reading the file needs a package that is not installed.
    """
    if isinstance(given, Tokenizer | MissingTokenizer):
        return given
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        hint = ""
        if hasattr(given, "save_pretrained"):
            hint = "; save transformers' tokenizer with its save_pretrained and give that folder"
        raise OptionTypeError(
            f"tokenizer is a {type(given).__name__}; it must be a path, {GPT2_NAME!r} or a "
            f"gpt2c.Tokenizer{hint}"
        )
    path = Path(given)
    if os.path.isdir(path):
        return _load_folder(path)
    if not os.path.lexists(path):
        if given == GPT2_NAME:
            return Tokenizer.gpt2()
        raise CheckpointNotFoundError(
            f"tokenizer: {path}: there is no such file or folder; expected {_EXPECTED}"
        )
    return _load_file(path)


def _load_folder(folder: Path) -> Tokenizer:
    problems: list[TokenizerError | CheckpointNotFoundError | MissingDependencyError] = []
    for _, read in candidates_in(folder):
        try:
            return read()
        except (TokenizerError, CheckpointNotFoundError, MissingDependencyError) as reason:
            problems.append(reason)
    if problems:
        raise problems[0]
    foreign = foreign_tokenizer(folder)
    also = "" if foreign is None else f"; {foreign}"
    raise CheckpointNotFoundError(
        f"tokenizer: {folder}: found no tokenizer, expected {_EXPECTED}{also}"
    )


def _load_file(path: Path) -> Tokenizer:
    """Load a tokenizer file: either file of a pair of vocabulary and merges, or a single file.

    The content decides the kind, with two exceptions: a pair is recognised by its files' names, and
    a pickle by its suffix too.
    """
    with open_regular(path, TokenizerError) as file:
        try:
            head = file.read(64) or b""
        except OSError as reason:
            raise TokenizerError(f"{path}: cannot be read: {reason.strerror}") from reason
    if head.startswith(signatures.GGUF):
        return _load_gguf(path)
    is_safetensors = head[8:9] == signatures.SAFETENSORS_NINTH
    is_pickle = head.startswith(_PICKLE_MAGIC) and not is_safetensors
    if is_pickle or path.suffix in (".pkl", ".pickle"):
        return read_meta(path)
    for names in _pairs_for(path.name):
        vocab, merges = (path.parent / name for name in names)
        if path.name in names and os.path.lexists(vocab) and os.path.lexists(merges):
            return load_files(vocab, merges)
    if head.lstrip().startswith(b"{"):
        return load_json(path)
    if path.suffix == ".model":
        return read_sentence_piece(path)
    if path.name.endswith(VOCAB_TXT):
        return read_vocab_txt(path)
    raise TokenizerError(f"{path}: found {show(head[:16])} at the beginning, expected {_EXPECTED}")


def _pairs_for(name: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of vocabulary and merges file names that `name` may belong to.

    The tokenizers package can save both files with a prefix: my-vocab.json, my-merges.txt.
    """
    for suffix in FILE_PAIRS[0]:
        if name.endswith("-" + suffix):
            prefix = name.removesuffix(suffix)
            return ((prefix + FILE_PAIRS[0][0], prefix + FILE_PAIRS[0][1]),)
    return FILE_PAIRS


def _load_gguf(path: Path) -> Tokenizer:
    from gpt2c.weights.checkpoint.gguf import read_vocabulary  # lazily: rarely needed

    vocabulary = read_vocabulary(path)
    if isinstance(vocabulary, str):
        raise TokenizerError(vocabulary)
    return load_stored_vocabulary(vocabulary)
