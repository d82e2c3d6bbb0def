"""Text to token ids and back: GPT-2's byte-level BPE on tiktoken's engine, from local files.

tiktoken merges the adjacent pair whose *concatenation* is the known token of lowest rank;
GPT-2 merges the listed *pair* of lowest rank. The two agree on every text exactly when each
token, encoded by itself, ends in the merge that made it. Every vocabulary that BPE training
produced is of that kind, GPT-2's too; it is checked when a vocabulary is read, so that a
vocabulary on which the two would differ is an error and never a wrong id.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, Protocol

from gpt2c.added_tokens import (
    PLAIN,
    WHITE_SPACE,
    AddedToken,
    AddedTokens,
    TokenizerConfig,
    read_tokenizer_config,
)
from gpt2c.errors import OptionError, OptionTypeError, TokenizerError
from gpt2c.options import flag
from gpt2c.untrusted import open_regular, read_json_object, show, show_list

__all__ = ["END_OF_TEXT", "MissingTokenizer", "StreamDecoder", "Tokenizer"]

END_OF_TEXT = "<|endoftext|>"

_GPT2_MERGES = Path(__file__).parent / "data" / "gpt2" / "vocab.bpe"
_DECODE_PART = 65536  # ids
MAX_GAP = 65536  # ids that may be left free before those of added tokens
MAX_FILE_BYTES = 1 << 26  # GPT-2's own vocab.json has 1 MB; far beyond it is not a vocabulary

# GPT-2's splitting, in the possessive form that tiktoken uses for it: the same pieces, and
# no backtracking inside a run of letters.
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# `\s+(?!\S)` still backtracks, and tiktoken panics on a run of some 500,000 spaces with a
# letter behind it, so long runs are cut out first, of what tiktoken's `\s` means.
_LONG_SPACE = re.compile(f"[{WHITE_SPACE}]{{256,}}")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte, in the order of the ids that GPT-2 gives the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


BYTE_ALPHABET = _byte_alphabet()


class _Merges:
    """The tokens that a list of merges makes; a token's rank is its place in the lists.

    The single bytes have ranks 0 to 255 and the merges' results follow in order.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], source: str) -> None:
        """Raise TokenizerError, naming `source`, where the merges do not make one vocabulary."""
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
                    " does; expected a token of its own from each merge"
                )
            self.data.append(self.data[x] + self.data[y])
            self.parts.append((x, y))

    def check_order(self) -> None:
        """Raise TokenizerError if a token by itself would not end in the merge that makes it.

        Such a token is out of reach for GPT-2's algorithm while tiktoken's would produce it.
        """
        pairs = {pair: rank for rank, pair in enumerate(self.parts, 256)}
        for rank, (x, y) in enumerate(self.parts, 256):
            if self._crossed(pairs, x, y, rank):
                raise TokenizerError(
                    f"{self.source}: merge {rank - 255} joins {show(self.data[x])} and"
                    f" {show(self.data[y])}, but earlier merges never leave these two side by"
                    " side; expected merges in the order in which BPE training finds them"
                )

    def _crossed(self, pairs: Mapping[tuple[int, int], int], x: int, y: int, limit: int) -> bool:
        """Whether a merge of rank below `limit` joins across the border between x and y.

        Steps back in time from the finished tokens: of the two that meet at the border, the
        one that was made last is taken apart. A merge that ties with the one that made x has
        its own left neighbour first; one that ties with y's would have come before it.
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


class Tokenizer:
    """A byte-level BPE vocabulary: `encode` text to ids, `decode` ids to text.

    Nothing is ever fetched. Instances do not change and may be used by several threads.
    """

    n_vocab: int  # the number of ids, which are 0 to n_vocab - 1
    eot_id: int | None  # the id of <|endoftext|>; None where the vocabulary has none
    special_tokens: Mapping[str, int]  # those that stand for themselves wherever a text has them

    def __init__(
        self,
        merges: _Merges,
        ids: Sequence[int],
        others: Iterable[AddedToken],
        config: TokenizerConfig = PLAIN,
    ) -> None:
        """For this module: `ids[rank]` is the id of a merged token, `others` are the rest.

        Use `gpt2`, `from_files` or `from_vocabulary`.
        """
        # Here and not above, so that `import gpt2c` does not pay for it (some 35 ms).
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(merges.data)}
        self._engine = tiktoken.Encoding(
            "gpt2c", pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens={}
        )
        self._ids = None if list(ids) == list(range(len(ids))) else list(ids)
        added = {token.content: token for token in others}
        if END_OF_TEXT in merges.rank:
            added.setdefault(END_OF_TEXT, AddedToken(END_OF_TEXT, ids[merges.rank[END_OF_TEXT]]))
        self.n_vocab = 1 + max(itertools.chain(ids, (token.id for token in added.values())))
        self._bytes = [b""] * self.n_vocab
        for token in added.values():
            self._bytes[token.id] = token.content.encode()
        for rank, id in enumerate(ids):
            self._bytes[id] = merges.data[rank]
        self._added = AddedTokens(added.values())
        self.special_tokens = MappingProxyType({t.content: t.id for t in added.values()})
        self.eot_id = self.special_tokens.get(
            config.eos_token or END_OF_TEXT, self.special_tokens.get(END_OF_TEXT)
        )
        self._add_prefix_space = config.add_prefix_space

    def __repr__(self) -> str:
        """The sizes, not the tokens."""
        return f"<gpt2c.Tokenizer n_vocab={self.n_vocab} eot_id={self.eot_id}>"

    @classmethod
    @functools.cache
    def gpt2(cls) -> Tokenizer:
        """GPT-2's own vocabulary of 50,257 tokens, from the data inside the package.

        Raises TokenizerError or CheckpointNotFoundError if the installed package is damaged.
        """
        merges = _Merges(_read_merges(_GPT2_MERGES), str(_GPT2_MERGES))
        size = len(merges.data)
        if size != 50256:
            raise TokenizerError(f"{_GPT2_MERGES}: found {size - 256} merges, expected 50000")
        return cls(merges, range(size), [AddedToken(END_OF_TEXT, size)])

    @classmethod
    def from_files(cls, vocab_json: Path, merges_txt: Path) -> Tokenizer:
        """The vocabulary of a `vocab.json` and `merges.txt`, whatever its ids.

        Entries that are made neither of one byte nor by a merge are special tokens; the folder's
        `tokenizer_config.json` and `added_tokens.json`, where they are there, add more. Raises
        TokenizerError, naming the file, where they cannot be read, do not fit each other,
        or list merges that no BPE training yields; CheckpointNotFoundError where one is absent.
        """
        sources = str(vocab_json), str(merges_txt)
        vocab, pairs = _read_vocab(vocab_json), _read_merges(merges_txt)
        config = read_tokenizer_config(vocab_json.parent)
        return cls.from_vocabulary(vocab, pairs, sources, config)

    @classmethod
    def from_vocabulary(
        cls,
        vocab: Mapping[str, int],
        pairs: Iterable[tuple[str, str]],
        sources: tuple[str, str],
        config: TokenizerConfig = PLAIN,
    ) -> Tokenizer:
        """The same of a vocabulary in memory; `sources` name it and its merges in messages."""
        vocab_name, merges_name = sources
        merges = _Merges(pairs, merges_name)
        missing = [token for token in merges.rank if token not in vocab]
        if missing:
            raise TokenizerError(
                f"{vocab_name}: of the 256 bytes and the {len(merges.parts)} tokens that"
                f" {merges_name} makes, {len(missing)} are missing: {show_list(missing)}"
            )
        others = {t: AddedToken(t, id) for t, id in vocab.items() if t not in merges.rank}
        _check_added(config.added, vocab, vocab_name)
        others.update({token.content: token for token in config.added})
        _check_others({t: o.id for t, o in others.items() if t in vocab}, *sources)
        merges.check_order()
        return cls(merges, [vocab[token] for token in merges.rank], others.values(), config)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of `text`; no id is added at either end.

        A special token such as `<|endoftext|>` in the text becomes its one id, unless
        `special` is False: then it is encoded as the characters that it is written with.

        Raises TokenizerError for a text with a lone surrogate, which has no bytes, and
        OptionTypeError for anything but a str.
        """
        check_text(text)
        ids: list[int] = []
        for plain, id in self._added.split(text) if flag("special", special) else [(text, None)]:
            if self._add_prefix_space and plain and plain[0] != " ":
                plain = " " + plain
            self._encode_plain(plain, ids)
            if id is not None:
                ids.append(id)
        return ids

    def _encode_plain(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text`, whose special tokens are mere characters."""
        for part in _cut_long_space(text):
            ranks = self._engine.encode_ordinary(part)
            ids += ranks if self._ids is None else map(self._ids.__getitem__, ranks)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises OptionError for an id that is not in the vocabulary, and OptionTypeError for
        anything but integers.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, UTF-8 or not; raises as `decode` does."""
        if isinstance(ids, (str, bytes, bytearray)):
            raise OptionTypeError(f"ids must be integers, not {type(ids).__name__}")
        result = b""
        try:
            rest = map(operator.index, ids)
            # By parts, so that range(2**40) ends at the first id that is none.
            while numbers := list(itertools.islice(rest, _DECODE_PART)):
                if min(numbers) < 0 or max(numbers) >= self.n_vocab:
                    for id in numbers:
                        self._check_id(id)
                result += b"".join(map(self._bytes_of, numbers))
        except TypeError as error:
            raise OptionTypeError(f"ids must be an iterable of integers: {error}") from None
        return result

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, perhaps only part of a character; raises as `decode` does."""
        try:
            number = operator.index(id)
        except TypeError:
            raise OptionTypeError(f"an id must be an integer, not {type(id).__name__}") from None
        self._check_id(number)
        return self._bytes_of(number)

    def _bytes_of(self, id: int) -> bytes:
        return self._bytes[id]

    def _check_id(self, id: int) -> None:
        if not 0 <= id < self.n_vocab:
            raise OptionError(
                f"id {id} is not in the vocabulary, whose ids are 0 to {self.n_vocab - 1}"
            )


class MissingTokenizer:
    """Stands where a checkpoint has no tokenizer: ids work, text is a clear error."""

    eot_id: None = None
    special_tokens: Mapping[str, int] = MappingProxyType({})

    def __repr__(self) -> str:
        """That there is none."""
        return "<no tokenizer: token ids only>"

    def __init__(self, reason: str, *, n_vocab: int = 0) -> None:
        """`reason` says what was looked for and where; `n_vocab` is the model's."""
        self.reason = reason
        self.n_vocab = n_vocab

    def encode(self, text: str, *, special: bool = True) -> NoReturn:
        """Raise TokenizerError, as every method does."""
        raise TokenizerError(
            f"no tokenizer: {self.reason}; pass token ids instead of text, or put the"
            " vocabulary's vocab.json and merges.txt beside the weights"
        )

    def decode(self, ids: Iterable[int]) -> NoReturn:
        """Raise TokenizerError."""
        self.encode("")

    decode_bytes = decode

    def token_bytes(self, id: int) -> NoReturn:
        """Raise TokenizerError."""
        self.encode("")


class _HasTokenBytes(Protocol):
    def token_bytes(self, id: int, /) -> bytes: ...


class StreamDecoder:
    """Decodes a stream of ids into text as it comes, never half a character.

    All that `push` returned and then what `finish` returns is `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: _HasTokenBytes) -> None:
        """Any object with a method `token_bytes` will do."""
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_bytes = 0

    def push(self, id: int, end: int | None = None) -> str:
        """The text that is complete with this id, perhaps empty; raises as `token_bytes`.

        end is where, in bytes of all ids, the text ends: what lies beyond is left out.
        """
        new = self._token_bytes(id)
        if end is not None:
            new = new[: max(end - self._n_bytes, 0)]
        self._n_bytes += len(new)
        return self._decoder.decode(new)

    def finish(self) -> str:
        """What is left: U+FFFD for a character cut short, else empty. Then all begins anew."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        self._n_bytes = 0
        return rest


def check_text(text: str) -> None:
    if not isinstance(text, str):
        raise OptionTypeError(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at {error.start};"
            " it stands for no character, so the text has no UTF-8 bytes to encode"
        ) from None


def _cut_long_space(text: str) -> Iterator[str]:
    """Cut `text` where GPT-2's splitting cuts it too, so that no part is hard to split.

    A run of white space is one piece up to its last character, which goes with what follows.
    """
    at = 0
    for match in _LONG_SPACE.finditer(text):
        end = match.end() if match.end() == len(text) else match.end() - 1
        yield text[at : match.start()]
        yield text[match.start() : end]
        at = end
    if at < len(text):
        yield text[at:] if at else text


def _read_text(path: Path) -> str:
    """The file's text; raise TokenizerError or CheckpointNotFoundError if it cannot be had."""
    with open_regular(path, TokenizerError) as file:
        try:
            data = file.read(MAX_FILE_BYTES + 1) or b""
        except OSError as error:
            raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise TokenizerError(f"{path}: expected a vocabulary, at most {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 at byte {error.start}") from None


