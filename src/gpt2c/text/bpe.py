"""Byte-level BPE: encodes plain text, without added tokens, to ids.

There are two implementations. :class:`TiktokenModel` is fast. But of all adjacent pairs, tiktoken
merges the one whose *concatenation* is the token of lowest rank, and GPT-2 merges the *pair* that
comes first in the list of merges. The two agree on every text if and only if encoding the bytes of
each token alone ends with the merge that made the token. :meth:`Merges.check_order` checks this. It
holds for GPT-2's vocabulary, and for every other vocabulary that BPE training produced and that has
all 256 bytes. :class:`PairMerger` handles all other vocabularies, in Python, with the same ids as
the tokenizers package.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from gpt2c.checks.untrusted import show
from gpt2c.errors import TokenizerError, TokenizerWarning, warn
from gpt2c.forks import IMPORTING
from gpt2c.text.added_tokens import WHITE_SPACE

if TYPE_CHECKING:
    import tiktoken

GPT2_MERGES: Final = Path(__file__).parents[1] / "data" / "gpt2" / "vocab.bpe"

# GPT-2's split pattern with possessive quantifiers, as in tiktoken: it gives the same pieces, but
# does not backtrack inside a run of letters.
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# `\s+(?!\S)` still backtracks, and tiktoken panics on about 500,000 spaces before a letter. So
# _cut_long_space first separates long runs of white space, as tiktoken's `\s` defines it.
_LONG_SPACE = re.compile(f"[{WHITE_SPACE}]{{256,}}")

# The same pattern, for a text whose non-ASCII characters _AsciiSubstitutes has replaced.
_ASCII_SPLIT = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
_MAX_CACHED_LENGTH: Final = 64  # characters of a piece whose ids are cached
_MAX_CACHED: Final = 1 << 14  # pieces
_NO_TOKENS: Final[Mapping[str, int]] = {}


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's character for each byte -> the byte, in the order of GPT-2's ids."""
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
class BPEOptions:
    """The options of a BPE model, named as in ``tokenizer.json``."""

    use_regex: bool = True  # False: the whole text is one piece
    ignore_merges: bool = False  # True: a piece that is a token becomes its id without merging
    unk_token: str | None = None  # replaces a byte that the vocabulary lacks
    fuse_unk: bool = False  # True: one unk_token replaces consecutive missing bytes
    byte_fallback: bool = False  # True: tokens such as <0x0A> replace missing bytes, if they exist


