"""Tokenizers: GPT-2's byte-level BPE with added tokens, read from local files."""

from __future__ import annotations

import codecs
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn, Protocol

from gpt2c.checks.options import flag
from gpt2c.checks.untrusted import read_json_object, read_whole, show, show_list
from gpt2c.config import MAX_SIZE
from gpt2c.errors import OptionError, OptionTypeError, TokenizerError, TokenizerWarning, warn
from gpt2c.text.added_tokens import (
    DEFAULT_CONFIG,
    AddedToken,
    AddedTokens,
    TokenizerConfig,
    read_tokenizer_config,
)
from gpt2c.text.bpe import (
    BYTE_ALPHABET,
    GPT2_MERGES,
    BPEOptions,
    Merges,
    PairMerger,
    TiktokenModel,
    TokenizerModel,
    is_in_byte_alphabet,
    make_bpe_model,
)
from gpt2c.text.special_tokens import END_OF_TEXT, MAX_FILE_BYTES, known_ids

__all__ = ["END_OF_TEXT", "MissingTokenizer", "StreamDecoder", "Tokenizer"]

_DECODE_CHUNK = 65536  # ids decoded at a time
MAX_UNUSED_IDS = 65536  # the max number of ids below a vocabulary's largest id that no token has
GPT2_SOURCE: Final = "GPT-2's own vocabulary, which is part of gpt2c"
_ADVICE: Final = (
    "put the vocabulary's vocab.json and merges.txt beside the weights, or name its file with "
    "tokenizer="
)


