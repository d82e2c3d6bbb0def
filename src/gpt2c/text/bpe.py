"""Byte-level BPE: encodes plain text, without added tokens, to ids.

There are two implementations. tiktoken merges the adjacent pair whose *concatenation* is the token
of lowest rank; GPT-2 merges the listed *pair* of lowest rank. The two agree on every text if and
only if, for each token, the last merge applied when encoding its bytes alone is the merge that
created it. :meth:`Merges.check_order` checks this. It holds for GPT-2's vocabulary, and for every
other vocabulary that BPE training produced and that has all 256 bytes. :class:`PairMerger` handles
all other vocabularies, in Python, with the same ids as the tokenizers package.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gpt2c.checks.untrusted import show
from gpt2c.errors import TokenizerError, TokenizerWarning, warn
from gpt2c.text.added_tokens import WHITE_SPACE

# GPT-2's split pattern with possessive quantifiers, as in tiktoken: it gives the same pieces, but
# does not backtrack inside a run of letters.
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# `\s+(?!\S)` still backtracks, and tiktoken panics on a run of some 500,000 spaces before a letter.
# So _cut_long_space first separates long runs of white space, as tiktoken's `\s` defines it.
_LONG_SPACE = re.compile(f"[{WHITE_SPACE}]{{256,}}")

# The same pattern for a text whose non-ASCII characters _AsciiSubstitutes has replaced.
_ASCII_SPLIT = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
_MAX_CACHED_LENGTH: Final = 64  # characters of a piece whose ids are cached
_MAX_CACHED: Final = 1 << 14  # pieces
_NO_TOKENS: Final[Mapping[str, int]] = {}


def _byte_alphabet() -> dict[str, int]:
    """Map each byte's character in GPT-2's alphabet to the byte, in the order of GPT-2's ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


BYTE_ALPHABET = _byte_alphabet()
_CHARACTERS: Final = {byte: char for char, byte in BYTE_ALPHABET.items()}


