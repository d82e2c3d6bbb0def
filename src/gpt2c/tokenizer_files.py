"""Which tokenizer belongs to a checkpoint, and its files where a model is saved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final

from gpt2c.added_tokens import TokenizerConfig, read_tokenizer_config
from gpt2c.checkpoint import BytePairs, Checkpoint
from gpt2c.checkpoint.save import copy_beside
from gpt2c.config import GPT2_VOCABULARY, PADDED_VOCABULARY
from gpt2c.errors import MissingDependencyError, TokenizerError
from gpt2c.tokenizer import MissingTokenizer, Tokenizer, gpt2_files

JSON: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"
# Hugging Face's names, and OpenAI's.
_PAIRS: Final = ((VOCABULARY, MERGES), ("encoder.json", "vocab.bpe"))
_BESIDE: Final = (JSON, "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | MissingTokenizer | None:
    """The tokenizer of a checkpoint's file, or beside it; None for GPT-2's own, where it fits.

    Raises TokenizerError where it is malformed or does not fit the model.
    """
    folder, n_vocab = checkpoint.folder, checkpoint.config.vocab_size
    if isinstance(checkpoint.vocabulary, BytePairs):
        pairs = checkpoint.vocabulary
        config = TokenizerConfig(added=pairs.added)
        return Tokenizer.from_vocabulary(pairs.vocab, pairs.merges, (pairs.source,) * 2, config)
    if isinstance(checkpoint.vocabulary, str):
        return MissingTokenizer(checkpoint.vocabulary, n_vocab=n_vocab)
    if folder is not None:
        for names in _PAIRS:
            # A link that leads nowhere is a broken tokenizer, not a missing one.
            if all(os.path.lexists(folder / name) for name in names):
                tokenizer = Tokenizer.from_files(folder / names[0], folder / names[1])
                return _fitting(tokenizer, folder / names[0], n_vocab)
        if os.path.lexists(folder / JSON):
            from gpt2c.tokenizer_json import JsonTokenizer

            try:
                eos = read_tokenizer_config(folder).eos_token
                return _fitting(JsonTokenizer(folder / JSON, eos), folder / JSON, n_vocab)
            except MissingDependencyError as reason:
                return MissingTokenizer(str(reason), n_vocab=n_vocab)
    if _has_gpt2s_size(checkpoint):
        return None
    return MissingTokenizer(
        f"{folder}: there is no {VOCABULARY} with {MERGES}, no {JSON}, and a vocabulary of "
        f"{n_vocab} tokens is not GPT-2's own",
        n_vocab=n_vocab,
    )


def save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the files of the checkpoint's tokenizer, under Hugging Face's names.

    Raises CheckpointError where one of them is a link out of its folder.
    """
    if isinstance(checkpoint.vocabulary, BytePairs):
        pairs = checkpoint.vocabulary
        text = json.dumps(dict(pairs.vocab), ensure_ascii=False)
        (folder / VOCABULARY).write_text(text, encoding="utf-8")
        merges = "".join(f"{left} {right}\n" for left, right in pairs.merges)
        (folder / MERGES).write_text("#version: 0.2\n" + merges, encoding="utf-8")
        decoder = {str(token.id): {"content": token.content} for token in pairs.added}
        text = json.dumps({"added_tokens_decoder": decoder}, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    elif checkpoint.folder is not None and checkpoint.vocabulary is None:
        for names in _PAIRS:
            if all((checkpoint.folder / name).is_file() for name in names):
                for name, new in zip(names, (VOCABULARY, MERGES), strict=True):
                    copy_beside(checkpoint.folder / name, folder / new)
                break
        else:
            if _has_gpt2s_size(checkpoint) and not os.path.lexists(checkpoint.folder / JSON):
                _save_gpt2s_own(folder)
        for name in _BESIDE:
            copy_beside(checkpoint.folder / name, folder / name)


def _has_gpt2s_size(checkpoint: Checkpoint) -> bool:
    """Whether GPT-2's own tokenizer is taken where a checkpoint has no files of one."""
    return checkpoint.config.vocab_size in (GPT2_VOCABULARY, PADDED_VOCABULARY)


def _save_gpt2s_own(folder: Path) -> None:
    vocab, merges = gpt2_files()
    text = json.dumps(vocab, ensure_ascii=False)
    (folder / VOCABULARY).write_text(text, encoding="utf-8")
    shutil.copyfile(merges, folder / MERGES)


def _fitting(tokenizer: Tokenizer, path: Path, n_vocab: int) -> Tokenizer:
    """Raises TokenizerError where a text's ids may be ids that the model does not have.

    Tokens that were added without enlarging the model, as padding often is, are let pass: they are
    refused where a text has them.
    """
    added = set(tokenizer.special_tokens.values())
    largest = next((id for id in reversed(range(tokenizer.n_vocab)) if id not in added), -1)
    if largest >= n_vocab:
        raise TokenizerError(
            f"{path}: found a token of id {largest}, and the model's vocabulary is of {n_vocab} "
            "tokens: are the two of the same model?"
        )
    return tokenizer