def gpt2_files() -> tuple[dict[str, int], Path]:
    """GPT-2's own vocabulary, as a vocab.json has it, and its file of merges."""
    rank = _Merges(_read_merges(_GPT2_MERGES), str(_GPT2_MERGES)).rank
    return {**rank, END_OF_TEXT: len(rank)}, _GPT2_MERGES


def _read_merges(path: Path) -> Iterator[tuple[str, str]]:
    """The pairs of a merges.txt in order; raise TokenizerError where a line is none."""
    # Not splitlines: only a line feed ends a line here.
    lines = _read_text(path).rstrip("\r\n").split("\n")
    for number, line in enumerate(lines, 1):
        if number == 1 and (line.startswith("#version") or not line):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{path}, line {number}: expected two tokens with one space between them,"
                f" found {show(line)}"
            )
        yield left, right


def _read_vocab(path: Path) -> dict[str, int]:
    """The entries of a vocab.json, ids without gaps; raise TokenizerError otherwise."""
    vocab = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError)
    by_id: dict[int, str] = {}
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < len(vocab):
            raise TokenizerError(
                f"{path}: the id of {show(token)} is {show(id)}; expected an integer from 0 to"
                f" {len(vocab) - 1}, as there are {len(vocab)} tokens and no id may be left out"
            )
        if by_id.setdefault(id, token) != token:
            raise TokenizerError(
                f"{path}: {show(by_id[id])} and {show(token)} have the same id, {id}"
            )
    return vocab


