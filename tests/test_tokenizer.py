"""Encoding and decoding, compared with published vectors, HF tokenizers and a plain slow BPE."""

from __future__ import annotations

import functools
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from conftest import FIXTURES, in_threads, shared_file
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2c.errors import (
    CheckpointNotFoundError,
    OptionError,
    OptionTypeError,
    TokenizerError,
    TokenizerWarning,
)
from gpt2c.text.bpe import GPT2_MERGES, Merges, PairMerger, TiktokenModel
from gpt2c.text.tokenizer import MissingTokenizer, StreamDecoder, Tokenizer

END = "<|endoftext|>"
GPT2_SPLIT = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


@functools.cache
def prose() -> Tokenizer:
    folder = shared_file("models/prose-21m")
    return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")


# ---- a plain slow BPE, and small vocabularies ----


def alphabet() -> list[str]:
    """Return GPT-2's character for each byte from 0 to 255."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = itertools.count(256)
    return [chr(byte) if byte in kept else chr(next(shifted)) for byte in range(256)]


ALPHABET = alphabet()


def slow_bpe(piece: str, merges: list[tuple[str, str]]) -> list[str]:
    """Split a piece, spelled in the byte alphabet, exactly as GPT-2's algorithm does."""
    tokens = list(piece)
    while True:
        found = [pair for pair in itertools.pairwise(tokens) if pair in merges]
        if not found:
            return tokens
        pair = min(found, key=merges.index)
        at = 0
        while at < len(tokens) - 1:
            if (tokens[at], tokens[at + 1]) == pair:
                tokens[at : at + 2] = ["".join(pair)]
            at += 1


def slow_encode(text: str, merges: list[tuple[str, str]], vocab: dict[str, int]) -> list[int]:
    pieces = ("".join(ALPHABET[byte] for byte in p.encode()) for p in GPT2_SPLIT.findall(text))
    return [vocab[token] for piece in pieces for token in slow_bpe(piece, merges)]


