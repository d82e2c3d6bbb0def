"""tokenizer.json of a byte-level BPE: our own reader gives the ids of the tokenizers package."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import Tokenizer
from gpt2c.errors import TokenizerError, TokenizerWarning
from gpt2c.text.bpe import BYTE_ALPHABET, PairMerger, TiktokenModel
from gpt2c.text.tokenizer import StreamDecoder
from gpt2c.text.tokenizer_json import JsonTokenizer, read_tokenizer_json

tokenizers = pytest.importorskip("tokenizers")

ALPHABET = list(BYTE_ALPHABET)
PIECES = [
    "once", "upon", " a", "time", "aaaa", "abab", "ba", "<s>", "<pad>", "é", "éa", "<x", "<x>",
    "word", "words", " word ", "'s", "'ll", "1", "12", "½", " ", "  ", "\n", "\r\n", "\t", "\x85",
    "\u3000", "\x1c", "_", "日本", "😀", "\u0301", "\0", " " * 300, "!", "?!", "<0x61>", "#version",
    "x>",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join)


def added(id: int, content: str, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": id, "content": content, **dict.fromkeys(names, False), **flags}


def tokenizer_json(
    vocab: dict[str, int], merges: list[Any], tokens: Any = (), split: Any = None, **model: Any
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
           "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
           "ignore_merges": False, "vocab": vocab, "merges": merges}  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": list(tokens),
        "normalizer": None, "pre_tokenizer": {**byte_level, **(split or {})},
        "post_processor": None, "decoder": byte_level, "model": {**bpe, **model},
    }  # fmt: skip


def load_both(folder: Path, values: dict[str, Any]) -> tuple[Tokenizer, Any]:
    """Write tokenizer.json; load it with our own reader and with the package."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    ours = read_tokenizer_json(path)
    assert not isinstance(ours, JsonTokenizer)
    return ours, tokenizers.Tokenizer.from_file(str(path))


def trained(texts: list[str], size: int, alphabet: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Train a vocabulary and merges with the package."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


CORPUS = ["once upon a time there was a word, words; abab aaaa.", "été, l'été 12 é 日本"] * 9
TOKENS = [
    added(0, "<|endoftext|>", special=True),
    added(900, "<s>", special=True, lstrip=True),
    added(901, "<pad>", special=True, normalized=True),
    added(902, "word", single_word=True),
    added(903, "<x>", normalized=True),
    added(904, "<x", rstrip=True),
    added(905, "a", single_word=True, normalized=True),
    added(906, " wo", normalized=True),
    added(907, "éa"),
    added(908, "s>", special=True),
]


def _vocabulary(kind: str) -> dict[str, Any]:
    """Return a vocabulary as training makes it or as people write it by hand."""
    whole = trained(CORPUS, 330, ALPHABET)
    part = trained(CORPUS, 120, [])
    if kind == "whole":
        return tokenizer_json(*whole, TOKENS)
    if kind == "string merges":
        return tokenizer_json(whole[0], [" ".join(pair) for pair in whole[1]], TOKENS)
    if kind == "prefix":
        return tokenizer_json(*whole, TOKENS, {"add_prefix_space": True})
    if kind == "no regex":
        return tokenizer_json(*whole, TOKENS, {"use_regex": False})
    if kind == "part":
        return tokenizer_json(*part, TOKENS)
    if kind == "unk":
        return tokenizer_json(*part, TOKENS, unk_token="<|endoftext|>")
    if kind == "fuse":
        return tokenizer_json(*part, TOKENS, {"use_regex": False}, unk_token="a", fuse_unk=True)
    if kind == "ignore merges":
        vocab = {**whole[0], "aaaa": len(whole[0]), "日": len(whole[0]) + 1}
        return tokenizer_json(vocab, whole[1], TOKENS, ignore_merges=True)
    assert kind == "fallback"
    vocab = dict(part[0])
    for char in "!?1":  # byte tokens for characters that the vocabulary lacks
        vocab.setdefault(f"<0x{ord(char):02X}>", len(vocab))
    for byte in "ĉ".encode():  # the alphabet's character for the tab
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    return tokenizer_json(vocab, part[1], TOKENS, byte_fallback=True, unk_token="<|endoftext|>")


KINDS = [
    "whole", "string merges", "prefix", "no regex", "part", "unk", "fuse", "ignore merges",
    "fallback",
]  # fmt: skip


@functools.cache
def pair_of(kind: str) -> tuple[Tokenizer, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_both(Path(folder), _vocabulary(kind))


@settings(max_examples=150)
@given(text=TEXTS, special=st.booleans())
@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_the_package(kind: str, text: str, special: bool) -> None:
    ours, theirs = pair_of(kind)
    theirs.encode_special_tokens = not special
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenizerWarning)
        ids = ours.encode(text, special=special)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    decoder = StreamDecoder(ours)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == ours.decode(ids)
    # The package decodes an added token with é to the byte that é represents in the vocabulary.
    if "éa" not in text:
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip)


