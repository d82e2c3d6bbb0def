"""Finds added tokens in texts: special tokens, and tokens added later, which match verbatim."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpt2c.checks.untrusted import show
from gpt2c.errors import TokenizerError
from gpt2c.text.special_tokens import (
    END_OF_TEXT,
    NamedTokens,
    Template,
    folder_template,
    named_tokens,
    read_optional,
)

_MAX_ID: Final = 2**31 - 1
_MAX_LENGTH: Final = 128  # characters of an added token

# Unicode's White_Space; Python's str.isspace also accepts U+001C to U+001F.
WHITE_SPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_NOT_SPACE: Final = re.compile(f"[^{WHITE_SPACE}]")
_FLAGS: Final = ("lstrip", "rstrip", "single_word", "special", "normalized")


@dataclass(frozen=True)
class AddedToken:
    """An added token and its flags, named as in the tokenizers package.

    lstrip, rstrip
        Whether a match also removes the white space before (lstrip) or after (rstrip) the token.
    single_word
        Whether the token matches only between characters that are not part of a word.
    special
        Whether the token is a special token: `encode(special=False)`, which scoring uses, encodes
        it as plain characters.
    normalized
        Whether the token matches only in the text between matches of the tokens without this flag.
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = True
    normalized: bool = False


class AddedTokens:
    """Finds added tokens in texts: leftmost first, and at each position the longest.

    The matches equal those of the tokenizers package: it first finds all contents, without
    overlaps, and then applies single_word, lstrip and rstrip to each match.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        """The tokens' contents must be distinct."""
        tokens = list(tokens)
        normalized = [token for token in tokens if token.normalized]
        has_both = 0 < len(normalized) < len(tokens)
        self._normalized = AddedTokens(normalized) if has_both else None
        self._tokens = {t.content: t for t in tokens if not (has_both and t.normalized)}
        # There may be thousands of tokens. So search for the first character of any token, and try
        # the few lengths that tokens with this first character have.
        lengths: dict[str, set[int]] = {}
        for content in self._tokens:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(ns, reverse=True) for first, ns in lengths.items()}
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str, special: bool = True) -> Iterator[tuple[str, int | None]]:
        """Yield the plain texts between added tokens, each with the id of the token after it.

        The last id is None. If `special` is False, special tokens are part of the plain texts.
        """
        if self._normalized is None:
            yield from self._split(text, special)
            return
        for plain, id in self._split(text, special):
            *parts, (last, _) = self._normalized.split(plain, special)
            yield from parts
            yield last, id

    def _split(self, text: str, special: bool) -> Iterator[tuple[str, int | None]]:
        plain_begin = 0
        for begin, token in self._matches(text):
            if token.special and not special:
                continue
            end = begin + len(token.content)
            if token.single_word and _has_word(text, begin - 1, end):
                continue
            plain = text[plain_begin:begin]  # empty if the last token's rstrip went past `begin`
            if token.lstrip:
                plain = plain.rstrip(WHITE_SPACE)
            if token.rstrip:
                rest = _NOT_SPACE.search(text, end)
                end = len(text) if rest is None else rest.start()
            yield plain, token.id
            plain_begin = end
        yield text[plain_begin:], None

    def _matches(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """Yield the index and the token of each match of a content, without overlaps."""
        search_begin = 0
        while self._first is not None and (match := self._first.search(text, search_begin)):
            begin = match.start()
            search_begin = begin + 1
            for n in self._lengths[match.group()]:
                token = self._tokens.get(text[begin : begin + n])
                if token is not None:
                    yield begin, token
                    search_begin = begin + n
                    break


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings of ``tokenizer_config.json`` that can change ids."""

    added: tuple[AddedToken, ...] = ()
    add_prefix_space: bool = False
    eos_token: str | None = None
    bos_token: str | None = END_OF_TEXT
    template: Template = ((), ())


DEFAULT_CONFIG: Final = TokenizerConfig()  # that of a folder without the file


def read_tokenizer_config(folder: Path, *, beside_tokenizer_json: bool = False) -> TokenizerConfig:
    """Read a folder's ``tokenizer_config.json`` and ``added_tokens.json``; both may be missing.

    ``added_tokens.json`` is read only if ``tokenizer_config.json`` has no added_tokens_decoder, as
    in older versions of transformers. `beside_tokenizer_json` leaves the template empty, because
    the template of a ``tokenizer.json`` replaces it.

    Raises TokenizerError, naming the file, if a file or an added token in it is invalid.
    """
    path = folder / "tokenizer_config.json"
    values = read_optional(path)
    named = named_tokens(folder, values)
    decoder = values.get("added_tokens_decoder")
    if decoder is None:
        path = folder / "added_tokens.json"
        added = tuple(
            AddedToken(token, _checked_id(path, id), special=token in named.special)
            for token, id in read_optional(path, strict=True).items()
        )
    elif isinstance(decoder, dict):
        added = tuple(_added_token(path, id, token, named) for id, token in decoder.items())
    else:
        raise TokenizerError(
            f"{path}: found added_tokens_decoder {show(decoder)}, expected an object"
        )
    if len({token.content for token in added}) < len(added):
        raise TokenizerError(f"{path}: found an added token twice, expected distinct tokens")
    for token in added:
        if not 0 < len(token.content) <= _MAX_LENGTH:
            raise TokenizerError(
                f"{path}: found the added token {show(token.content)} of {len(token.content)} "
                f"characters, expected 1 to {_MAX_LENGTH}"
            )
    return TokenizerConfig(
        added=added,
        add_prefix_space=values.get("add_prefix_space") is True,
        eos_token=named.eos,
        bos_token=named.bos,
        template=((), ()) if beside_tokenizer_json else folder_template(folder, values, named),
    )


def content_and_flags(path: Path, token: object) -> tuple[str, dict[str, bool]]:
    """Return the content and the flags of an added token, given as a parsed JSON value.

    Raises TokenizerError, naming the file.
    """
    content = token.get("content") if isinstance(token, Mapping) else None
    if not isinstance(token, Mapping) or not isinstance(content, str):
        raise TokenizerError(
            f'{path}: found the added token {show(token)}, expected an object with a "content"'
        )
    flags = {name: token.get(name, False) for name in _FLAGS}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TokenizerError(
                f"{path}: {name} of the added token {show(content)} is {show(flag)}, expected true "
                "or false"
            )
    return content, flags


def _added_token(path: Path, id: str, token: object, named: NamedTokens) -> AddedToken:
    """Return the added token of an entry in added_tokens_decoder."""
    content, flags = content_and_flags(path, token)
    if not id.isascii() or not id.isdecimal() or len(id) > 10:
        raise TokenizerError(
            f"{path}: the id of the added token {show(content)} is {show(id)}, expected digits"
        )
    flags["special"] |= content in named.special
    return AddedToken(content, _checked_id(path, int(id)), **flags)


def _checked_id(path: Path, id: object) -> int:
    if type(id) is not int or not 0 <= id <= _MAX_ID:
        raise TokenizerError(
            f"{path}: found the id {show(id)}, expected an integer from 0 to {_MAX_ID}"
        )
    return id


_LETTER_SYMBOLS = re.compile(
    "[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]"
)


def _has_word(text: str, before: int, after: int) -> bool:
    """Return whether the character at either index is in the text and is part of a word."""
    return any(_is_word(text[index]) for index in (before, after) if 0 <= index < len(text))


def _is_word(char: str) -> bool:
    """Return whether this is a word character of UTS 18.

    Word characters are alphabetic characters, marks, digits, connectors and joiners. Letters in
    circles and squares are alphabetic, although their category is "symbol".
    """
    category = unicodedata.category(char)
    is_letter = category[0] in "LM" or category == "Nl" or _LETTER_SYMBOLS.match(char) is not None
    return is_letter or category in ("Nd", "Pc") or char in "\u200c\u200d"
