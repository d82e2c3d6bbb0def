"""Text to token ids and back: GPT-2's byte-level BPE, with added tokens, from local files."""

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
from gpt2c.checks.untrusted import open_regular, read_json_object, show, show_list
from gpt2c.config import MAX_SIZE
from gpt2c.errors import OptionError, OptionTypeError, TokenizerError, TokenizerWarning, warn
from gpt2c.text.added_tokens import (
    PLAIN,
    AddedToken,
    AddedTokens,
    TokenizerConfig,
    read_tokenizer_config,
)
from gpt2c.text.bpe import BYTE_ALPHABET, Model, Rules, TiktokenModel, is_of_bytes, model_of
from gpt2c.text.bpe import Merges as _Merges
from gpt2c.text.special_tokens import END_OF_TEXT, known_ids

__all__ = ["END_OF_TEXT", "MissingTokenizer", "StreamDecoder", "Tokenizer"]

_GPT2_MERGES = Path(__file__).parents[1] / "data" / "gpt2" / "vocab.bpe"
_DECODE_PART = 65536  # ids
MAX_GAP = 65536  # ids that may be left free before those of added tokens
MAX_FILE_BYTES = 1 << 26  # GPT-2's own vocab.json has 1 MB; far beyond it is not a vocabulary
GPT2_SOURCE: Final = "GPT-2's own vocabulary, which is part of gpt2c"
_PLAIN_RULES: Final = Rules()
_ADVICE: Final = (
    "pass token ids instead of text, or put the vocabulary's vocab.json and merges.txt beside the "
    "weights, or name its file with tokenizer="
)