def train(words: list[str], count: int) -> list[tuple[str, str]]:
    """Train a BPE: merge the most frequent pair, repeatedly."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(p for word in words for p in itertools.pairwise(slow_bpe(word, merges)))
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
    return merges


def random_merges(source: random.Random, letters: str, count: int) -> list[tuple[str, str]]:
    """Return random merges with distinct results; training would often not yield such a list."""
    tokens, merges = list(letters), []
    for _ in range(count):
        left, right = source.choice(tokens), source.choice(tokens)
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append((left, right))
    return merges


def shuffled_vocab(
    merges: list[tuple[str, str]], source: random.Random, specials: tuple[str, ...] = (END,)
) -> dict[str, int]:
    tokens = [*ALPHABET, *(left + right for left, right in merges), *specials]
    ids = list(range(len(tokens)))
    source.shuffle(ids)
    return dict(zip(tokens, ids, strict=True))


def write_files(
    folder: Path, vocab: object, merges: list[tuple[str, str]] | str
) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(vocab) if not isinstance(vocab, str) else vocab
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    if not isinstance(merges, str):
        merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_bytes(merges.encode())
    return folder / "vocab.json", folder / "merges.txt"


# ---- GPT-2's own vocabulary ----


@pytest.mark.parametrize("case", fixture("tokenizer_vectors.json")["cases"], ids=lambda c: None)
def test_published_vectors(case: dict[str, Any]) -> None:
    tokenizer = Tokenizer.gpt2()
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["text"]


def test_there_are_49_published_vectors() -> None:
    assert len(fixture("tokenizer_vectors.json")["cases"]) == 49


def test_same_ids_as_hf_tokenizers() -> None:
    cases = fixture("tokenizer_hf.json")
    for text, ids in zip(cases["texts"], cases["gpt2"], strict=True):
        assert Tokenizer.gpt2().encode(text) == ids, text
        assert Tokenizer.gpt2().decode(ids) == text


def test_same_ids_as_hf_tokenizers_with_ids_in_another_order_than_merges() -> None:
    cases = fixture("tokenizer_hf.json")
    for text, ids in zip(cases["texts"], cases["prose-21m"], strict=True):
        assert prose().encode(text) == ids, text
        assert prose().decode(ids) == text


def test_properties_of_gpt2s_tokenizer() -> None:
    tokenizer = Tokenizer.gpt2()
    assert tokenizer is Tokenizer.gpt2()
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (50257, 50256)
    assert tokenizer.special_tokens == {END: 50256}
    assert tokenizer.token_bytes(0) == b"!"
    assert tokenizer.token_bytes(220) == b" "
    assert tokenizer.token_bytes(50256) == END.encode()


def test_packaged_vocabulary_equals_openais() -> None:
    folder = shared_file("tokenizer")
    theirs = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    for token, id in theirs.items():
        data = bytes(map(ALPHABET.index, token)) if token != END else END.encode()
        assert Tokenizer.gpt2().token_bytes(id) == data
    assert len(theirs) == Tokenizer.gpt2().n_vocab
    # The merges pass the check that gpt2() skips because it takes 0.1 s.
    read = Tokenizer.from_files(folder / "encoder.json", folder / "vocab.bpe")
    assert (read.n_vocab, read.special_tokens) == (50257, {END: 50256})


@pytest.mark.parametrize(
    ("name", "count"), [("wikitext-2-raw-test.txt", 287_644), ("tiny-shakespeare.txt", 338_025)]
)
def test_token_counts_of_whole_texts(name: str, count: int) -> None:
    text = (shared_file("eval") / name).read_bytes().decode("utf-8")
    for tokenizer in (Tokenizer.gpt2(), prose()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) == count or tokenizer is not Tokenizer.gpt2()


def test_special_tokens_in_a_text() -> None:
    tokenizer = Tokenizer.gpt2()
    assert tokenizer.encode(f"a{END}b{END}") == [64, 50256, 65, 50256]
    assert tokenizer.encode(END, special=False) == [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.encode(f"a  {END}  b") == [64, 220, 220, 50256, 220, 275]
    assert tokenizer.encode(f"a  {END}", special=False)[:2] == [64, 220]


# ---- vocabularies from files ----


@pytest.mark.parametrize("seed", range(6))
def test_trained_vocabulary_with_ids_in_any_order(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    words = ["".join(source.choices("abcĠé", k=source.randrange(1, 9))) for _ in range(60)]
    merges = train(words, 40)
    vocab = shuffled_vocab(merges, source, (END, "<pad>", "é字"))
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, merges))
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (len(vocab), vocab[END])
    assert tokenizer.special_tokens == {key: vocab[key] for key in (END, "<pad>", "é字")}
    for _ in range(60):
        text = "".join(source.choices("abc é\n'1s", k=source.randrange(40)))
        ids = tokenizer.encode(text)
        assert ids == slow_encode(text, merges, vocab)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a<pad>é字") == [vocab["a"], vocab["<pad>"], vocab["é字"]]
    assert tokenizer.decode([vocab["é字"], vocab["é"]]) == "é字\ufffd"


def test_tiktoken_is_used_only_where_it_follows_the_merges(tmp_path: Path) -> None:
    """tiktoken is used if and only if each merged token, encoded alone, gives that token.

    In that case it encodes every text as GPT-2's algorithm does.
    """
    source = random.Random(7)
    n_tiktoken = n_merger = 0
    for number in range(400):
        merges = random_merges(source, "ab", source.randrange(1, 9))
        vocab = shuffled_vocab(merges, source)
        files = write_files(tmp_path / str(number), vocab, merges)
        if any(slow_bpe(a + b, merges) != [a + b] for a, b in merges):
            n_merger += 1
            assert isinstance(Tokenizer.from_files(*files)._model, PairMerger)
            continue
        n_tiktoken += 1
        tokenizer = Tokenizer.from_files(*files)
        assert isinstance(tokenizer._model, TiktokenModel)
        for _ in range(20):
            text = "".join(source.choices("ab", k=source.randrange(1, 30)))
            assert tokenizer.encode(text) == slow_encode(text, merges, vocab), (merges, text)
    assert min(n_tiktoken, n_merger) > 50


def gpt2_pairs() -> list[tuple[str, str]]:
    lines = GPT2_MERGES.read_text(encoding="utf-8").split("\n")[1:-1]
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]


def test_the_order_of_gpt2s_own_merges() -> None:
    """Files with GPT-2's own merges are read without this check, which they pass."""
    pairs = gpt2_pairs()
    assert len(pairs) == 50000
    Merges(pairs, "GPT-2's merges").check_order()


@pytest.mark.parametrize("are_gpt2s", [True, False])
def test_only_gpt2s_own_merges_are_not_checked(
    are_gpt2s: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = gpt2_pairs()
    vocab = Merges(pairs, "GPT-2's merges").ranks
    if not are_gpt2s:
        pairs[-2:] = reversed(pairs[-2:])
    checked: list[Merges] = []
    monkeypatch.setattr(Merges, "check_order", lambda merges: checked.append(merges))
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, pairs))
    assert isinstance(tokenizer._model, TiktokenModel)
    assert len(checked) == (0 if are_gpt2s else 1)