class TokenizerModel(Protocol):
    """A vocabulary and its encoding algorithm, without added tokens."""

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`; treat added tokens in it as plain characters."""

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, spelled as in the vocabulary, or None."""

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return all ids that encoding can produce, with their bytes."""

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return the ids that encoding never produces, with their bytes."""


class Merges:
    """The tokens that a list of merges makes, in order of rank.

    The single bytes have ranks 0 to 255; merge n, counted from 1, makes the token of rank 255 + n.

    ranks
        Maps each token, spelled in the byte alphabet, to its rank.
    bytes_by_rank
        Has the bytes of each token.
    joined
        For each merge, the ranks of the two tokens that it joins.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], source: str) -> None:
        """Read the merges. Raises TokenizerError, naming `source`, if they are inconsistent."""
        self.source = source
        self.ranks: dict[str, int] = {char: rank for rank, char in enumerate(BYTE_ALPHABET)}
        self.bytes_by_rank: list[bytes] = [bytes([byte]) for byte in BYTE_ALPHABET.values()]
        self.joined: list[tuple[int, int]] = []
        for number, (left, right) in enumerate(pairs, 1):
            try:
                x, y = self.ranks[left], self.ranks[right]
            except KeyError as error:
                raise TokenizerError(
                    f"{source}: merge {number} joins {show(left)} and {show(right)}, but"
                    f" {show(error.args[0])} is neither one of the 256 bytes nor made by an"
                    " earlier merge"
                ) from None
            next_rank = len(self.bytes_by_rank)
            rank = self.ranks.setdefault(left + right, next_rank)
            if rank != next_rank:
                raise TokenizerError(
                    f"{source}: merge {number} makes {show(left + right)}, as merge {rank - 255}"
                    " does; expected each merge to make a new token"
                )
            self.bytes_by_rank.append(self.bytes_by_rank[x] + self.bytes_by_rank[y])
            self.joined.append((x, y))

    def check_order(self) -> None:
        """Raise TokenizerError if encoding a token's bytes alone does not apply its own merge.

        GPT-2's algorithm never produces such a token, but tiktoken's does.
        """
        pairs = {pair: rank for rank, pair in enumerate(self.joined, 256)}
        for rank, (x, y) in enumerate(self.joined, 256):
            if self._has_crossing_merge(pairs, x, y, rank):
                raise TokenizerError(
                    f"{self.source}: merge {rank - 255} joins {show(self.bytes_by_rank[x])} and"
                    f" {show(self.bytes_by_rank[y])}, but earlier merges never leave these two side"
                    " by side; expected merges in the order in which BPE training finds them"
                )

    def _has_crossing_merge(
        self, pairs: Mapping[tuple[int, int], int], x: int, y: int, limit: int
    ) -> bool:
        """Return whether a merge of rank below `limit` joins tokens across the border of x and y.

        Undo the merges of x and y one by one, the latest first, so that x and y are always the two
        tokens at the border. A crossing merge comes too late if x or y was merged before it. Equal
        ranks merge from left to right, so x's own merge precedes a crossing merge of the same rank,
        but y's own merge follows it.
        """
        while True:
            if pairs.get((x, y), limit) < limit:
                return True
            if x < 256 and y < 256:
                return False
            if x > y:
                limit, x = x, self.joined[x - 256][1]
            else:
                limit, y = y + 1, self.joined[y - 256][0]


class TiktokenModel:
    """Encodes with tiktoken.

    The vocabulary must have all 256 bytes, and the merges must pass :meth:`Merges.check_order`.
    """

    def __init__(
        self, merges: Merges, ids: Sequence[int], unused: Mapping[str, int] = _NO_TOKENS
    ) -> None:
        """`ids[rank]` is the id of a token of `merges`; `unused` are the vocabulary's other tokens.

        Encoding never produces the unused tokens.
        """
        self._merges, self._ids, self._unused = merges, ids, unused
        self._made_encoding: tiktoken.Encoding | None = None
        self._are_ranks_ids = list(ids) == list(range(len(ids)))

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`."""
        for part in _cut_long_space(text):
            ranks = self._encoding.encode_ordinary(part)
            ids += ranks if self._are_ranks_ids else map(self._ids.__getitem__, ranks)

    @property
    def _encoding(self) -> tiktoken.Encoding:
        """tiktoken's encoding, made for the first text: prompts of ids do not need it."""
        if self._made_encoding is None:
            with IMPORTING:
                import tiktoken

            ranks = {token: rank for rank, token in enumerate(self._merges.bytes_by_rank)}
            self._made_encoding = tiktoken.Encoding(
                "gpt2c", pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens={}
            )
        return self._made_encoding

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        rank = self._merges.ranks.get(token)
        return self._unused.get(token) if rank is None else self._ids[rank]

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return all ids that encoding can produce, with their bytes."""
        return zip(self._ids, self._merges.bytes_by_rank, strict=True)

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return the ids that encoding never produces, with their bytes."""
        return ((id, bytes_of_token(token)) for token, id in self._unused.items())


