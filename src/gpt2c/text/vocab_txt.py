"""Reads a ``vocab.txt``: the WordPiece vocabulary of BERT, which some GPT-2 models use.

A model of this kind is uer/gpt2-chinese-cluecorpussmall. The tokenizers package encodes texts, with
the same settings that transformers' BertTokenizer gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import read_whole, show
from gpt2c.errors import CheckpointNotFoundError, TokenizerError
from gpt2c.text.added_tokens import TokenizerConfig, read_tokenizer_config
from gpt2c.text.special_tokens import MAX_FILE_BYTES, read_optional
from gpt2c.text.tokenizer_json import JsonTokenizer, added_token_json, content_of

VOCAB_TXT: Final = "vocab.txt"
_SPECIAL: Final = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_MAX_WORD: Final = 100  # characters; a longer word is unknown


def is_vocab_txt(path: Path) -> bool:
    """Return whether a file seems to be a WordPiece vocabulary: it has the usual unknown token."""
    try:
        return b"[UNK]" in read_whole(path, limit=MAX_FILE_BYTES, error=TokenizerError)
    except (TokenizerError, CheckpointNotFoundError):
        return False


def read_vocab_txt(path: Path) -> JsonTokenizer:
    """Read a ``vocab.txt``, one token per line, and the ``tokenizer_config.json`` beside it.

    The configuration's fields do_lower_case, tokenize_chinese_chars, strip_accents, unk_token,
    cls_token, sep_token, pad_token and mask_token have transformers' meanings and defaults.

    Raises TokenizerError, naming the file, if it is no WordPiece vocabulary;
    CheckpointNotFoundError; MissingDependencyError without the package tokenizers.
    """
    raw = read_whole(path, limit=MAX_FILE_BYTES, error=TokenizerError)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 at byte {error.start}") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    vocab = {token: id for id, token in enumerate(lines[:-1] if not lines[-1] else lines)}
    values = read_optional(path.parent / "tokenizer_config.json")
    special = {
        name: content_of(values.get(f"{name}_token")) or default
        for name, default in _SPECIAL.items()
    }
    if special["unk"] not in vocab:
        raise TokenizerError(
            f"{path}: has no token {show(special['unk'])}, expected a WordPiece vocabulary, as of "
            "transformers' BertTokenizer"
        )
    config = read_tokenizer_config(path.parent, beside_tokenizer_json=True)
    return JsonTokenizer(path, config, _tokenizer_json(vocab, special, values, config))


def _tokenizer_json(
    vocab: Mapping[str, int],
    special: Mapping[str, str],
    values: Mapping[str, Any],
    config: TokenizerConfig,
) -> dict[str, Any]:
    """Return the contents of the ``tokenizer.json`` that transformers would make."""
    # Tokens that the vocabulary lacks get the next ids, in this order.
    ids = dict(vocab)
    for token in special.values():
        ids.setdefault(token, max(ids.values()) + 1)
    added = {token: added_token_json(token, ids[token]) for token in special.values()}
    for extra in config.added:
        added.setdefault(
            extra.content, added_token_json(extra.content, extra.id, special=extra.special)
        )

    def piece(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    cls, sep = special["cls"], special["sep"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added.values(), key=lambda token: int(token["id"])),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": values.get("tokenize_chinese_chars", True) is not False,
            "strip_accents": _optional_bool(values.get("strip_accents")),
            "lowercase": values.get("do_lower_case", True) is not False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece(cls), {"Sequence": {"id": "A", "type_id": 0}}, piece(sep)],
            "pair": [
                piece(cls),
                {"Sequence": {"id": "A", "type_id": 0}},
                piece(sep),
                {"Sequence": {"id": "B", "type_id": 1}},
                piece(sep),
            ],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (cls, sep)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": special["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": _MAX_WORD,
            "vocab": dict(vocab),
        },
    }


def _optional_bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
