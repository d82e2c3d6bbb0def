"""Tokens that stand for themselves wherever a text has them: special ones, and ones added later."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import read_json_object, show
from gpt2c.errors import CheckpointNotFoundError, TokenizerError
from gpt2c.text.special_tokens import END_OF_TEXT, Around, NamedTokens, named_tokens, tokens_around

_MAX_BYTES: Final = 1 << 26
_MAX_ID: Final = 2**31

# Unicode's White_Space; Python's own also holds U+001C to U+001F.
WHITE_SPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


_NOT_SPACE = re.compile(f"[^{WHITE_SPACE}]")

_LONGEST: Final = 128  # characters


@dataclass(frozen=True)
class AddedToken:
    """One such token, with the names of Hugging Face's tokenizers.

    lstrip and rstrip take the white space before and behind it; single_word finds it only where no
    other letter stands beside it. Texts that are scored keep special tokens as characters.
    normalized ones are looked for after all others.
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = True
    normalized: bool = False


class AddedTokens:
    """Finds them in texts: the first, and of those that begin at one place the longest.

    What is found, and in which order, is as in the package tokenizers: contents first, one behind
    the other, and only then the white space and the words beside them.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        """The contents differ from each other."""
        tokens = list(tokens)
        late = [token for token in tokens if token.normalized]
        self._late = AddedTokens(late) if late and len(late) < len(tokens) else None
        self._tokens = {t.content: t for t in tokens if self._late is None or not t.normalized}
        # There may be thousands: at each place where one may begin, a few lengths are looked up.
        lengths: dict[str, set[int]] = {}
        for content in self._tokens:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(ns, reverse=True) for first, ns in lengths.items()}
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str, special: bool = True) -> Iterator[tuple[str, int | None]]:
        """Yield the plain texts between added tokens, each with the id of the token after it.

        Unless `special`, special tokens are part of the plain texts.
        """
        if self._late is None:
            yield from self._split(text, special)
            return
        for plain, id in self._split(text, special):
            *parts, (last, _) = self._late.split(plain, special)
            yield from parts
            yield last, id

    def _split(self, text: str, special: bool) -> Iterator[tuple[str, int | None]]:
        at = 0
        for begin, token in self._found(text):
            if token.special and not special:
                continue
            end = begin + len(token.content)
            if token.single_word and _has_word(text, begin - 1, end):
                continue
            before = text[at:begin]  # nothing, where the one before it took it as white space
            if token.lstrip:
                before = before.rstrip(WHITE_SPACE)
            if token.rstrip:
                rest = _NOT_SPACE.search(text, end)
                end = len(text) if rest is None else rest.start()
            yield before, token.id
            at = end
        yield text[at:] if at else text, None

    def _found(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        place = 0
        while self._first is not None and (match := self._first.search(text, place)):
            begin = match.start()
            place = begin + 1
            for n in self._lengths[match.group()]:
                token = self._tokens.get(text[begin : begin + n])
                if token is not None:
                    yield begin, token
                    place = begin + n
                    break


@dataclass(frozen=True)
class TokenizerConfig:
    """What ``tokenizer_config.json`` says, as far as it changes ids; by default nothing."""

    added: tuple[AddedToken, ...] = ()
    add_prefix_space: bool = False
    eos_token: str | None = None
    bos_token: str | None = END_OF_TEXT
    around: Around = ((), ())


PLAIN: Final = TokenizerConfig()


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """``tokenizer_config.json``, and of older versions ``added_tokens.json``; either may be absent.

    Raises TokenizerError, naming the file.
    """
    path = folder / "tokenizer_config.json"
    values = _object(path)
    named = named_tokens(folder, values)
    decoder = values.get("added_tokens_decoder")
    if decoder is None:
        path = folder / "added_tokens.json"
        added = tuple(
            AddedToken(token, _id(path, id), special=token in named.special)
            for token, id in _object(path, True).items()
        )
    elif isinstance(decoder, dict):
        added = tuple(_described(path, id, token, named) for id, token in decoder.items())
    else:
        raise TokenizerError(f"{path}: found added_tokens_decoder {show(decoder)}")
    if len({token.content for token in added}) < len(added):
        raise TokenizerError(f"{path}: found an added token twice")
    for token in added:
        if not 0 < len(token.content) <= _LONGEST:
            raise TokenizerError(
                f"{path}: found the added token {show(token.content)}, of "
                f"{len(token.content)} characters; expected from 1 to {_LONGEST}"
            )
    return TokenizerConfig(
        added, values.get("add_prefix_space") is True, named.eos, named.bos,
        tokens_around(folder, values, named),
    )  # fmt: skip


def _object(path: Path, strict: bool = False) -> dict[str, Any]:
    try:
        return read_json_object(path, limit=_MAX_BYTES, error=TokenizerError, strict=strict)
    except CheckpointNotFoundError:
        return {}


def _described(path: Path, id: str, token: object, named: NamedTokens) -> AddedToken:
    content = token.get("content") if isinstance(token, Mapping) else None
    if not isinstance(token, Mapping) or not isinstance(content, str):
        raise TokenizerError(f"{path}: found added token {show(token)}, expected its content")
    if not id.isascii() or not id.isdecimal() or len(id) > 10:
        raise TokenizerError(f"{path}: found the id {show(id)} of {show(content)}")
    names = ("lstrip", "rstrip", "single_word", "special", "normalized")
    flags = {name: token.get(name, False) for name in names}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TokenizerError(f"{path}: found {name} {show(flag)} of {show(content)}")
    flags["special"] |= content in named.special
    return AddedToken(content, _id(path, int(id)), **flags)


def _id(path: Path, id: object) -> int:
    if type(id) is not int or not 0 <= id < _MAX_ID:
        raise TokenizerError(f"{path}: found the id {show(id)}, expected an integer from 0")
    return id


def _has_word(text: str, before: int, behind: int) -> bool:
    """Whether either character, where there is one, is part of a word."""
    return (before >= 0 and _is_word(text[before])) or (
        behind < len(text) and _is_word(text[behind])
    )


def _is_word(char: str) -> bool:
    """Unicode's word characters (UTS 18): letters, marks, digits, connectors, joiners."""
    category = unicodedata.category(char)
    return category[0] in "LM" or category in ("Nl", "Nd", "Pc") or char in "\u200c\u200d"