def test_tiktoken_runs_if_the_vocabulary_has_all_bytes() -> None:
    assert isinstance(pair_of("whole")[0]._model, TiktokenModel)
    assert isinstance(pair_of("part")[0]._model, PairMerger)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_ids_of_added_tokens(kind: str) -> None:
    """The package chooses the ids of added tokens itself and ignores those in the file."""
    ours, theirs = pair_of(kind)
    assert ours.n_vocab == theirs.get_vocab_size()
    for token in TOKENS:
        assert ours.special_tokens[token["content"]] == theirs.token_to_id(token["content"])


def test_merges_in_any_order_and_duplicates(tmp_path: Path) -> None:
    """Merge lists that training never yields, with several merges that make the same token."""
    source = random.Random(7)
    engines = set()
    for _ in range(300):
        tokens, merges = ["a", "b", "Ġ"], []
        for _ in range(source.randrange(1, 9)):
            left, right = source.choice(tokens), source.choice(tokens)
            tokens.append(left + right)
            merges.append([left, right])
        vocab = {token: id for id, token in enumerate(dict.fromkeys([*ALPHABET, *tokens]))}
        ours, theirs = load_both(tmp_path, tokenizer_json(vocab, merges))
        engines.add(type(ours._model))
        for _ in range(20):
            text = "".join(source.choices("ab ", k=source.randrange(1, 30)))
            assert ours.encode(text) == theirs.encode(text).ids, (merges, text)
    assert engines == {TiktokenModel, PairMerger}


@pytest.mark.parametrize("text", ["a" * 10**6, " " * 10**6 + "b", "ab" * 500_000, "é" * 300_000])
def test_long_texts(text: str) -> None:
    """The time is about linear in the length of the text; quadratic time would take hours."""
    ours, _ = pair_of("part")
    assert ours.decode(ours.encode(text)) == text


def test_one_warning_about_missing_bytes(tmp_path: Path) -> None:
    vocab, merges = trained(["once upon a time"], 60, [])
    for model, becomes in (({}, "are left out"), ({"unk_token": "o"}, "become 'o'")):
        ours, theirs = load_both(tmp_path, tokenizer_json(vocab, merges, **model))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ours.encode("once upon") == theirs.encode("once upon").ids
        with pytest.warns(
            TokenizerWarning, match=rf"no token for the byte 0x7a \('z'\).*{becomes}"
        ):
            assert ours.encode("once zz!") == theirs.encode("once zz!").ids
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ours.encode("!é") == theirs.encode("!é").ids


def test_a_missing_unknown_token(tmp_path: Path) -> None:
    ours, theirs = load_both(tmp_path, tokenizer_json({"a": 0}, [], unk_token="<unk>"))
    assert ours.encode("aa") == [0, 0]
    with pytest.raises(Exception, match="not found in the vocabulary"):
        theirs.encode("ab")
    with (
        pytest.warns(TokenizerWarning),
        pytest.raises(TokenizerError, match=r"json: the text has the byte 0x62, .* '<unk>'"),
    ):
        ours.encode("ab")


