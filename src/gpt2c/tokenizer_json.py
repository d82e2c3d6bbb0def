"""Vocabularies of other kinds than GPT-2's: ``tokenizer.json``, by the package tokenizers."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpt2c.errors import MissingDependencyError, TokenizerError
from gpt2c.options import flag
from gpt2c.tokenizer import (
    BYTE_ALPHABET,
    END_OF_TEXT,
    MAX_FILE_BYTES,
    MAX_GAP,
    Tokenizer,
    check_text,
)
from gpt2c.untrusted import read_json_object, show

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>", re.ASCII)  # of vocabularies that fall back to bytes


class JsonTokenizer(Tokenizer):
    """A vocabulary of ``tokenizer.json``: `encode` text to ids, `decode` ids to text.

    What a token stands for does not depend on its neighbours here, so that texts can be streamed:
    where the library would drop a space before the first word, decoding keeps it.
    """

    def __init__(self, path: Path, eos_token: str | None = None) -> None:
        """Raises TokenizerError, naming the file, CheckpointNotFoundError, or

        MissingDependencyError where the package is not installed.
        """
        try:
            import tokenizers
        except ImportError:
            raise MissingDependencyError(
                f"{path}: to read it the package tokenizers is needed: pip install tokenizers (the "
                "extra gpt2c[tokenizers])"
            ) from None
        # Parsed here too: strictly, bounded, and for what the library does not tell.
        values = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError)
        try:
            self._library, self._literal = (_load(tokenizers, path) for _ in range(2))
            self._literal.encode_special_tokens = True
            vocab: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        except BaseException as reason:  # a panic of its Rust code is no Exception
            if isinstance(reason, KeyboardInterrupt | SystemExit):
                raise
            raise TokenizerError(f"{path}: the package tokenizers refuses it: {reason}") from None
        n_vocab = 1 + max(vocab.values(), default=-1)
        if not vocab or n_vocab > len(vocab) + MAX_GAP:
            raise TokenizerError(f"{path}: found {len(vocab)} tokens with ids to {n_vocab - 1}")
        added = _added(values, path)
        self.special_tokens: Mapping[str, int] = MappingProxyType(added)
        self.eot_id: int | None = added.get(eos_token or END_OF_TEXT, added.get(END_OF_TEXT))
        self.n_vocab = n_vocab
        self._bytes = [b""] * n_vocab
        is_byte_level = _mentions(values.get("decoder"), "ByteLevel")
        for token, id in vocab.items():
            self._bytes[id] = self._bytes_of(token, id, token in added, is_byte_level)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of `text`; no id is added at either end.

        Special tokens in the text become their ids, unless `special` is False; tokens that were
        added and are not marked as special do always.

        Raises TokenizerError for a text with a lone surrogate, OptionTypeError for anything but a
        str.
        """
        check_text(text)
        library = self._library if flag("special", special) else self._literal
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    def _bytes_of(self, token: str, id: int, is_added: bool, is_byte_level: bool) -> bytes:
        if is_added:
            return token.encode("utf-8", "replace")
        if is_byte_level and all(char in BYTE_ALPHABET for char in token):
            return bytes(map(BYTE_ALPHABET.__getitem__, token))
        if match := _BYTE.fullmatch(token):
            return bytes([int(match[1], 16)])
        decoder = self._library.decoder
        if decoder is None:
            return token.encode("utf-8", "replace")
        # Between two others, for the library trims what stands at either end.
        alone, between = decoder.decode(["a", "a"]), decoder.decode(["a", token, "a"])
        half = alone.partition("a")[2]  # what joins a word to the next
        if between.startswith("a") and between.endswith(half):
            return str(between[1 : len(between) - len(half)]).encode("utf-8", "replace")
        return str(decoder.decode([token])).encode("utf-8", "replace")


def _load(tokenizers: Any, path: Path) -> Any:
    engine = tokenizers.Tokenizer.from_file(str(path))
    engine.no_truncation()
    engine.no_padding()
    return engine


def _added(values: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The added tokens; the library has checked their form."""
    result = {}
    for token in values.get("added_tokens") or []:
        try:
            result[str(token["content"])] = operator.index(token["id"])
        except (TypeError, KeyError):
            raise TokenizerError(f"{path}: found the added token {show(token)}") from None
    return result


def _mentions(decoder: object, kind: str) -> bool:
    if not isinstance(decoder, dict):
        return False
    inner = decoder.get("decoders")
    parts: Iterable[object] = inner if isinstance(inner, list) else ()
    return decoder.get("type") == kind or any(_mentions(part, kind) for part in parts)