class Tokenizer:
    """A byte-level BPE vocabulary: `encode` text to ids, `decode` ids to text.

    Nothing is ever fetched. Instances do not change and may be used by several threads.
    """

    n_vocab: int  # the number of ids, which are 0 to n_vocab - 1
    eot_id: int | None  # the id of <|endoftext|>; None where the vocabulary has none
    bos_id: int | None  # the BOS token that the files name; None without one
    prefix_ids: tuple[int, ...]  # put by encode before and after every text; usually empty
    suffix_ids: tuple[int, ...]
    special_tokens: Mapping[str, int]  # those that stand for themselves wherever a text has them
    source: str  # where the vocabulary came from, usually a path
    # Writes the vocabulary's files into a folder; None if there are no such files.
    write_files: Callable[[Path], None] | None = None

    def __init__(
        self,
        model: Model,
        added: Iterable[AddedToken],
        source: str,
        config: TokenizerConfig = PLAIN,
    ) -> None:
        """Private: use `gpt2`, `from_files` or `from_vocabulary`."""
        self._model, self.source = model, source
        by_content = {token.content: token for token in added}
        # Ids that encoding can produce decode to their bytes, even if they are also added tokens.
        spelled = dict(model.unused())
        spelled |= {token.id: token.content.encode() for token in by_content.values()}
        spelled.update(model.tokens())
        self.n_vocab = 1 + max(spelled, default=-1)
        self._bytes = [spelled.get(id, b"") for id in range(self.n_vocab)]
        self._added = AddedTokens(by_content.values())
        self._skipped = frozenset(t.id for t in by_content.values() if t.special)
        self.special_tokens = MappingProxyType({t.content: t.id for t in by_content.values()})
        self._name_special_tokens(config, self._id_of)
        self._add_prefix_space = config.add_prefix_space

    def _id_of(self, token: str) -> int | None:
        id = self.special_tokens.get(token)
        return self._model.id_of(token) if id is None else id

    def _name_special_tokens(
        self, config: TokenizerConfig, id_of: Callable[[str], int | None]
    ) -> None:
        """Set the ids with a role; a token that the vocabulary lacks gets no id."""
        end = id_of(config.eos_token or END_OF_TEXT)
        self.eot_id = id_of(END_OF_TEXT) if end is None else end
        self.bos_id = None if config.bos_token is None else id_of(config.bos_token)
        before, after = config.around
        self.prefix_ids = known_ids(before, id_of, self.n_vocab)
        self.suffix_ids = known_ids(after, id_of, self.n_vocab)

    def __repr__(self) -> str:
        """The sizes and the source, not the tokens."""
        return f"<gpt2c.Tokenizer n_vocab={self.n_vocab} eot_id={self.eot_id} from {self.source}>"

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
        model = TiktokenModel(merges, range(size))
        return cls(model, [AddedToken(END_OF_TEXT, size)], GPT2_SOURCE)

    @classmethod
    def from_files(cls, vocab_json: Path, merges_txt: Path) -> Tokenizer:
        """The vocabulary of a `vocab.json` and `merges.txt`, whatever its ids.

        Entries that are neither a single byte nor the result of a merge are special tokens; the
        folder's `tokenizer_config.json` and `added_tokens.json`, if present, add more. Raises
        TokenizerError, naming the file, if they cannot be read or do not fit each other;
        CheckpointNotFoundError if one is absent.
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
        pairs = list(pairs)
        model = model_of(vocab, pairs, sources, _PLAIN_RULES)
        _check_added(config.added, vocab, sources[0])
        reached = {*BYTE_ALPHABET, *(left + right for left, right in pairs)}
        declared = {token.content: token for token in config.added}
        others = [t for t in vocab if t not in reached and t not in declared]
        # A character that GPT-2's byte alphabet remaps, such as the space's, marks a token of
        # ordinary text: its merge is missing.
        unused = [t for t in others if not t or (is_of_bytes(t) and max(map(ord, t)) > 255)]
        if unused:
            warn(
                f"{sources[0]}: no merge in {sources[1]} makes {show_list(unused)}, so text never"
                " encodes to them: are the two of the same vocabulary?",
                TokenizerWarning,
            )
        added = {t: AddedToken(t, vocab[t]) for t in others if t not in unused} | declared
        if END_OF_TEXT in vocab:
            added.setdefault(END_OF_TEXT, AddedToken(END_OF_TEXT, vocab[END_OF_TEXT]))
        return cls(model, added.values(), sources[0], config)

    def encode(
        self, text: str, *, special: bool = True, add_special_tokens: bool = True
    ) -> list[int]:
        """The ids of `text`.

        A special token such as `<|endoftext|>` in the text becomes one id, unless `special` is
        False: then it is encoded as plain characters. Other added tokens are always one id.

        If the tokenizer's files ask for tokens before or after every text (`prefix_ids`,
        `suffix_ids`), they are added, unless `add_special_tokens` is False.

        Raises TokenizerError for a text with a lone surrogate, which has no bytes, and
        OptionTypeError for anything but a str.
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
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        With `skip_special_tokens` special tokens such as `<|endoftext|>` are left out.

        Raises OptionError for an id that is not in the vocabulary, and OptionTypeError for
        anything but integers.
        """
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        """The bytes of `ids`, UTF-8 or not; raises as `decode` does."""
        skipped = self._skipped if flag("skip_special_tokens", skip_special_tokens) else frozenset()
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
                result += b"".join(self._bytes_of(id) for id in numbers if id not in skipped)
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
    bos_id: None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, int] = MappingProxyType({})

    def __repr__(self) -> str:
        """States that there is no tokenizer, and why."""
        return f"<no tokenizer, token ids only: {self.reason}>"

    def __init__(self, reason: str, *, n_vocab: int = 0, advice: str = _ADVICE) -> None:
        """`reason` says what is wrong, `advice` what to do; `n_vocab` is the model's."""
        self.reason, self._advice = reason, advice
        self.n_vocab = n_vocab

    def encode(
        self, text: str, *, special: bool = True, add_special_tokens: bool = True
    ) -> NoReturn:
        """Raise TokenizerError, as every method does."""
        raise TokenizerError(f"no tokenizer: {self.reason}; {self._advice}")

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
    """GPT-2's own vocabulary, as in vocab.json, and the path of its merges file."""
    rank = _Merges(_read_merges(_GPT2_MERGES), str(_GPT2_MERGES)).rank
    return {**rank, END_OF_TEXT: len(rank)}, _GPT2_MERGES


def _read_merges(path: Path) -> Iterator[tuple[str, str]]:
    """The pairs of a merges.txt in order; raise TokenizerError where a line is none."""
    # Not splitlines: only a line feed ends a line here.
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
    """The entries of a vocab.json; raise TokenizerError for an invalid or duplicate id."""
    vocab = read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError, strict=True)
    check_ids(vocab, str(path))
    return vocab


def check_ids(vocab: Mapping[str, object], source: str) -> None:
    """Raise TokenizerError, naming `source`, unless ids are distinct and have no wide gaps."""
    limit = min(len(vocab) + MAX_GAP, MAX_SIZE)
    by_id: dict[int, str] = {}
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < limit:
            raise TokenizerError(
                f"{source}: the id of {show(token)} is {show(id)}; expected an integer from 0 to"
                f" {limit - 1}, as there are {len(vocab)} tokens"
            )
        if by_id.setdefault(id, token) != token:
            raise TokenizerError(
                f"{source}: {show(by_id[id])} and {show(token)} have the same id, {id}"
            )


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