class PairMerger:
    """Encodes with any byte-level BPE that the tokenizers package reads, with the same ids."""

    def __init__(
        self,
        vocab: Mapping[str, int],
        pairs: Sequence[tuple[str, str]],
        options: BPEOptions,
        source: str,
    ) -> None:
        """`vocab` must have both tokens of each pair and the token that they make.

        Messages begin with `source`.
        """
        self._vocab, self._options, self._source = vocab, options, source
        # The last of two equal pairs wins, as in the tokenizers package.
        self._merges = {
            (vocab[left], vocab[right]): (rank, vocab[left + right])
            for rank, (left, right) in enumerate(pairs)
        }
        merged = {left + right for left, right in pairs}
        self._reachable = {
            t for t in vocab if t in merged or t in BYTE_ALPHABET or options.ignore_merges
        }
        self._cache: dict[str, list[int]] = {}
        self._has_warned = False

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`.

        Raises TokenizerError if the vocabulary lacks a byte of the text and also lacks the
        unk_token that should replace it.
        """
        if not text:
            return
        for piece in _pieces(text) if self._options.use_regex else [text]:
            piece_ids = self._cache.get(piece)
            if piece_ids is None:
                spelled = "".join(map(_CHARACTERS.__getitem__, piece.encode()))
                piece_ids = self._encode_piece(spelled)
                if len(piece) <= _MAX_CACHED_LENGTH and len(self._cache) < _MAX_CACHED:
                    self._cache[piece] = piece_ids
            ids += piece_ids

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self._vocab.get(token)

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return all ids that encoding can produce, with their bytes."""
        return ((self._vocab[token], bytes_of_token(token)) for token in self._reachable)

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return the ids that encoding never produces, with their bytes."""
        others = (token for token in self._vocab if token not in self._reachable)
        return ((self._vocab[token], bytes_of_token(token)) for token in others)

    def _encode_piece(self, piece: str) -> list[int]:
        """Return the ids of a piece, spelled in the byte alphabet."""
        if self._options.ignore_merges and piece in self._vocab:
            return [self._vocab[piece]]
        return self._merged(self._symbols(piece))

    def _symbols(self, piece: str) -> list[int]:
        """Return the ids of the piece's bytes, before any merge; replace missing bytes."""
        symbols: list[int] = []
        unknown: list[int] = []  # the id of unk_token, to append before the next known byte
        for char in piece:
            id = self._vocab.get(char)
            if id is not None:
                symbols += unknown
                unknown = []
                symbols.append(id)
                continue
            if self._options.byte_fallback:
                spelled = [self._vocab.get(f"<0x{byte:02X}>") for byte in char.encode()]
                if None not in spelled:
                    symbols += [id for id in spelled if id is not None]
                    continue
            self._warn_once(char)
            if self._options.unk_token is not None:
                if not self._options.fuse_unk:
                    symbols += unknown
                unknown = [self._unk_id(char)]
        return symbols + unknown

    def _unk_id(self, char: str) -> int:
        unk = self._options.unk_token
        if unk is None or unk not in self._vocab:
            raise TokenizerError(
                f"{self._source}: the text has the byte {BYTE_ALPHABET[char]:#04x}, which the "
                f"vocabulary lacks, and {show(unk)}, which should replace it, is not in the "
                "vocabulary"
            )
        return self._vocab[unk]

    def _warn_once(self, char: str) -> None:
        """Warn at the first byte that the vocabulary lacks; `char` is its character."""
        if self._has_warned:
            return
        self._has_warned = True
        unk = self._options.unk_token
        becomes = "are left out" if unk is None else f"become {show(unk)}"
        byte = BYTE_ALPHABET[char]
        warn(
            f"{self._source}: the vocabulary has no token for the byte {byte:#04x}"
            f"{f' ({chr(byte)!r})' if byte < 128 else ''}; missing bytes of a text {becomes}",
            TokenizerWarning,
        )

    def _merged(self, ids: list[int]) -> list[int]:
        """Merge pairs until no pair can merge: lowest rank first, equal ranks from left to right.

        The tokens form a linked list in `before` and `after`. A token's index is that of its first
        id in `ids`. A queue holds the rank, the left index and the merged id of each pair that can
        merge. If an earlier merge has replaced a queued pair, the pair that is now at that index is
        merged only if it makes the same token.
        """
        merges, n = self._merges, len(ids)
        queue = [
            (merges[pair][0], left, merges[pair][1])
            for left, pair in enumerate(itertools.pairwise(ids))
            if pair in merges
        ]
        heapq.heapify(queue)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        is_alive = [True] * n

        def push(left: int, right: int) -> None:
            if left >= 0 and right < n and (merge := merges.get((ids[left], ids[right]))):
                heapq.heappush(queue, (merge[0], left, merge[1]))

        while queue:
            _, left, merged_id = heapq.heappop(queue)
            right = after[left]
            if not is_alive[left] or right >= n:
                continue
            merge = merges.get((ids[left], ids[right]))
            if merge is None or merge[1] != merged_id:
                continue
            ids[left] = merged_id
            is_alive[right] = False
            after[left] = after[right]
            if after[left] < n:
                before[after[left]] = left
            push(before[left], left)
            push(left, after[left])
        return list(itertools.compress(ids, is_alive))


def make_bpe_model(
    vocab: Mapping[str, int],
    pairs: Sequence[tuple[str, str]],
    sources: tuple[str, str],
    options: BPEOptions,
) -> TokenizerModel:
    """Return the fastest implementation that gives the same ids as the tokenizers package.

    `sources` are the names of the vocabulary and of the merges in messages.

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
    if options.use_regex and all(char in vocab for char in BYTE_ALPHABET):
        try:
            merges = Merges(pairs, sources[1])
            if not _are_gpt2_merges(pairs):
                merges.check_order()
        except TokenizerError:
            return PairMerger(vocab, pairs, options, sources[0])
        unused = {token: id for token, id in vocab.items() if token not in merges.ranks}
        if not (options.ignore_merges and any(map(is_in_byte_alphabet, unused))):
            return TiktokenModel(merges, [vocab[token] for token in merges.ranks], unused)
    return PairMerger(vocab, pairs, options, sources[0])


def _are_gpt2_merges(pairs: Sequence[tuple[str, str]]) -> bool:
    """Return whether these are GPT-2's own merges, which most checkpoints have.

    They are known to pass check_order, which would take a quarter of the time of loading such a
    checkpoint's tokenizer.
    """
    if len(pairs) != 50000:
        return False
    lines = GPT2_MERGES.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    return lines == [" ".join(pair) for pair in pairs]


def is_in_byte_alphabet(token: str) -> bool:
    """Return whether every character of a token is in the byte alphabet."""
    return all(char in BYTE_ALPHABET for char in token)


def _cut_long_space(text: str) -> Iterator[str]:
    """Cut `text` so that each long run of white space is a part by itself.

    GPT-2's pattern splits the text at the same places: a run of white space is one piece, except
    for its last character, which belongs to the text that follows.
    """
    begin = 0
    for match in _LONG_SPACE.finditer(text):
        end = match.end() if match.end() == len(text) else match.end() - 1
        yield text[begin : match.start()]
        yield text[match.start() : end]
        begin = end
    if begin < len(text):
        yield text[begin:]


class _AsciiSubstitutes(dict[int, str]):
    """Maps each non-ASCII character to an ASCII character of the same kind for GPT-2's pattern."""

    def __init__(self) -> None:
        with IMPORTING:
            import tiktoken

        bytes_alone = {bytes([byte]): byte for byte in range(256)}
        # Substitute -> an encoding that gives ids only for the characters that it substitutes.
        # tiktoken decides, so that both implementations use the same version of Unicode.
        self._encodings = {
            substitute: tiktoken.Encoding(
                "gpt2c", pat_str=pattern, mergeable_ranks=bytes_alone, special_tokens={}
            )
            for substitute, pattern in (("a", r"\p{L}"), ("0", r"\p{N}"), ("\t", r"\s"))
        }

    def __missing__(self, code: int) -> str:
        char = substitute = chr(code)
        if code >= 128:
            matching = (s for s, e in self._encodings.items() if e.encode_ordinary(char))
            substitute = next(matching, "!")
        self[code] = substitute
        return substitute


_substitutes: _AsciiSubstitutes | None = None


def _pieces(text: str) -> Iterator[str]:
    """Yield the pieces that GPT-2's pattern splits `text` into."""
    global _substitutes
    ascii_text = text
    if not text.isascii():
        if _substitutes is None:
            _substitutes = _AsciiSubstitutes()
        ascii_text = text.translate(_substitutes)
    for match in _ASCII_SPLIT.finditer(ascii_text):
        yield text[match.start() : match.end()]