def test_long_pieces_merge_like_short_ones(tmp_path: Path) -> None:
    """tiktoken uses another algorithm for long pieces."""
    source = random.Random(3)
    merges = train(["".join(source.choices("abc", k=12)) for _ in range(40)], 30)
    vocab = shuffled_vocab(merges, source)
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, merges))
    for text in ["a" * 1501, "".join(source.choices("ab", k=1500)), "abc" * 500]:
        assert tokenizer.encode(text) == slow_encode(text, merges, vocab)


def test_the_longest_special_token_matches(tmp_path: Path) -> None:
    vocab = shuffled_vocab([], random.Random(0), ("<x", "<x>", END))
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, []))
    assert tokenizer.encode("<x><x") == [vocab["<x>"], vocab["<x"]]


def test_vocabulary_without_end_of_text(tmp_path: Path) -> None:
    vocab = shuffled_vocab([], random.Random(0), ())
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, ""))
    assert (tokenizer.n_vocab, tokenizer.eot_id, dict(tokenizer.special_tokens)) == (256, None, {})
    assert tokenizer.encode(END) == [vocab[char] for char in END]


def test_line_ends_of_other_systems(tmp_path: Path) -> None:
    merges = [("a", "b"), ("ab", "c")]
    vocab = shuffled_vocab(merges, random.Random(0))
    for text in ("#version: 0.2\r\na b\r\nab c\r\n", "a b\nab c", "\na b\nab c\n\n"):
        tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, text))
        assert tokenizer.encode("abc") == [vocab["abc"]]


GOOD = shuffled_vocab([("a", "b")], random.Random(1))
LAST = len(GOOD) - 1


def changed(**entries: object) -> dict[str, object]:
    return {**GOOD, **entries}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (GOOD, "a b\nab bc\nb c\n", "merge 2 joins 'ab' and 'bc', but .* has no token 'bc'"),
        (GOOD, "a b\nb c\n", "merge 2 joins 'b' and 'c', but .* has no token 'bc'"),
        (GOOD, "a b\nabc\n", "line 2: expected two tokens"),
        (GOOD, "a b\n\nb c\n", "line 2: expected two tokens"),
        (GOOD, "a b\na  b\n", "line 2: expected two tokens"),
        (GOOD, "a b\na b c\n", "line 2: expected two tokens"),
        (GOOD, "a 字\n", "has no token '字'"),
        (changed(x=10**6), "a b\n", "the id of 'x' is 1000000; expected an integer from 0 to 65"),
        (changed(x=True), "a b\n", "the id of 'x' is True"),
        (changed(x=-1), "a b\n", "the id of 'x' is -1"),
        (changed(x=1.0), "a b\n", "the id of 'x' is 1.0"),
        (changed(x="1"), "a b\n", "the id of 'x' is '1'"),
        (changed(new=3), "a b\n", "have the same id, 3"),
        ('{"a": 0, "a": 1}', "a b\n", "key 'a' twice"),
        ('{"a": 0', "a b\n", "is not JSON"),
        ("[" * 100_000, "a b\n", "nested"),
        ("[]", "a b\n", "expected an object"),
        ('{"\\ud800": 0}', "a b\n", "surrogate"),
        ("{}", "a b\n", "has no token 'a'"),
    ],
)
def test_inconsistent_files(tmp_path: Path, vocab: object, merges: str, message: str) -> None:
    files = write_files(tmp_path, vocab, merges)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_files(*files)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("token", ["Ġthe", ""])
def test_a_token_that_no_merge_makes_is_a_warning(tmp_path: Path, token: str) -> None:
    """Such a vocabulary loads, as in the tokenizers package, with a warning."""
    files = write_files(tmp_path, {**GOOD, token: LAST + 1}, "a b\n")
    with pytest.warns(
        TokenizerWarning, match=rf"no merge in .*txt makes '{token}', so text never encodes"
    ):
        tokenizer = Tokenizer.from_files(*files)
    assert tokenizer.encode(" the ab") == [GOOD[t] for t in ("Ġ", "t", "h", "e", "Ġ", "ab")]
    assert tokenizer.decode([LAST + 1]) == token.replace("Ġ", " ")


