"""Words of a text, and the tokens that each of them consists of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import is_integer
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, TokenizerError
from gpt2c.text.added_tokens import WHITE_SPACE
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer

_WORD: Final = re.compile(f"[^{WHITE_SPACE}]+")
_SPACES: Final = np.array([ord(char) for char in WHITE_SPACE], dtype=np.uint32)


class Passage(NamedTuple):
    """A text that the model reads whole, and the character spans of the words to measure.

    The spans ascend and do not overlap. What lies outside them is read and not measured: a left
    context of n_context characters, and the gaps between the spans.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    n_context: int = 0


@dataclass(frozen=True, eq=False)
class AlignedWords:
    """The tokens of a passage, and which of them are a word's.

    ids
        int32 [n_tokens].
    first, end
        int64 [n_words]: word k consists of the tokens from first[k] to end[k] - 1. White space
        before a word belongs to it. White space after the last word belongs to no word.
    is_cut
        bool [n_words]: whether the text was cut at the word's first or last character to encode it,
        because a token would have held characters of the word and of its neighbour.
    """

    ids: NDArray[np.int32]
    first: NDArray[np.int64]
    end: NDArray[np.int64]
    is_cut: NDArray[np.bool_]


def words_of(text: str, begin: int = 0) -> list[tuple[int, int]]:
    """Return the spans of the words: the longest runs without Unicode white space, from `begin`."""
    return [match.span() for match in _WORD.finditer(text, begin)]


def set_apart(
    text: str, spans: Sequence[tuple[int, int]], apart: re.Pattern[str]
) -> list[tuple[int, int]]:
    """Cut each span at the matches of a regular expression; a match is a word of its own.

    The expression sees one word at a time, so ^ and $ are the word's ends.
    """
    found: list[tuple[int, int]] = []
    for begin, end in spans:
        borders = {0, end - begin}
        for match in apart.finditer(text[begin:end]):
            if match.end() > match.start():
                borders.update(match.span())
        found += [(begin + a, begin + b) for a, b in pairwise(sorted(borders))]
    return found


def join_words(words: Sequence[str], separator: str, context: str = "") -> Passage:
    """Return the passage of given words, joined with a separator, after a left context.

    White space around a word is not part of it. Where there is white space already, no separator is
    added.
    """
    pieces, spans = [context], []
    position = len(context)
    for word in words:
        bare = word.strip(WHITE_SPACE)
        if position and pieces[-1][-1:] not in WHITE_SPACE:
            pieces.append(separator)
            position += len(separator)
        spans.append((position, position + len(bare)))
        pieces.append(bare)
        position += len(bare)
    return Passage("".join(pieces), spans, spans[0][0] if spans else position)


def join_text(text: str, separator: str, context: str = "") -> tuple[str, int]:
    """Return a left context joined with a text, and where the text begins in it.

    The separator stands between the two unless there is white space already.
    """
    if not context or not text or context[-1] in WHITE_SPACE or text[0] in WHITE_SPACE:
        return context + text, len(context)
    return context + separator + text, len(context) + len(separator)


class Aligner:
    """Encodes passages, and finds the tokens of their words by the tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer | MissingTokenizer, special: bool) -> None:
        """If `special`, the name of a special token in a text is encoded as its id."""
        self._tokenizer, self._special = tokenizer, special
        self._bytes: dict[int, bytes] = {}  # of the tokens met so far

    def align(self, passage: Passage, where: str) -> AlignedWords:
        """Encode a passage, and return the tokens of its words.

        A token belongs to the word of its first character that is not white space. If it also held
        characters of another word, or of text outside the words, the text is cut at the border, and
        both sides are encoded on their own.

        Raises TokenizerError, with a message that begins with `where`, if the text cannot be
        encoded, or if the bytes of its tokens are not those of the text.
        """
        borders = _Borders(passage)
        cuts: set[int] = set()  # byte offsets
        while True:
            ids, ends = self._encode(passage.text, borders, sorted(cuts), where)
            units, conflicts = borders.units_of(ends)
            if not conflicts:
                break
            cuts |= conflicts
        odd = 2 * np.arange(len(passage.spans)) + 1
        first, end = np.searchsorted(units, odd), np.searchsorted(units, odd, side="right")
        return AlignedWords(ids, first, end, borders.are_cut(cuts))

    def _encode(
        self, text: str, borders: _Borders, cuts: list[int], where: str
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of the text, encoded in parts, and where each token ends, in bytes."""
        ids: list[int] = []
        try:
            if cuts:
                for begin, end in pairwise([0, *cuts, borders.n_bytes]):
                    ids += self._encode_part(borders.raw[begin:end].decode())
            else:
                ids = self._encode_part(text)
        except TokenizerError as error:
            raise TokenizerError(f"{where}: {error}") from None
        known = self._bytes
        for id in ids:
            if id not in known:
                known[id] = self._tokenizer.token_bytes(id)
        pieces = [known[id] for id in ids]
        found = b"".join(pieces)
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
        if found == b" " + borders.raw:  # a tokenizer that puts a space before every text
            ends = np.maximum(ends - 1, 0)
        elif found != borders.raw:
            raise TokenizerError(
                f"{where}: the tokenizer from {getattr(self._tokenizer, 'source', 'nowhere')} "
                "changes the text that it encodes, so its tokens cannot be aligned with words"
            )
        return np.array(ids, dtype=np.int32), ends

    def _encode_part(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=self._special, add_special_tokens=False)


