"""Reads SentencePiece's models of the kind unigram, such as ``spiece.model`` of rinna's GPT-2.

SentencePiece's file is a protocol buffer, a ModelProto. This module reads the few fields that
encoding needs; the tokenizers package encodes texts. The ids are those of the package
sentencepiece, as of transformers' T5Tokenizer before transformers 5.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import open_regular, read_whole
from gpt2c.errors import CheckpointNotFoundError, TokenizerError
from gpt2c.text.added_tokens import TokenizerConfig, read_tokenizer_config
from gpt2c.text.special_tokens import MAX_FILE_BYTES, read_optional
from gpt2c.text.tokenizer_json import JsonTokenizer, added_token_json, content_of

SPIECE: Final = "spiece.model"
SPACE: Final = "\u2581"  # what SentencePiece writes for a space
_KINDS: Final = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_MAX_PIECES: Final = 1_000_000
# Types of pieces.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_NAMED: Final = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")


@dataclass(frozen=True)
class _Model:
    """The fields of a ModelProto that encoding needs."""

    pieces: list[tuple[str, float, int]]  # piece, score, type
    kind: int
    byte_fallback: bool
    charsmap: bytes
    adds_prefix: bool
    trims_spaces: bool
    escapes_spaces: bool


def is_sentence_piece(path: Path) -> bool:
    """Return whether a file begins like a SentencePiece model, with a piece."""
    try:
        with open_regular(path, TokenizerError) as file:
            return file.read(1) == b"\n"
    except (TokenizerError, CheckpointNotFoundError, OSError):
        return False


def read_sentence_piece(path: Path) -> JsonTokenizer:
    """Read a SentencePiece model, and the ``tokenizer_config.json`` beside it.

    Its tokens bos, eos, unk, pad, cls, sep and mask are special. A text ends with the EOS token if
    the configuration's tokenizer_class is T5Tokenizer, as in transformers.

    Raises TokenizerError, naming the file, if it is not such a model; CheckpointNotFoundError;
    MissingDependencyError without the package tokenizers.
    """
    raw = read_whole(path, limit=MAX_FILE_BYTES, error=TokenizerError)
    try:
        model = _parsed(bytes(raw))
    except (IndexError, ValueError, struct.error) as reason:  # _parsed's, for malformed files
        raise TokenizerError(
            f"{path}: is not a SentencePiece model: {reason or 'it is cut short'}"
        ) from None
    if model.kind != 1:
        raise TokenizerError(
            f"{path}: is a SentencePiece model of the kind {_KINDS.get(model.kind, model.kind)}, "
            "expected unigram: save the tokenizer as tokenizer.json with transformers"
        )
    unknown = [id for id, (_, _, kind) in enumerate(model.pieces) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise TokenizerError(f"{path}: found {len(unknown)} pieces for unknown text, expected 1")
    if len({piece for piece, *_ in model.pieces}) < len(model.pieces):
        raise TokenizerError(f"{path}: has a piece twice")
    values = read_optional(path.parent / "tokenizer_config.json")
    config = read_tokenizer_config(path.parent, beside_tokenizer_json=True)
    return JsonTokenizer(path, config, _tokenizer_json(model, unknown[0], values, config))


def _tokenizer_json(
    model: _Model, unknown: int, values: dict[str, Any], config: TokenizerConfig
) -> dict[str, Any]:
    ids = {piece: id for id, (piece, *_) in enumerate(model.pieces)}
    named = {content_of(values.get(f"{name}_token")) for name in _NAMED}
    special = {
        piece for piece, _, kind in model.pieces if kind in (_UNKNOWN, _CONTROL) or piece in named
    }
    added = [added_token_json(piece, ids[piece]) for piece in sorted(special, key=ids.__getitem__)]
    added += [
        added_token_json(token.content, token.id, special=token.special)
        for token in config.added
        if token.content not in special
    ]
    eos = config.eos_token or "</s>"
    is_t5 = values.get("tokenizer_class") in ("T5Tokenizer", "T5TokenizerFast")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pre_tokenizers(model, special)},
        "post_processor": _ending(eos, ids[eos]) if is_t5 and eos in ids else None,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "byte_fallback": model.byte_fallback,
            "vocab": [[piece, score] for piece, score, _ in model.pieces],
        },
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(model: _Model) -> list[dict[str, Any]]:
    """Return SentencePiece's steps, in its order."""
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.trims_spaces:  # spaces only; other white space stays
        steps.append(_replace({"Regex": r"\A +| +\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if model.escapes_spaces:
        steps.append(_replace({"String": " "}, SPACE))
    if model.adds_prefix:
        # Metaspace adds no prefix before a text that begins with one; SentencePiece does.
        steps.append(_replace({"Regex": rf"\A{SPACE}"}, SPACE * 2))
    return steps


def _pre_tokenizers(model: _Model, special: set[str]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.adds_prefix:
        steps.append(
            {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
        )
    whole = [p for p, _, kind in model.pieces if kind == _USER_DEFINED and p not in special]
    if whole:  # SentencePiece never splits or joins these
        pattern = "|".join(re.escape(piece) for piece in sorted(whole, key=len, reverse=True))
        steps.append(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False}
        )  # fmt: skip
    return steps


def _decoders(model: _Model) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE}, " ")]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.adds_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _ending(token: str, id: int) -> dict[str, Any]:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    end = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


# ---- protocol buffers ----


def _parsed(raw: bytes) -> _Model:
    """Parse a ModelProto; raise ValueError, IndexError or struct.error if it is malformed."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            part: dict[int, Any] = dict(_fields(value))
            piece, raw_score = part.get(1), part.get(2)
            score = struct.unpack("<f", raw_score)[0] if isinstance(raw_score, bytes) else 0.0
            if not math.isfinite(score) or not isinstance(piece, bytes):
                raise ValueError("a piece has no text or no finite score")
            pieces.append((piece.decode("utf-8"), score, int(part.get(3, _NORMAL))))
            if len(pieces) > _MAX_PIECES:
                raise ValueError(f"it has more than {_MAX_PIECES} pieces")
        elif number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(2, b"")
    return _Model(
        pieces,
        kind=int(trainer.get(3, 1)),
        byte_fallback=trainer.get(35, 0) == 1,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        adds_prefix=normalizer.get(3, 1) == 1,
        trims_spaces=normalizer.get(4, 1) == 1,
        escapes_spaces=normalizer.get(5, 1) == 1,
    )


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field; 4 and 8 bytes of fixed length are bytes."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(raw, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            length, at = _varint(raw, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the unknown type {kind}")
        if at + length > len(raw):
            raise ValueError("it is cut short")
        yield tag >> 3, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")