def test_gaps_between_ids(tmp_path: Path) -> None:
    vocab = {token: 2 * id for token, id in GOOD.items()}
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, "a b\n"))
    assert tokenizer.n_vocab == 2 * LAST + 1
    assert tokenizer.encode("abc") == [vocab["ab"], vocab["c"]]
    assert tokenizer.decode([vocab["ab"], 1, vocab["c"]]) == "abc"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    vocab, merges = write_files(tmp_path, GOOD, "a b\n")
    Tokenizer.from_files(vocab, merges)
    with pytest.raises(CheckpointNotFoundError, match=r"none\.txt"):
        Tokenizer.from_files(vocab, tmp_path / "none.txt")
    with pytest.raises(TokenizerError):
        Tokenizer.from_files(vocab, tmp_path)
    merges.write_bytes(b"a b\n\xff b\n")
    with pytest.raises(TokenizerError, match="not UTF-8 at byte 4"):
        Tokenizer.from_files(vocab, merges)


# ---- encoding ----

SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u3000"
TEXTS = st.lists(
    st.one_of(
        st.text(),
        st.text("abcXYZ' 12!?.\n\t", max_size=40),
        st.builds(lambda c, n: c * n, st.sampled_from(SPACES + "a1!é😀"), st.integers(1, 600)),
        st.sampled_from([END, "<|endoftext", "'ll", "\x1c", "\u200d"]),
    ),
    max_size=6,
).map("".join)


@given(TEXTS, st.booleans())
@example(END, True)
@example("\r\n" * 400 + "x", True)
def test_round_trip(text: str, special: bool) -> None:
    for tokenizer in (Tokenizer.gpt2(), small()):
        ids = tokenizer.encode(text, special=special)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(np.array(ids, dtype=np.int64)) == text.encode()
        assert (tokenizer.eot_id in ids) == (special and END in text)


@functools.cache
def small() -> Tokenizer:
    """Return a tokenizer of 300 tokens with shuffled ids."""
    import tempfile

    source = random.Random(5)
    merges = train(["".join(source.choices("abcXĠĊ1!", k=9)) for _ in range(60)], 43)
    vocab = shuffled_vocab(merges, source)
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_files(*write_files(Path(folder), vocab, merges))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.text(SPACES, max_size=3), st.integers(0, 300)), max_size=4), st.data())
def test_long_white_space_is_split_like_gpt2(
    runs: list[tuple[str, int]], data: st.DataObject
) -> None:
    """The ids of a text are those of its pieces, each encoded alone."""
    words = st.text("ab1!'s", max_size=3)
    text = "".join(run * n + data.draw(words) for run, n in runs)
    tokenizer = Tokenizer.gpt2()
    pieces = GPT2_SPLIT.findall(text)
    assert tokenizer.encode(text) == [i for piece in pieces for i in one_piece(piece)]


def test_separators_that_only_python_treats_as_white_space(tmp_path: Path) -> None:
    merges = [("Ġ", "Ĝ")]
    vocab = shuffled_vocab(merges, random.Random(0))
    tokenizer = Tokenizer.from_files(*write_files(tmp_path, vocab, merges))
    ids = tokenizer.encode(" " * 300 + "\x1ca")
    assert ids == [vocab["Ġ"]] * 299 + [vocab["ĠĜ"], vocab["a"]]


def one_piece(piece: str) -> list[int]:
    """Encode a single piece with GPT-2's vocabulary."""
    model: Any = Tokenizer.gpt2()._model
    return model._encoding._encode_single_piece(piece)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        " " * 10**6,
        " " * 10**6 + "a",
        "\n" * 10**6,
        "\n" * 10**6 + "a",
        "\t \n" * 333_333 + "a",
        "1" * 10**6,
        "'" * 10**6,
        "😀" * 250_000,
        "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=10**6)),
        END * 70_000,
        "<|endoftext" * 90_000,
    ],
    ids=lambda text: f"{text[:12]!a}",
)
def test_long_texts(text: str) -> None:
    """These must not panic, print, or take quadratic time, which would be hours."""
    for tokenizer in (Tokenizer.gpt2(), small()):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a"]])
def test_encode_refuses_other_types(text: Any) -> None:
    with pytest.raises(OptionTypeError, match="text must be a str"):
        Tokenizer.gpt2().encode(text)


@pytest.mark.parametrize("special", [True, False])
def test_lone_surrogates(special: bool) -> None:
    with pytest.raises(TokenizerError, match=r"U\+DC80, at character 2") as caught:
        Tokenizer.gpt2().encode("ab\udc80c", special=special)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(TokenizerError):
        Tokenizer.gpt2().encode("\ud83d\ude00")


# ---- decoding ----


def test_decode_replaces_invalid_utf8() -> None:
    tokenizer = Tokenizer.gpt2()
    ids = tokenizer.encode("😀")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode(ids[:1] + ids[:1] + [64]) == "\ufffd\ufffda"
    assert tokenizer.decode_bytes(ids[:1]) == "😀".encode()[:3]
    assert tokenizer.decode([50256]) == END