class Tokenizer:
    """A byte-level BPE vocabulary: `encode` text to ids, `decode` ids to text.

    A tokenizer is immutable, never downloads anything, and may be used by several threads.
    """

    n_vocab: int  # ids are 0 to n_vocab - 1
    # The id of the EOS token: the one that the tokenizer's files name, else <|endoftext|>. None if
    # the vocabulary has neither.
    eot_id: int | None
    bos_id: int | None  # the id of the BOS token that the tokenizer's files name, if any
    prefix_ids: tuple[int, ...]  # ids that encode puts before every text; usually empty
    suffix_ids: tuple[int, ...]  # ids that encode puts after every text; usually empty
    special_tokens: Mapping[str, int]  # the id of each added token, which encode matches verbatim
    special_ids: frozenset[int]  # the ids that decode leaves out with skip_special_tokens
    source: str  # where the vocabulary comes from, usually a path
    is_byte_level: bool  # whether the tokens are those of a byte-level BPE, which holds any text
    # Writes the vocabulary's files into a folder; None if the vocabulary was not read from files.
    write_files: Callable[[Path], None] | None = None

    def __init__(
        self,
        model: TokenizerModel,
        added: Iterable[AddedToken],
        source: str,
        config: TokenizerConfig = DEFAULT_CONFIG,
    ) -> None:
        """Private: use `gpt2`, `from_files` or `from_vocabulary` instead."""
        self._model, self.source = model, source
        self.is_byte_level = isinstance(model, TiktokenModel | PairMerger)
        by_content = {token.content: token for token in added}
        # If a BPE token and an added token share an id, the id decodes to the BPE token.
        bytes_by_id = dict(model.unused())
        bytes_by_id |= {token.id: token.content.encode() for token in by_content.values()}
        bytes_by_id.update(model.tokens())
        self.n_vocab = 1 + max(bytes_by_id, default=-1)
        self._bytes = [bytes_by_id.get(id, b"") for id in range(self.n_vocab)]
        self._added = AddedTokens(by_content.values())
        self.special_ids = frozenset(t.id for t in by_content.values() if t.special)
        self.special_tokens = MappingProxyType({t.content: t.id for t in by_content.values()})
        self._set_bos_eos_and_template(config, self._id_of)
        self._add_prefix_space = config.add_prefix_space

    def _id_of(self, token: str) -> int | None:
        id = self.special_tokens.get(token)
        return self._model.id_of(token) if id is None else id

    def _set_bos_eos_and_template(
        self, config: TokenizerConfig, id_of: Callable[[str], int | None]
    ) -> None:
        """Set the BOS, EOS, prefix and suffix ids; ignore tokens that the vocabulary lacks.

        `id_of` returns the id of a token, or None.
        """
        eos_id = id_of(config.eos_token or END_OF_TEXT)
        self.eot_id = id_of(END_OF_TEXT) if eos_id is None else eos_id
        self.bos_id = None if config.bos_token is None else id_of(config.bos_token)
        before, after = config.template
        self.prefix_ids = known_ids(before, id_of, self.n_vocab)
        self.suffix_ids = known_ids(after, id_of, self.n_vocab)

    def __repr__(self) -> str:
        """The number of ids, the EOS id and the source."""
        return f"<gpt2c.Tokenizer n_vocab={self.n_vocab} eot_id={self.eot_id} from {self.source}>"

    @classmethod
    @functools.cache
    def gpt2(cls) -> Tokenizer:
        """Return GPT-2's own vocabulary of 50,257 tokens, which is part of the package.

        Raises TokenizerError or CheckpointNotFoundError if the installed package is damaged.
        """
        merges = _gpt2_merges()
        size = len(merges.ranks)
        if size != 50256:
            raise TokenizerError(f"{GPT2_MERGES}: found {size - 256} merges, expected 50000")
        model = TiktokenModel(merges, range(size))
        return cls(model, [AddedToken(END_OF_TEXT, size)], GPT2_SOURCE)

    @classmethod
    def from_files(cls, vocab_json: Path, merges_txt: Path) -> Tokenizer:
        """Read the vocabulary of a `vocab.json` and a `merges.txt`, with ids in any order.

        Entries that are neither a single byte nor the result of a merge are special tokens. The
        exception is an entry with a BPE character such as "Ġ", which is a space: it is never used,
        and a TokenizerWarning says so. The folder's `tokenizer_config.json` and
        `added_tokens.json`, if present, add more tokens.

        Raises TokenizerError, naming the file, if a file cannot be read or the two files do not
        match; CheckpointNotFoundError if a file is missing.
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
        config: TokenizerConfig = DEFAULT_CONFIG,
    ) -> Tokenizer:
        """Return the tokenizer of a vocabulary and its merges, `pairs`; see `from_files`.

        `sources` are the names of the vocabulary and of the merges in messages.

        Raises TokenizerError if the vocabulary, the merges and the added tokens do not match.
        """
        pairs = list(pairs)
        model = make_bpe_model(vocab, pairs, sources, BPEOptions())
        _check_added(config.added, vocab, sources[0])
        reachable = {*BYTE_ALPHABET, *(left + right for left, right in pairs)}
        declared = {token.content: token for token in config.added}
        others = [t for t in vocab if t not in reachable and t not in declared]
        # A token in the byte alphabet with a character beyond Latin-1, such as the one for a space,
        # is ordinary text whose merge is missing, not a special token.
        unused = [t for t in others if not t or (is_in_byte_alphabet(t) and max(map(ord, t)) > 255)]
        if unused:
            warn(
                f"{sources[0]}: no merge in {sources[1]} makes {show_list(unused)}, so text never"
                " encodes to them: are both files of the same vocabulary?",
                TokenizerWarning,
            )
        added = {t: AddedToken(t, vocab[t]) for t in others if t not in unused} | declared
        if END_OF_TEXT in vocab:
            added.setdefault(END_OF_TEXT, AddedToken(END_OF_TEXT, vocab[END_OF_TEXT]))
        return cls(model, added.values(), sources[0], config)

    def encode(
        self, text: str, *, special: bool = True, add_special_tokens: bool = True
    ) -> list[int]:
        """Return the ids of `text`.

        A special token such as `<|endoftext|>` in the text becomes one id; with `special=False` it
        is encoded as plain characters. Other added tokens always become one id.

        The tokens that the tokenizer's files put around every text (`prefix_ids`, `suffix_ids`) are
        added, unless `add_special_tokens` is False.

        Raises TokenizerError if the text has a lone surrogate, which has no UTF-8 bytes, or a
        character that the vocabulary cannot encode; OptionTypeError if it is not a str.
        """
        check_text(text)
        ids = list(self.prefix_ids) if flag("add_special_tokens", add_special_tokens) else []
        for plain, id in self._added.split(text, flag("special", special)):
            if self._add_prefix_space and plain and plain[0] != " ":
                plain = " " + plain
            self._model.encode(plain, ids)
            if id is not None:
                ids.append(id)
        if add_special_tokens:
            ids += self.suffix_ids
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`; bytes that are not valid UTF-8 become U+FFFD.

        `skip_special_tokens` leaves out special tokens such as `<|endoftext|>`.

        Raises OptionError if an id is not in the vocabulary, and OptionTypeError if `ids` are not
        integers.
        """
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        """Return the bytes of `ids`, valid UTF-8 or not; raises as `decode` does."""
        skipped = (
            self.special_ids if flag("skip_special_tokens", skip_special_tokens) else frozenset()
        )
        if isinstance(ids, (str, bytes, bytearray)):
            raise OptionTypeError(f"ids must be integers, not {type(ids).__name__}")
        result = b""
        try:
            rest = map(operator.index, ids)
            # Decode in chunks, so that range(2**40) fails at its first invalid id instead of
            # running out of memory.
            while numbers := list(itertools.islice(rest, _DECODE_CHUNK)):
                if min(numbers) < 0 or max(numbers) >= self.n_vocab:
                    for id in numbers:
                        self._check_id(id)
                result += b"".join(self._bytes_of(id) for id in numbers if id not in skipped)
        except TypeError as error:
            raise OptionTypeError(f"ids must be an iterable of integers: {error}") from None
        return result

    def token_bytes(self, id: int) -> bytes:
        """Return a token's bytes, which may be part of a character; raises as `decode` does."""
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
    """Stands for a checkpoint's missing tokenizer: every method raises TokenizerError."""

    eot_id: None = None
    bos_id: None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, int] = MappingProxyType({})

    def __repr__(self) -> str:
        """The reason why there is no tokenizer."""
        return f"<no tokenizer, token ids only: {self.reason}>"

    def __init__(self, reason: str, *, n_vocab: int = 0, advice: str = _ADVICE) -> None:
        """`reason` says what is wrong, and `advice` says how to fix it.

        `n_vocab` is the size of the model's vocabulary.
        """
        self.reason, self._advice = reason, advice
        self.n_vocab = n_vocab

    def encode(
        self, text: str, *, special: bool = True, add_special_tokens: bool = True
    ) -> NoReturn:
        """Raise TokenizerError."""
        raise TokenizerError(
            f"no tokenizer: {self.reason}; pass token ids instead of text, or {self._advice}"
        )

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> NoReturn:
        """Raise TokenizerError."""
        self.encode("")

    decode_bytes = decode

    def token_bytes(self, id: int) -> NoReturn:
        """Raise TokenizerError."""
        self.encode("")