def test_missing_bytes_in_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    """Chapter 6 of the Hugging Face course makes such files, without an initial alphabet."""
    vocab, merges = trained(CORPUS, 120, [])
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    ours = Tokenizer.from_files(*files)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*map(str, files)))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert ours.encode("once upon a time") == theirs.encode("once upon a time").ids
    with pytest.warns(TokenizerWarning, match=r"vocab\.json: the vocabulary has no token for"):
        assert ours.encode("ONCE upon!") == theirs.encode("ONCE upon!").ids


def test_unused_parts_may_hold_anything(tmp_path: Path) -> None:
    vocab, merges = trained(CORPUS, 300, ALPHABET)
    values = tokenizer_json(vocab, merges, TOKENS)
    text = json.dumps(values)[:-1] + ', "notes": [NaN, -Infinity, 1e999, 123456789012345678901234'
    text += ', {"a": 1, "a": 2}, "\\ud800", ' + "[" * 200 + "]" * 200 + "]"
    text += ', "truncation": {"max_length": 1000000000000000019884624838656}}'
    (tmp_path / "tokenizer.json").write_text(text)
    ours = read_tokenizer_json(tmp_path / "tokenizer.json")
    values["truncation"] = None
    _, theirs = load_both(tmp_path, values)
    assert ours.encode("once <s> word") == theirs.encode("once <s> word").ids


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"decoder": None},
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_pipelines_are_left_to_the_package(tmp_path: Path, change: dict[str, Any]) -> None:
    values = {**tokenizer_json({"a": 0, "b": 1}, []), **change}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert isinstance(read_tokenizer_json(tmp_path / "tokenizer.json"), JsonTokenizer)


@pytest.mark.parametrize(
    "model", [{"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "##"}, {"dropout": 0.5}]
)
def test_other_models_are_left_to_the_package(tmp_path: Path, model: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json({"a": 0}, [], **model)))
    assert isinstance(read_tokenizer_json(tmp_path / "tokenizer.json"), JsonTokenizer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (tokenizer_json({"a": 0}, [["a", "b"]]), "merge 1 joins 'a' and 'b', but .* no token 'b'"),
        (tokenizer_json({"a": 0, "b": 1}, [["a", "b"]]), "no token 'ab'"),
        (tokenizer_json({"a": 0}, ["a"]), "merge 1 is 'a', expected a list of two tokens"),
        (tokenizer_json({"a": 0}, [["a", 1]]), r"merge 1 is \['a', 1\]"),
        (tokenizer_json({"a": 0}, {}), "found the merges {}"),  # type: ignore[arg-type]
        (tokenizer_json({"a": -1}, []), "the id of 'a' is -1"),
        (tokenizer_json({"a": 2**40}, []), "the id of 'a' is 1099511627776"),
        (tokenizer_json({"a": True}, []), "the id of 'a' is True"),
        (tokenizer_json([], []), r"found the vocabulary \[\]"),  # type: ignore[arg-type]
        (tokenizer_json({}, []), "found no tokens"),
        (tokenizer_json({"a": 0}, [], [5]), "found the added token 5"),
        (
            tokenizer_json({"a": 0}, [], [added(1, "<s>", lstrip=None)]),
            "lstrip of the added token '<s>' is None",
        ),  # type: ignore[arg-type]
        (tokenizer_json({"a": 0}, []) | {"added_tokens": 5}, "added_tokens 5"),
    ],
)
def test_malformed_files(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=message) as caught:
        read_tokenizer_json(path)
    assert str(path) in str(caught.value)


def test_the_package_is_not_imported(tmp_path: Path) -> None:
    load_both(tmp_path, _vocabulary("whole"))
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; sys.modules['tokenizers'] = None\n"
        "from pathlib import Path; from gpt2c.text.tokenizer_json import read_tokenizer_json\n"
        f"print(read_tokenizer_json(Path({str(tmp_path / 'tokenizer.json')!r})).encode('once'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(pair_of("whole")[0].encode("once")), "")
