"""Reads ``tokenizer.json`` files of any kind.

Byte-level BPE and the character vocabularies that gpt2c writes do not need the tokenizers package;
all other files do.
"""

from __future__ import annotations

import json
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
from gpt2c.text.added_tokens import DEFAULT_CONFIG, TokenizerConfig
from gpt2c.text.bpe import bytes_of_token, is_in_byte_alphabet
from gpt2c.text.byte_level_json import byte_level_tokenizer
from gpt2c.text.characters import character_tokenizer
from gpt2c.text.special_tokens import MAX_FILE_BYTES, read_template
from gpt2c.text.tokenizer import MAX_UNUSED_IDS, Tokenizer, check_text

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>", re.ASCII)  # a token of byte_fallback

# Max lengths of strings, in characters. Files are untrusted: a rule that replaces each character by
# a long string could need petabytes, and the package aborts the process if memory runs out.
_MAX_TOKEN: Final = 1000
_MAX_STRING: Final = 1000
_MAX_REPLACEMENT: Final = 16
_MAX_CHARSMAP: Final = 4 << 20  # of SentencePiece's normaliser, in base64
_PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_LIMITS: Final = {
    "content": _MAX_REPLACEMENT,
    "prepend": _MAX_REPLACEMENT,
    "replacement": _MAX_REPLACEMENT,
    "precompiled_charsmap": _MAX_CHARSMAP,
}


def read_tokenizer_json(path: Path, config: TokenizerConfig = DEFAULT_CONFIG) -> Tokenizer:
    """Read a ``tokenizer.json`` of any kind.

    The BOS and EOS tokens come from `config`, which was read from the same folder.

    Raises TokenizerError, naming the file, if the file is invalid; CheckpointNotFoundError if there
    is no such file; MissingDependencyError if the file needs the tokenizers package and that is not
    installed.
    """
    values = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError)
    tokenizer = byte_level_tokenizer(values, path, config) or character_tokenizer(values, path)
    return JsonTokenizer(path, config) if tokenizer is None else tokenizer