class _HasTokenBytes(Protocol):
    def token_bytes(self, id: int, /) -> bytes: ...


class StreamDecoder:
    """Decodes ids to text one by one, and never returns part of a character.

    Joined, the texts that `push` and `finish` return equal `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: _HasTokenBytes) -> None:
        """`tokenizer` may be any object with a method `token_bytes`."""
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_bytes = 0

    def push(self, id: int, end: int | None = None) -> str:
        """Return the text that this id completes, which may be empty; raises as `token_bytes` does.

        `end`, if given, is the max length of the whole text in bytes; later bytes are dropped.
        """
        new = self._token_bytes(id)
        if end is not None:
            new = new[: max(end - self._n_bytes, 0)]
        self._n_bytes += len(new)
        return self._decoder.decode(new)

    def finish(self) -> str:
        """Return U+FFFD for an incomplete last character, else ""; reset the decoder."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        self._n_bytes = 0
        return rest


def check_text(text: str) -> None:
    """Raise OptionTypeError unless `text` is a str, TokenizerError if it has a lone surrogate."""
    if not isinstance(text, str):
        raise OptionTypeError(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character"
            f" {error.start}; a surrogate has no UTF-8 bytes: remove or replace it"
        ) from None


def _read_text(path: Path) -> str:
    """Read a UTF-8 file; raise TokenizerError or CheckpointNotFoundError if that fails."""
    try:
        return read_whole(path, limit=MAX_FILE_BYTES, error=TokenizerError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 at byte {error.start}") from None


def gpt2_vocab_and_merges() -> tuple[dict[str, int], Path]:
    """Return GPT-2's own vocabulary, as in its vocab.json, and the path of its merges file."""
    ranks = _gpt2_merges().ranks
    return {**ranks, END_OF_TEXT: len(ranks)}, GPT2_MERGES


def _gpt2_merges() -> Merges:
    return Merges(_read_merges(GPT2_MERGES), str(GPT2_MERGES))


def _read_merges(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a merges.txt; raise TokenizerError if a line is not a pair."""
    # Do not use splitlines: it also splits at other line separators, which tokens may contain.
    lines = _read_text(path).rstrip("\r\n").split("\n")
    for number, line in enumerate(lines, 1):
        if line.startswith("#version") or (number == 1 and not line):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{path}, line {number}: expected two tokens with one space between them,"
                f" found {show(line)}"
            )
        yield left, right


def _read_vocab(path: Path) -> dict[str, int]:
    """Read a vocab.json; raise TokenizerError for an invalid or duplicate id."""
    vocab = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError, strict=True)
    check_ids(vocab, str(path))
    return vocab


def check_ids(vocab: Mapping[str, object], source: str) -> None:
    """Raise TokenizerError, naming `source`, unless the ids are distinct and without wide gaps."""
    limit = min(len(vocab) + MAX_UNUSED_IDS, MAX_SIZE)
    by_id: dict[int, str] = {}
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < limit:
            raise TokenizerError(
                f"{source}: the id of {show(token)} is {show(id)}; expected an integer from 0 to"
                f" {limit - 1}, because there are {len(vocab)} tokens"
            )
        if by_id.setdefault(id, token) != token:
            raise TokenizerError(
                f"{source}: {show(by_id[id])} and {show(token)} have the same id, {id}; expected"
                " distinct ids"
            )


def _check_added(added: Iterable[AddedToken], vocab: Mapping[str, int], source: str) -> None:
    """Raise TokenizerError if an added token's id belongs to another token or is far too large."""
    by_id = {id: token for token, id in vocab.items()}
    for number, token in enumerate(added):
        if by_id.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{source}: {show(by_id[token.id])} and the added token {show(token.content)} have"
                f" the same id, {token.id}"
            )
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(
                f"{source}: {show(token.content)} has the id {vocab[token.content]} in the"
                f" vocabulary, but the id {token.id} as an added token; expected the same id"
            )
        if token.id > len(vocab) + MAX_UNUSED_IDS + number:
            raise TokenizerError(
                f"{source}: the added token {show(token.content)} has the id {token.id}, which is"
                f" far beyond the vocabulary's {len(vocab)} tokens"
            )


def encode_part(tokenizer: Tokenizer | MissingTokenizer, text: str) -> list[int]:
    """Return the ids of a part of a text, without the prefix and suffix ids of a whole text."""
    if getattr(tokenizer, "prefix_ids", ()) or getattr(tokenizer, "suffix_ids", ()):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)