def _check_added(added: Iterable[AddedToken], vocab: Mapping[str, int], source: str) -> None:
    """Raise TokenizerError if an added token's id is another's, or is far from all others."""
    by_id = {id: token for token, id in vocab.items()}
    for number, token in enumerate(added):
        if by_id.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{source}: {show(by_id[token.id])} and the added token {show(token.content)} have"
                f" the same id, {token.id}"
            )
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(
                f"{source}: {show(token.content)} has the id {vocab[token.content]}, and as an"
                f" added token {token.id}"
            )
        if token.id > len(vocab) + MAX_GAP + number:
            raise TokenizerError(
                f"{source}: the added token {show(token.content)} has the id {token.id}, far beyond"
                f" the vocabulary's {len(vocab)}"
            )


def _check_others(others: Mapping[str, int], vocab_json: str, merges_txt: str) -> None:
    """Raise TokenizerError if an entry that no merge makes cannot be a special token."""
    for token, id in others.items():
        # Characters that GPT-2's alphabet shifts away from their byte, such as the space's,
        # betray a token of ordinary text: its merge is what is missing.
        if all(char in BYTE_ALPHABET for char in token) and any(ord(char) > 255 for char in token):
            raise TokenizerError(
                f"{vocab_json}: no merge in {merges_txt} makes {show(token)} (id {id}); expected a"
                " merge for each token but special ones: are the two of the same vocabulary?"
            )
        if not token:
            raise TokenizerError(f"{vocab_json}: the token of id {id} is empty")