class JsonTokenizer(Tokenizer):
    """A tokenizer that encodes and decodes with the tokenizers package.

    A token decodes to the same bytes in every text, so that texts can be streamed. Decoding differs
    from the package's in one way: JsonTokenizer keeps a space before the first word, which the
    package may drop.
    """

    def __init__(
        self,
        path: Path,
        config: TokenizerConfig = DEFAULT_CONFIG,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Read `path`; `values`, if given, are the contents of a tokenizer.json that replace it.

        Raises TokenizerError, naming the file, if the file is invalid; CheckpointNotFoundError if
        there is no such file; MissingDependencyError if the package is not installed.
        """
        try:
            import tokenizers
        except ImportError:
            raise MissingDependencyError(
                f"{path}: reading it needs the tokenizers package: pip install tokenizers (the "
                "extra gpt2c[tokenizers])"
            ) from None
        # Parse the file here too, to check it strictly and to read what the package does not
        # expose.
        self._json = None if values is None else json.dumps(values)
        if values is None:
            values = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError, strict=True)
        else:
            self.write_files = self._write_files
        self._path, self.source = path, str(path)
        for part in _PARTS:
            _check_lengths(values.get(part), part, path)
        # The second of these encodes special tokens as plain characters.
        self._package_tokenizer = self._load(tokenizers)
        self._plain_package_tokenizer = self._load(tokenizers)
        self._plain_package_tokenizer.encode_special_tokens = True
        vocab: dict[str, int] = self._call(
            self._package_tokenizer.get_vocab, with_added_tokens=True
        )
        self.n_vocab = 1 + max(vocab.values(), default=-1)
        if not vocab or self.n_vocab > min(len(vocab) + MAX_UNUSED_IDS, MAX_SIZE):
            raise TokenizerError(
                f"{path}: found {len(vocab)} tokens with ids up to {self.n_vocab - 1}, expected at "
                f"least one token, and ids without wide gaps"
            )
        if (longest := max(map(len, vocab))) > _MAX_TOKEN:
            raise TokenizerError(
                f"{path}: found a token of {longest} characters, expected at most {_MAX_TOKEN}"
            )
        # The package ignores the ids in the file and assigns its own.
        contents = _added_contents(values, path)
        added = {token: vocab[token] for token in contents if token in vocab}
        self.special_tokens: Mapping[str, int] = MappingProxyType(added)
        self._set_bos_eos_and_template(
            replace(config, template=read_template(values.get("post_processor"))), vocab.get
        )
        specials = _added_contents(values, path, only_special=True)
        self.special_ids = frozenset(added[token] for token in specials if token in added)
        self._tokens = {id: token for token, id in vocab.items()}
        self.is_byte_level = _has_decoder(values.get("decoder"), "ByteLevel")
        # WordPiece's decoder puts a space before special tokens too.
        self._spaces_special_tokens = _has_decoder(values.get("decoder"), "WordPiece")
        self._bytes_by_id: dict[int, bytes] = {}  # filled lazily

    def encode(
        self, text: str, *, special: bool = True, add_special_tokens: bool = True
    ) -> list[int]:
        """Return the ids of `text`, with the tokens that the file's template puts around it.

        `add_special_tokens=False` leaves the template's tokens out. Special tokens in the text
        become one id each; with `special=False` they are encoded as plain characters. Other added
        tokens always become one id.

        Raises TokenizerError if the text has a lone surrogate or the file's rules cannot be applied
        to the text; OptionTypeError if `text` is not a str.
        """
        check_text(text)
        matches_special = flag("special", special)
        tokenizer = self._package_tokenizer if matches_special else self._plain_package_tokenizer
        ids: list[int] = self._call(tokenizer.encode, text, add_special_tokens=False).ids
        if not flag("add_special_tokens", add_special_tokens):
            return ids
        return [*self.prefix_ids, *ids, *self.suffix_ids]

    def _load(self, tokenizers: Any) -> Any:
        if self._json is None:
            tokenizer = self._call(tokenizers.Tokenizer.from_file, str(self._path))
        else:
            tokenizer = self._call(tokenizers.Tokenizer.from_str, self._json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _write_files(self, folder: Path) -> None:
        """Write a tokenizer.json, and a tokenizer_config.json that names its special tokens."""
        (folder / "tokenizer.json").write_text(str(self._json), encoding="utf-8", newline="\n")
        config: dict[str, str] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for key, id in (("bos_token", self.bos_id), ("eos_token", self.eot_id)):
            if id is not None:
                config[key] = self._tokens[id]
        text = json.dumps(config, ensure_ascii=False, indent=1)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8", newline="\n")

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of the package; raise TokenizerError if it fails."""
        try:
            return function(*arguments, **options)
        except BaseException as reason:  # a panic in Rust code is not an Exception
            if isinstance(reason, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            message = show(str(reason))
            raise TokenizerError(f"{self._path}: the tokenizers package says: {message}") from None

    def _bytes_of(self, id: int) -> bytes:
        """Return the bytes of a token, which is decoded at its first use.

        The package would need seconds to decode a whole vocabulary at once.
        """
        found = self._bytes_by_id.get(id)
        if found is None:
            found = self._bytes_by_id[id] = self._decode_token(id)
        return found

    def _decode_token(self, id: int) -> bytes:
        token = self._tokens.get(id, "")
        if not token or (token in self.special_tokens and not self._spaces_special_tokens):
            return token.encode("utf-8", "replace")
        if self.is_byte_level and is_in_byte_alphabet(token):
            return bytes_of_token(token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        decoder = self._package_tokenizer.decoder
        if decoder is None:
            return token.encode("utf-8", "replace")
        # Decode the token between two others, because the decoder may trim the ends of a text.
        without_token = self._call(decoder.decode, ["a", "a"])
        with_token = self._call(decoder.decode, ["a", token, "a"])
        end = without_token.partition("a")[2]  # the last "a", and the space before it if any
        if with_token.startswith("a") and with_token.endswith(end):
            return str(with_token[1 : len(with_token) - len(end)]).encode("utf-8", "replace")
        return str(self._call(decoder.decode, [token])).encode("utf-8", "replace")


def added_token_json(content: str, id: int, *, special: bool = True) -> dict[str, Any]:
    """Return an added token as a tokenizer.json has it; it matches before normalisation."""
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def content_of(token: object) -> str | None:
    """Return the string of a token in a tokenizer_config.json, given as a string or an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _check_lengths(part: object, name: str, path: Path) -> None:
    """Raise TokenizerError if a string in a part of the file is too long; `name` is its key."""
    if isinstance(part, dict):
        for key, value in part.items():
            _check_lengths(value, key, path)
    elif isinstance(part, list):
        for item in part:
            _check_lengths(item, name, path)
    elif isinstance(part, str) and len(part) > (limit := _LIMITS.get(name, _MAX_STRING)):
        raise TokenizerError(
            f"{path}: {show(name)} is a string of {len(part)} characters, expected at most {limit}"
        )


def _added_contents(values: Mapping[str, Any], path: Path, only_special: bool = False) -> list[str]:
    """Return the contents of the added tokens; raise TokenizerError if their form is wrong."""
    try:
        return [
            str(token["content"])
            for token in values.get("added_tokens") or []
            if token["special"] or not only_special
        ]
    except (TypeError, KeyError):
        found = show(values.get("added_tokens"))
        raise TokenizerError(
            f"{path}: found the added tokens {found}, expected a list of objects"
        ) from None


def _has_decoder(decoder: object, kind: str) -> bool:
    """Return whether a decoder is of this kind, or is a Sequence that contains one."""
    if not isinstance(decoder, dict):
        return False
    inner = decoder.get("decoders")
    parts: Iterable[object] = inner if isinstance(inner, list) else ()
    return decoder.get("type") == kind or any(_has_decoder(part, kind) for part in parts)
