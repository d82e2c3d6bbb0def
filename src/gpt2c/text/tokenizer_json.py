"""``tokenizer.json``: GPT-2's kind is read without a package, others by the package tokenizers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gpt2c.checks.options import flag
from gpt2c.checks.untrusted import read_json_object, show
from gpt2c.config import MAX_SIZE
from gpt2c.errors import MissingDependencyError, TokenizerError
from gpt2c.text.added_tokens import PLAIN, TokenizerConfig
from gpt2c.text.bpe import BYTE_ALPHABET
from gpt2c.text.byte_level_json import byte_level_tokenizer
from gpt2c.text.characters import character_tokenizer
from gpt2c.text.special_tokens import template
from gpt2c.text.tokenizer import MAX_FILE_BYTES, MAX_GAP, Tokenizer, check_text

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>", re.ASCII)  # of vocabularies that fall back to bytes

# The library multiplies what a file says: a text that replaces another could make petabytes, and
# ends the process where it cannot have them. So texts in a file are held to what is usual.
_LONGEST_TOKEN: Final = 1000  # characters
_LONGEST_PATTERN: Final = 1000
_LONGEST_REPLACEMENT: Final = 16
_LONGEST_CHARSMAP: Final = 4 << 20  # of SentencePiece's normaliser, in base64
_PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_LIMITS: Final = {
    "content": _LONGEST_REPLACEMENT,
    "prepend": _LONGEST_REPLACEMENT,
    "replacement": _LONGEST_REPLACEMENT,
    "precompiled_charsmap": _LONGEST_CHARSMAP,
}


def read_tokenizer_json(path: Path, config: TokenizerConfig = PLAIN) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json`` of any kind.

    Raises TokenizerError, naming the file; CheckpointNotFoundError; or MissingDependencyError if it
    needs the package and that is not installed. GPT-2's kind and our files for character-level
    nanoGPTs do not need it.
    """
    values = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError)
    own = byte_level_tokenizer(values, path, config) or character_tokenizer(values, path)
    return JsonTokenizer(path, config) if own is None else own


class JsonTokenizer(Tokenizer):
    """A vocabulary of ``tokenizer.json``: `encode` text to ids, `decode` ids to text.

    What a token stands for does not depend on its neighbours here, so that texts can be streamed:
    where the library would drop a space before the first word, decoding keeps it.
    """

    def __init__(self, path: Path, config: TokenizerConfig = PLAIN) -> None:
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
        values = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError, strict=True)
        self._path, self.source = path, str(path)
        for part in _PARTS:
            _check_part(values.get(part), part, path)
        # A second one, for texts whose special tokens are mere characters.
        self._library, self._literal = (self._loaded(tokenizers) for _ in range(2))
        self._literal.encode_special_tokens = True
        vocab: dict[str, int] = self._ask(self._library.get_vocab, with_added_tokens=True)
        self.n_vocab = 1 + max(vocab.values(), default=-1)
        if not vocab or self.n_vocab > min(len(vocab) + MAX_GAP, MAX_SIZE):
            raise TokenizerError(
                f"{path}: found {len(vocab)} tokens, with ids to {self.n_vocab - 1}"
            )
        if (longest := max(vocab, key=len)) and len(longest) > _LONGEST_TOKEN:
            raise TokenizerError(
                f"{path}: found a token of {len(longest)} characters, expected at most "
                f"{_LONGEST_TOKEN}"
            )
        # By the library's ids, whatever the file says of them.
        added = {token: vocab[token] for token in _added(values, path) if token in vocab}
        self.special_tokens: Mapping[str, int] = MappingProxyType(added)
        self._name_special_tokens(
            replace(config, around=template(values.get("post_processor"))), vocab.get
        )
        specials = _added(values, path, only_special=True)
        self._skipped = frozenset(added[token] for token in specials if token in added)
        self._tokens = {id: token for token, id in vocab.items()}
        self._is_byte_level = _mentions(values.get("decoder"), "ByteLevel")
        self._known: dict[int, bytes] = {}

    def encode(
        self, text: str, *, special: bool = True, add_special_tokens: bool = True
    ) -> list[int]:
        """The ids of `text`, with what the file's template puts around it.

        Without `add_special_tokens` nothing is put around it. Special tokens in the text become
        their ids, unless `special` is False; other added tokens always do.

        Raises TokenizerError for a text with a lone surrogate, and where the file's rules cannot
        be applied to it; OptionTypeError for anything but a str.
        """
        check_text(text)
        library = self._library if flag("special", special) else self._literal
        ids: list[int] = self._ask(library.encode, text, add_special_tokens=False).ids
        if not flag("add_special_tokens", add_special_tokens):
            return ids
        return [*self.prefix_ids, *ids, *self.suffix_ids]

    def _loaded(self, tokenizers: Any) -> Any:
        library = self._ask(tokenizers.Tokenizer.from_file, str(self._path))
        library.no_truncation()
        library.no_padding()
        return library

    def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except BaseException as reason:  # a panic of its Rust code is no Exception
            if isinstance(reason, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            text = show(str(reason))
            raise TokenizerError(f"{self._path}: the package tokenizers says: {text}") from None

    def _bytes_of(self, id: int) -> bytes:
        """Asked for when an id is first met: the library takes seconds for all of a vocabulary."""
        found = self._known.get(id)
        if found is None:
            found = self._known[id] = self._ask_bytes(id)
        return found

    def _ask_bytes(self, id: int) -> bytes:
        token = self._tokens.get(id, "")
        if token in self.special_tokens or not token:
            return token.encode("utf-8", "replace")
        if self._is_byte_level and all(char in BYTE_ALPHABET for char in token):
            return bytes(map(BYTE_ALPHABET.__getitem__, token))
        if match := _BYTE.fullmatch(token):
            return bytes([int(match[1], 16)])
        decoder = self._library.decoder
        if decoder is None:
            return token.encode("utf-8", "replace")
        # Between two others, for the library trims what stands at either end.
        alone = self._ask(decoder.decode, ["a", "a"])
        between = self._ask(decoder.decode, ["a", token, "a"])
        half = alone.partition("a")[2]  # what joins a word to the next
        if between.startswith("a") and between.endswith(half):
            return str(between[1 : len(between) - len(half)]).encode("utf-8", "replace")
        return str(self._ask(decoder.decode, [token])).encode("utf-8", "replace")


def _check_part(part: object, name: str, path: Path) -> None:
    """Raises TokenizerError where a text in a part of the file is longer than any should be."""
    if isinstance(part, dict):
        for key, value in part.items():
            _check_part(value, key, path)
    elif isinstance(part, list):
        for item in part:
            _check_part(item, name, path)
    elif isinstance(part, str) and len(part) > (limit := _LIMITS.get(name, _LONGEST_PATTERN)):
        raise TokenizerError(
            f"{path}: {show(name)} is a text of {len(part)} characters, expected at most {limit}"
        )


def _added(values: Mapping[str, Any], path: Path, only_special: bool = False) -> list[str]:
    """What the added tokens are written as; the library has checked their form."""
    try:
        return [
            str(token["content"])
            for token in values.get("added_tokens") or []
            if token["special"] or not only_special
        ]
    except (TypeError, KeyError):
        raise TokenizerError(f"{path}: found the added tokens {show(values)}") from None


def _mentions(decoder: object, kind: str) -> bool:
    if not isinstance(decoder, dict):
        return False
    inner = decoder.get("decoders")
    parts: Iterable[object] = inner if isinstance(inner, list) else ()
    return decoder.get("type") == kind or any(_mentions(part, kind) for part in parts)