def test_decode_without_special_tokens(tmp_path: Path) -> None:
    ids = [64, 50256, 65]
    assert Tokenizer.gpt2().decode(ids) == f"a{END}b"
    assert Tokenizer.gpt2().decode(ids, skip_special_tokens=True) == "ab"
    assert Tokenizer.gpt2().decode_bytes(iter(ids), skip_special_tokens=True) == b"ab"
    with pytest.raises(OptionError, match="id 50257"):
        Tokenizer.gpt2().decode([50257], skip_special_tokens=True)
    with pytest.raises(OptionTypeError, match="skip_special_tokens"):
        Tokenizer.gpt2().decode(ids, skip_special_tokens="yes")  # type: ignore[arg-type]
    files = write_files(tmp_path, GOOD, "a b\n")
    added = {
        str(LAST + 1): {"content": "<s>", "special": True},
        str(LAST + 2): {"content": "<n>", "special": False},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.from_files(*files)
    assert tokenizer.decode(tokenizer.encode("a<s><n>b"), skip_special_tokens=True) == "a<n>b"


@pytest.mark.parametrize("id", [-1, 50257, 2**70])
def test_ids_outside_the_vocabulary(id: int) -> None:
    tokenizer = Tokenizer.gpt2()
    for call in (tokenizer.token_bytes, lambda i: tokenizer.decode([5, i])):
        with pytest.raises(OptionError, match=rf"id {id} .* 0 to 50256"):
            call(id)


@pytest.mark.parametrize("ids", [None, 5, "5", b"5", [1.0], ["1"], [[1]], np.array([1.5])])
def test_decode_refuses_other_types(ids: Any) -> None:
    with pytest.raises(OptionTypeError):
        Tokenizer.gpt2().decode(ids)


def test_token_bytes_refuses_other_types() -> None:
    with pytest.raises(OptionTypeError):
        Tokenizer.gpt2().token_bytes(1.0)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 299), max_size=30))
@example([])
def test_stream_of_any_ids(ids: list[int]) -> None:
    stream = StreamDecoder(small())
    for _ in range(2):  # finish() resets the decoder
        assert "".join(map(stream.push, ids)) + stream.finish() == small().decode(ids)


@given(st.text())
def test_stream_yields_only_whole_characters(text: str) -> None:
    stream, shown = StreamDecoder(Tokenizer.gpt2()), ""
    for id in Tokenizer.gpt2().encode(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert (shown, stream.finish()) == (text, "")


def test_stream_ending_inside_a_character() -> None:
    stream = StreamDecoder(Tokenizer.gpt2())
    first = Tokenizer.gpt2().encode("😀")[0]
    assert (stream.push(first), stream.finish(), stream.finish()) == ("", "\ufffd", "")


# ---- other behaviour ----


def test_missing_tokenizer() -> None:
    missing = MissingTokenizer("there is no vocab.json in /models/own", n_vocab=3)
    assert (missing.n_vocab, missing.eot_id, dict(missing.special_tokens)) == (3, None, {})
    calls: list[Any] = [
        lambda: missing.encode("a"),
        lambda: missing.decode([1]),
        lambda: missing.decode([1], skip_special_tokens=True),
        lambda: missing.decode_bytes([1]),
        lambda: missing.token_bytes(1),
        lambda: StreamDecoder(missing).push(1),
    ]
    for call in calls:
        with pytest.raises(TokenizerError, match="/models/own; pass token ids") as caught:
            call()
        assert "vocab.json and merges.txt" in str(caught.value)


def test_threads_encode_concurrently() -> None:
    texts = [f"{word} " * 2000 + END for word in ("alpha", "beta 12", "géant", "\n \n")]
    expected = [Tokenizer.gpt2().encode(text) for text in texts]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if Tokenizer.gpt2().encode(texts[index]) != expected[index]:
                wrong.append(index)

    in_threads(work, [n % 4 for n in range(8)])
    assert wrong == []


def test_import_is_light_and_encoding_is_offline_and_silent() -> None:
    code = (
        "import socket, sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "def refuse(*_, **__): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import gpt2c.text.tokenizer as t\n"
        "assert 'tiktoken' not in sys.modules and 'requests' not in sys.modules\n"
        "assert t.Tokenizer.gpt2().encode('Hello world') == [15496, 995]\n"
        "t.Tokenizer.gpt2().encode(' ' * 10**6 + 'a')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