def bytes_of_token(token: str) -> bytes:
    """Return the bytes of a token; a token outside the byte alphabet is encoded as UTF-8."""
    try:
        return bytes(map(BYTE_ALPHABET.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "replace")


@dataclass(frozen=True)
class Rules:
    """The options of a BPE model, named as in ``tokenizer.json``."""

    use_regex: bool = True  # False: the whole text is one piece
    ignore_merges: bool = False  # True: a piece that is a token becomes its id without merging
    unk_token: str | None = None  # replaces a byte that the vocabulary lacks
    fuse_unk: bool = False
    byte_fallback: bool = False


class Model(Protocol):
    """A vocabulary and its encoding algorithm."""

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`; treat added tokens in it as plain characters."""

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, spelled as in the vocabulary, or None."""

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return every id that encoding can produce, with its bytes."""

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return the ids that encoding never produces, with their bytes."""


class Merges:
    """The tokens that a list of merges makes, in order of rank.

    The single bytes have ranks 0 to 255; merge n, counted from 1, makes the token of rank 255 + n.

    rank
        Maps each token, spelled in the byte alphabet, to its rank.
    data
        Has the bytes of each token, by rank.
    parts
        Has the ranks of the two tokens that each merge joins.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], source: str) -> None:
        """Raises TokenizerError, naming `source`, if the merges are inconsistent."""
        self.source = source
        self.rank: dict[str, int] = {char: rank for rank, char in enumerate(BYTE_ALPHABET)}
        self.data: list[bytes] = [bytes([byte]) for byte in BYTE_ALPHABET.values()]
        self.parts: list[tuple[int, int]] = []
        for number, (left, right) in enumerate(pairs, 1):
            try:
                x, y = self.rank[left], self.rank[right]
            except KeyError as error:
                raise TokenizerError(
                    f"{source}: merge {number} joins {show(left)} and {show(right)}, but"
                    f" {show(error.args[0])} is neither one of the 256 bytes nor made by an"
                    " earlier merge"
                ) from None
            rank = self.rank.setdefault(left + right, len(self.data))
            if rank != len(self.data):
                raise TokenizerError(
                    f"{source}: merge {number} makes {show(left + right)}, as merge {rank - 255}"
                    " does; expected each merge to make a new token"
                )
            self.data.append(self.data[x] + self.data[y])
            self.parts.append((x, y))

    def check_order(self) -> None:
        """Raise TokenizerError if encoding a token's bytes alone does not apply its own merge.

        GPT-2's algorithm never produces such a token, but tiktoken's does.
        """
        pairs = {pair: rank for rank, pair in enumerate(self.parts, 256)}
        for rank, (x, y) in enumerate(self.parts, 256):
            if self._has_crossing_merge(pairs, x, y, rank):
                raise TokenizerError(
                    f"{self.source}: merge {rank - 255} joins {show(self.data[x])} and"
                    f" {show(self.data[y])}, but earlier merges never leave these two side by"
                    " side; expected merges in the order in which BPE training finds them"
                )

    def _has_crossing_merge(
        self, pairs: Mapping[tuple[int, int], int], x: int, y: int, limit: int
    ) -> bool:
        """Return whether a merge of rank below `limit` joins tokens across the border of x and y.

        Undo the merges of x and y one by one, latest first, so that x and y are always the two
        tokens that meet at the border. Equal ranks merge from left to right. So a crossing merge
        with x's rank would come after x's own merge, but one with y's rank would come before y's
        own merge.
        """
        while True:
            if pairs.get((x, y), limit) < limit:
                return True
            if x < 256 and y < 256:
                return False
            if x > y:
                limit, x = x, self.parts[x - 256][1]
            else:
                limit, y = y + 1, self.parts[y - 256][0]


class TiktokenModel:
    """Encodes with tiktoken.

    The vocabulary must have all 256 bytes, and the merges must pass :meth:`Merges.check_order`.
    """

    def __init__(
        self, merges: Merges, ids: Sequence[int], others: Mapping[str, int] = _NO_TOKENS
    ) -> None:
        """`ids[rank]` is the id of a merged token; encoding never produces `others`."""
        # Imported lazily, because the import takes about 35 ms.
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(merges.data)}
        self.engine = tiktoken.Encoding(
            "gpt2c", pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens={}
        )
        self._ids = None if list(ids) == list(range(len(ids))) else list(ids)
        self._merges, self._all_ids, self._others = merges, ids, others

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`."""
        for part in _cut_long_space(text):
            ranks = self.engine.encode_ordinary(part)
            ids += ranks if self._ids is None else map(self._ids.__getitem__, ranks)

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        rank = self._merges.rank.get(token)
        return self._others.get(token) if rank is None else self._all_ids[rank]

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return every id that encoding can produce, with its bytes."""
        return zip(self._all_ids, self._merges.data, strict=True)

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return the ids that encoding never produces, with their bytes."""
        return ((id, bytes_of_token(token)) for token, id in self._others.items())


class PairMerger:
    """Encodes with any byte-level BPE that the tokenizers package reads, with the same ids."""

    def __init__(
        self, vocab: Mapping[str, int], pairs: Sequence[tuple[str, str]], rules: Rules, source: str
    ) -> None:
        """`vocab` must have both tokens of each pair and the token that they make.

        Messages begin with `source`.
        """
        self._vocab, self._rules, self._source = vocab, rules, source
        # The last of two equal pairs wins, as in the tokenizers package.
        self._merges = {
            (vocab[left], vocab[right]): (rank, vocab[left + right])
            for rank, (left, right) in enumerate(pairs)
        }
        made = {left + right for left, right in pairs}
        self._reachable = {
            t for t in vocab if t in made or t in BYTE_ALPHABET or rules.ignore_merges
        }
        self._cache: dict[str, list[int]] = {}
        self._has_warned = False

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`.

        Raises TokenizerError if the vocabulary lacks a byte of the text and also lacks the
        unk_token that should replace it.
        """
        for piece in _pieces(text) if self._rules.use_regex else [text] * bool(text):
            found = self._cache.get(piece)
            if found is None:
                found = self._encode_piece("".join(map(_CHARACTERS.__getitem__, piece.encode())))
                if len(piece) <= _MAX_CACHED_LENGTH and len(self._cache) < _MAX_CACHED:
                    self._cache[piece] = found
            ids += found

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self._vocab.get(token)

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return every id that encoding can produce, with its bytes."""
        return ((self._vocab[token], bytes_of_token(token)) for token in self._reachable)

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return the ids that encoding never produces, with their bytes."""
        others = (token for token in self._vocab if token not in self._reachable)
        return ((self._vocab[token], bytes_of_token(token)) for token in others)

    def _encode_piece(self, piece: str) -> list[int]:
        """Return the ids of a piece, spelled in the byte alphabet."""
        if self._rules.ignore_merges and piece in self._vocab:
            return [self._vocab[piece]]
        return self._merged(self._symbols(piece))

    def _symbols(self, piece: str) -> list[int]:
        """Return the ids of the piece's bytes, before any merge."""
        symbols: list[int] = []
        unknown: list[int] = []  # ids of unk_token, appended before the next known byte
        for char in piece:
            id = self._vocab.get(char)
            if id is not None:
                symbols += unknown
                unknown = []
                symbols.append(id)
                continue
            if self._rules.byte_fallback:
                spelled = [self._vocab.get(f"<0x{byte:02X}>") for byte in char.encode()]
                if None not in spelled:
                    symbols += [id for id in spelled if id is not None]
                    continue
            self._warn_once(char)
            if self._rules.unk_token is not None:
                if not self._rules.fuse_unk:
                    symbols += unknown
                unknown = [self._unk_id(char)]
        return symbols + unknown

    def _unk_id(self, char: str) -> int:
        unk = self._rules.unk_token
        if unk is None or unk not in self._vocab:
            raise TokenizerError(
                f"{self._source}: the text has the byte {BYTE_ALPHABET[char]:#04x}, which the "
                f"vocabulary lacks, and {show(unk)}, which should replace it, is not in the "
                "vocabulary"
            )
        return self._vocab[unk]

    def _warn_once(self, char: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        unk = self._rules.unk_token
        becomes = "are left out" if unk is None else f"become {show(unk)}"
        byte = BYTE_ALPHABET[char]
        warn(
            f"{self._source}: the vocabulary has no token for the byte {byte:#04x}"
            f"{f' ({chr(byte)!r})' if byte < 128 else ''}; missing bytes of a text {becomes}",
            TokenizerWarning,
        )

    def _merged(self, ids: list[int]) -> list[int]:
        """Merge pairs until no pair can merge: lowest rank first, equal ranks from left to right.

        The tokens form a linked list in `before` and `after`; a token's index is the index
        that its first id had before any merge. A queue holds the pairs to merge. An earlier merge
        may have replaced a queued pair. The pair that is now at that index is then merged only if
        it makes the same token.
        """
        merges, n = self._merges, len(ids)
        queue = [
            (merges[pair][0], at, merges[pair][1])
            for at, pair in enumerate(itertools.pairwise(ids))
            if pair in merges
        ]
        heapq.heapify(queue)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        is_alive = [True] * n

        def push(left: int, right: int) -> None:
            if left >= 0 and right < n and (found := merges.get((ids[left], ids[right]))):
                heapq.heappush(queue, (found[0], left, found[1]))

        while queue:
            _, at, made = heapq.heappop(queue)
            right = after[at]
            if not is_alive[at] or right >= n:
                continue
            found = merges.get((ids[at], ids[right]))
            if found is None or found[1] != made:
                continue
            ids[at] = made
            is_alive[right] = False
            after[at] = after[right]
            if after[at] < n:
                before[after[at]] = at
            push(before[at], at)
            push(at, after[at])
        return list(itertools.compress(ids, is_alive))


def make_model(
    vocab: Mapping[str, int],
    pairs: Sequence[tuple[str, str]],
    sources: tuple[str, str],
    rules: Rules,
) -> Model:
    """Return the fastest implementation that gives the same ids as the tokenizers package.

    `sources` names the vocabulary and the merges in messages.

    Raises TokenizerError, naming the merges, if a merge joins or makes a token that the vocabulary
    lacks.
    """
    for number, (left, right) in enumerate(pairs, 1):
        for token in (left, right, left + right):
            if token not in vocab:
                raise TokenizerError(
                    f"{sources[1]}: merge {number} joins {show(left)} and {show(right)}, but "
                    f"{sources[0]} has no token {show(token)}: are both files of the same "
                    "vocabulary?"
                )
    if rules.use_regex and all(char in vocab for char in BYTE_ALPHABET):
        try:
            merges = Merges(pairs, sources[1])
            merges.check_order()
        except TokenizerError:
            return PairMerger(vocab, pairs, rules, sources[0])
        others = {token: id for token, id in vocab.items() if token not in merges.rank}
        if not (rules.ignore_merges and any(map(is_in_byte_alphabet, others))):
            return TiktokenModel(merges, [vocab[token] for token in merges.rank], others)
    return PairMerger(vocab, pairs, rules, sources[0])


def is_in_byte_alphabet(token: str) -> bool:
    """Return whether every character of a token is in the byte alphabet."""
    return all(char in BYTE_ALPHABET for char in token)


def _cut_long_space(text: str) -> Iterator[str]:
    """Cut `text` so that each long run of white space is a part by itself.

    GPT-2's pattern splits the text at the same places: a run of white space is one piece, except
    for its last character, which belongs to the text that follows.
    """
    at = 0
    for match in _LONG_SPACE.finditer(text):
        end = match.end() if match.end() == len(text) else match.end() - 1
        yield text[at : match.start()]
        yield text[match.start() : end]
        at = end
    if at < len(text):
        yield text[at:] if at else text


class _AsciiSubstitutes(dict[int, str]):
    """Maps each non-ASCII character to an ASCII one that GPT-2's pattern treats alike."""

    def __init__(self) -> None:
        import tiktoken

        bytes_alone = {bytes([byte]): byte for byte in range(256)}
        # Ask tiktoken, so that both implementations use the same version of Unicode.
        self._kinds = {
            kind: tiktoken.Encoding(
                "gpt2c", pat_str=pattern, mergeable_ranks=bytes_alone, special_tokens={}
            )
            for kind, pattern in (("a", r"\p{L}"), ("0", r"\p{N}"), ("\t", r"\s"))
        }

    def __missing__(self, code: int) -> str:
        if code < 128:
            kind = chr(code)
        else:
            char = chr(code)
            kind = next((k for k, e in self._kinds.items() if e.encode_ordinary(char)), "!")
        self[code] = kind
        return kind


_substitutes: _AsciiSubstitutes | None = None


def _pieces(text: str) -> Iterator[str]:
    """Yield the pieces that GPT-2's pattern splits `text` into."""
    global _substitutes
    if text.isascii():
        replaced = text
    else:
        if _substitutes is None:
            _substitutes = _AsciiSubstitutes()
        replaced = text.translate(_substitutes)
    for match in _ASCII_SPLIT.finditer(replaced):
        yield text[match.start() : match.end()]