class _Borders:
    """Where the words of a passage are, in bytes.

    Unit 2 k + 1 is word k. Unit 2 k is the text between word k - 1 and word k.
    """

    def __init__(self, passage: Passage) -> None:
        text = passage.text
        spans = np.array(passage.spans, dtype=np.int64).reshape(-1, 2)
        try:
            self.raw = text.encode()
        except UnicodeEncodeError:
            self.raw = b""  # the tokenizer says what is wrong
        self.n_bytes = len(self.raw)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        is_text = ~np.isin(codes, _SPACES)  # [n_characters]
        if self.n_bytes == len(text):  # ASCII
            self.begins, self.ends = spans[:, 0], spans[:, 1]
            self._text_bytes = np.flatnonzero(is_text)
        else:
            n = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)  # bytes per character
            offsets = np.concatenate([[0], np.cumsum(n)])
            self.begins, self.ends = offsets[spans[:, 0]], offsets[spans[:, 1]]
            self._text_bytes = np.flatnonzero(np.repeat(is_text, n))

    def units_of(self, token_ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], set[int]]:
        """Return each token's unit, ascending, and the offsets at which to cut the text."""
        token_begins = np.concatenate([[0], token_ends[:-1]])
        text_bytes = self._text_bytes
        if len(text_bytes) == 0:
            return np.full(len(token_ends), 2 * len(self.begins)), set()
        # The first and the last byte of each token that is not white space.
        first = np.searchsorted(text_bytes, token_begins)
        last = np.searchsorted(text_bytes, token_ends) - 1
        is_after = first == len(text_bytes)  # white space at the end of the text
        units = self._unit_at(text_bytes[np.minimum(first, len(text_bytes) - 1)])
        units[is_after] = 2 * len(self.begins)
        has_text = last >= first
        last_units = np.where(has_text, self._unit_at(text_bytes[np.maximum(last, 0)]), units)
        cuts: set[int] = set()
        for token in np.flatnonzero(last_units != units):
            inside = text_bytes[first[token] : last[token] + 1]
            changes = np.flatnonzero(np.diff(self._unit_at(inside)))
            cuts.update((inside[changes] + 1).tolist())  # white space stays with what follows
        return units, cuts

    def are_cut(self, cuts: set[int]) -> NDArray[np.bool_]:
        """Return whether a cut is at the beginning or the end of each word, [n_words]."""
        if not cuts:
            return np.zeros(len(self.begins), dtype=np.bool_)
        before = np.searchsorted(self._text_bytes, self.begins) - 1
        ends_before = np.where(before < 0, 0, self._text_bytes[before] + 1)
        at = np.array(sorted(cuts))
        return np.isin(ends_before, at) | np.isin(self.ends, at)

    def _unit_at(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.begins, offsets, side="right") + np.searchsorted(
            self.ends, offsets, side="right"
        )


def check_spans(text: str, spans: object, where: str) -> list[tuple[int, int]]:
    """Return the spans of a text, checked.

    Raises OptionError, with a message that begins with `where`, unless they are pairs of characters
    that ascend, do not overlap, and hold more than white space.
    """
    if isinstance(spans, np.ndarray):
        spans = spans.tolist()
    if not isinstance(spans, Sequence) or isinstance(spans, str):
        raise OptionError(f"{where}: spans must be a list of pairs (start, end), in characters")
    found: list[tuple[int, int]] = []
    before = 0
    for number, span in enumerate(spans):
        try:
            begin, end = map(_whole_number, () if isinstance(span, str) else span)
        except (TypeError, ValueError, OverflowError):
            raise OptionError(
                f"{where}: span {number} is {show(span)}; it must be a pair (start, end) of whole "
                "numbers"
            ) from None
        if not before <= begin < end <= len(text):
            raise OptionError(
                f"{where}: span {number} is {show((begin, end))}; it must begin at {before} or "
                f"later, end after its beginning, and end at {len(text)} or earlier"
            )
        if not text[begin:end].strip(WHITE_SPACE):
            raise OptionError(f"{where}: span {number}, ({begin}, {end}), has only white space")
        found.append((begin, end))
        before = end
    return found


def _whole_number(value: object) -> int:
    """Return an integer, or a float without a fraction, as R and frames have, as an int.

    Raises TypeError, ValueError or OverflowError.
    """
    if not is_integer(value) and not isinstance(value, float | np.floating):
        raise TypeError
    number = int(value)  # type: ignore[call-overload]
    if number != value:
        raise ValueError
    return int(number)
