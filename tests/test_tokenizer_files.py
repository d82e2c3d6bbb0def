"""Added tokens and tokenizer.json of any kind, compared with the tokenizers package."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TALES, TINY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_folders import random_folder

import gpt2c
from gpt2c import GPT2, Tokenizer
from gpt2c.errors import CheckpointNotFoundError, TokenizerError
from gpt2c.text.tokenizer import BYTE_ALPHABET, MissingTokenizer, StreamDecoder
from gpt2c.text.tokenizer_json import JsonTokenizer

tokenizers = pytest.importorskip("tokenizers")


ADDED = [
    {"content": "<|user|>", "special": True},
    {"content": "<|user|>x", "special": True},
    {"content": "<pad>", "special": False},
    {"content": "<left>", "lstrip": True, "special": True},
    {"content": "<right>", "rstrip": True, "special": False},
    {"content": "<both>", "lstrip": True, "rstrip": True, "special": True},
    {"content": "word", "single_word": True, "special": False},
    {"content": "the king", "special": False},
    {"content": "é ", "special": False},
    {"content": "  ", "special": False},
    {"content": " wo", "special": False},
    {"content": "éé", "lstrip": True, "rstrip": True, "single_word": True, "special": False},
]
PIECES = [
    *(token["content"] for token in ADDED), "<|endoftext|>", "<", "|", ">", "user",
    " ", "  ", "\n", "\t", "\u3000", "\x85", "\0", "\x1c", " " * 300, "a" * 50,
    "word", "words", "wo", "_", "-", "2", "½", "ⓐ", "\u0301", "\u200d", "é", "e\u0301", "日本",
    "the", "king", "The king", "'s", "😀", "\U0001f469\u200d\U0001f469\u200d\U0001f467",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join)


def theirs_of(folder: Path, **options: Any) -> Any:
    """Build the package's tokenizer from the same files, as transformers does for GPT-2."""
    bpe = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=options.pop("add_prefix_space", False)
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    for token in ADDED:
        flags = {name: token.get(name, False) for name in ("lstrip", "rstrip", "single_word")}
        # Special tokens are not normalised. Without a normaliser that affects only their order.
        token = tokenizers.AddedToken(token["content"], normalized=False, **flags)
        tokenizer.add_tokens([token])
    return tokenizer


def config_of_added(folder: Path, n_vocab: int, **more: Any) -> None:
    decoder = {
        str(n_vocab + n): {"lstrip": False, "rstrip": False, "single_word": False, **token}
        for n, token in enumerate(ADDED)
    }
    text = json.dumps({"added_tokens_decoder": decoder, **more})
    (folder / "tokenizer_config.json").write_text(text)


@pytest.fixture(scope="module")
def tales(tmp_path_factory: Any) -> Path:
    """A folder with the embedded model's vocabulary; replaces the shared fixture `tales`."""
    folder = tmp_path_factory.mktemp("tales")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(TALES / name, folder / name)
    return folder


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
@example(text="ééⓐ")  # a letter by its property alone, not by its category
@example(text="éé   z")  # white space that a token strips and that is itself a token
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_added_tokens_are_found_as_theirs(tales: Path, text: str, add_prefix_space: bool) -> None:
    n_vocab = len(json.loads((tales / "vocab.json").read_text()))
    config_of_added(tales, n_vocab, add_prefix_space=add_prefix_space)
    ours = Tokenizer.from_files(tales / "vocab.json", tales / "merges.txt")
    theirs = theirs_of(tales, add_prefix_space=add_prefix_space)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.n_vocab == theirs.get_vocab_size()


def test_thousands_of_added_tokens_in_long_texts(tales: Path, tmp_path: Path) -> None:
    """Models of music have such tokens. This test used to take minutes; now it takes a second."""
    folder = shutil.copytree(tales, tmp_path / "m")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    notes = {f"<note_{n}>": 4096 + n for n in range(20_000)}
    (folder / "added_tokens.json").write_text(json.dumps(notes))
    tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, 20_000, 50_000)
    text = "".join(f"<note_{n}>" for n in chosen)
    assert tokenizer.encode(text) == (4096 + chosen).tolist()
    for text in ("<" * 1_000_000, "<note_" * 200_000, "<note_1" * 200_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    (folder / "added_tokens.json").unlink()
    added = {"4096": {"content": "<s>", "rstrip": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    assert tokenizer.encode("<s>  " * 300_000) == [4096] * 300_000


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: Any) -> Path:
    """GPT-2's own vocabulary in Hugging Face's files."""
    folder = tmp_path_factory.mktemp("gpt2")
    shutil.copyfile(
        Path(gpt2c.__file__).parent / "data" / "gpt2" / "vocab.bpe", folder / "merges.txt"
    )
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    tokens = [*BYTE_ALPHABET, *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    return folder


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(TEXTS, st.text(max_size=60), st.text("ab 1\n\t'", max_size=400)))
def test_gpt2s_own_vocabulary_encodes_like_the_package(gpt2_files: Path, text: str) -> None:
    theirs = _package_gpt2(gpt2_files)
    assert Tokenizer.gpt2().encode(text) == theirs.encode(text, add_special_tokens=False).ids


@functools.cache
def _package_gpt2(folder: Path) -> Any:
    bpe = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def test_added_tokens_of_older_versions(tales: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tales, tmp_path / "m")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (folder / "added_tokens.json").write_text(json.dumps({"<end>": 4096, "<pad>": 4099}))
    tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    assert tokenizer.encode("<end><pad>") == [4096, 4099]
    assert tokenizer.n_vocab == 4100
    assert tokenizer.decode([4096, 4097]) == "<end>"  # an unused id has no text
    assert tokenizer.eot_id == 4096


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("added_tokens.json", '{"<a>": 5}', "have the same id, 5"),
        ("added_tokens.json", '{"<a>": 4096, "<b>": 4096}', "have the same id, 4096"),
        ("added_tokens.json", '{"<|endoftext|>": 4096}', "but the id 4096 as an added token"),
        ("added_tokens.json", '{"<a>": 2000000}', "far beyond the vocabulary's 4096 tokens"),
        ("added_tokens.json", '{"<a>": -1}', "found the id -1"),
        ("added_tokens.json", '{"<a>": true}', "found the id True"),
        ("added_tokens.json", '{"": 4096}', "the added token '' of 0 characters"),
        ("added_tokens.json", "[]", "expected an object"),
        ("added_tokens.json", '{"\\ud800": 4096}', "unpaired surrogate"),
        ("added_tokens.json", '{"<a>": 4096, "<a>": 4097}', "key '<a>' twice"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}', "added_tokens_decoder 5"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"4096": 5}}',
            "found the added token 5",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"-1": {"content": "<a>"}}}',
            "the id of the added token '<a>' is '-1'",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"4096": {"content": "<a>", "lstrip": 1}}}',
            "lstrip of the added token '<a>' is 1",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"4096": {"content": "a"}, "4097": {"content": "a"}}}',
            "an added token twice",
        ),
    ],
)
def test_refused_added_tokens(
    tales: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = shutil.copytree(tales, tmp_path / "m")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")


# ---- tokenizer.json ----


def byte_level(folder: Path) -> Any:
    return theirs_of(folder)


def word_piece(folder: Path) -> Any:
    vocab = ["[UNK]", "[PAD]", "once", "upon", "a", "time", "##s", ",", "!"]
    model = tokenizers.models.WordPiece(
        {token: n for n, token in enumerate(vocab)}, unk_token="[UNK]"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[PAD]"])
    return tokenizer


def unigram(folder: Path) -> Any:
    letters = [(char, -5.0) for char in "abcdefghijklmnopqrstuvwxyz,.\u2581"]
    pieces = [("<unk>", 0.0), *letters, ("\u2581once", -1.0), ("\u2581a", -1.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    model = tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    parts = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    tokenizer.decoder = tokenizers.decoders.Sequence(parts)
    tokenizer.enable_truncation(3)  # must not be applied
    tokenizer.enable_padding(length=50)
    return tokenizer


def letters(folder: Path) -> Any:
    """Return a tokenizer as models of proteins have it: one token per letter."""
    vocab = {letter: n for n, letter in enumerate("ACDEFGHIKLMNPQRSTVWY?")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, word_piece, unigram, letters])
def test_tokenizer_json(make: Any, tales: Path, tmp_path: Path) -> None:
    theirs = make(tales)
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    ours = JsonTokenizer(tmp_path / "tokenizer.json")
    assert ours.n_vocab == theirs.get_vocab_size()
    for text in ["once upon a time", "Once, a times!", "MKVLAY", "", "a<|user|>b é😀", *PIECES]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        decoder = StreamDecoder(ours)
        streamed = "".join(map(decoder.push, ids)) + decoder.finish()
        assert streamed == ours.decode(ids)
        # The package decodes an added token with é to bytes, as if merges had made it.
        if "\ufffd" not in streamed and "éé" not in text:
            assert streamed.lstrip() == theirs.decode(ids, skip_special_tokens=False).lstrip()


def test_special_tokens_as_characters(tales: Path, tmp_path: Path) -> None:
    byte_level(tales).save(str(tmp_path / "tokenizer.json"))
    ours = JsonTokenizer(tmp_path / "tokenizer.json")
    end = ours.special_tokens["<|endoftext|>"]
    assert ours.encode("a<|endoftext|>") == [*ours.encode("a"), end]
    plain = ours.encode("a<|endoftext|>", special=False)
    assert end not in plain
    assert ours.decode(plain) == "a<|endoftext|>"
    assert ours.eot_id == end
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ours.encode("a\ud800")
    with pytest.raises(TypeError):
        ours.encode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "hello", '{"model": {"type": "BPE"}}', '{"version": "1.0", "model": null}',
     '{"version": "1.0", "added_tokens": [{"id": -1}], "model": {"type": "WordLevel"}}',
     '{"model": {"type": "WordLevel", "vocab": {"a": 4000000000}, "unk_token": "a"}}',
     '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}',
     '{"model": {"type": "Unigram", "vocab": [["a", 1]], "unk_id": 7}}', "[" * 100000],
)  # fmt: skip
def test_refused_tokenizer_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(TokenizerError) as caught:
        JsonTokenizer(path)
    assert str(path) in str(caught.value)


def word_level(**changes: Any) -> str:
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer"))
    model = {"type": "WordLevel", "vocab": {"a" * 40: 0, "u": 1}, "unk_token": "u"}
    values = {"version": "1.0", "added_tokens": [], **parts, "model": model, "decoder": None}
    return json.dumps(values | changes)


REGEX = {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "x"}
LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 500_000}


@pytest.mark.parametrize(
    "text",
    [
        word_level(decoder=LONG),
        word_level(normalizer=LONG),
        word_level(normalizer={"type": "Sequence", "normalizers": [LONG]}),
        word_level(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 3}),
        word_level(decoder=REGEX),
        word_level(normalizer=REGEX),
        word_level(model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "nope"}),
        word_level(model={"type": "WordLevel", "vocab": {"b" * 5000: 0}, "unk_token": "b"}),
    ],
)  # fmt: skip
def test_files_that_would_crash_the_package_are_refused(text: str, tmp_path: Path) -> None:
    """With these the package panics or takes unlimited memory, at loading or at the first text."""
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as caught:  # noqa: PT012
        tokenizer = JsonTokenizer(path)
        tokenizer.encode("a" * 40)
        tokenizer.decode([0, 1])
    assert len(str(caught.value)) < 400


def test_ids_of_added_tokens_are_the_packages(tmp_path: Path) -> None:
    added = {"id": 0, "content": "zz", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(word_level(added_tokens=[added]))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("zz") == [tokenizer.special_tokens["zz"]]


def test_a_model_with_tokenizer_json(tales: Path, tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "model", vocab_size=21)
    letters(tales).save(str(folder / "tokenizer.json"))
    model = GPT2.from_pretrained(folder)
    text = model.generate("MKV", max_new_tokens=5)
    assert len(text) == 5
    assert text == "".join(model.stream("MKV", max_new_tokens=5))
    assert model.generate(
        model.tokenizer.encode("MKV"), max_new_tokens=5
    ) == model.tokenizer.encode(text)
    model.save_pretrained(tmp_path / "again")
    assert GPT2.from_pretrained(tmp_path / "again").generate("MKV", max_new_tokens=5) == text


def test_ids_work_without_the_package(
    tales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_folder(tmp_path / "model", vocab_size=21)
    letters(tales).save(str(folder / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = GPT2.from_pretrained(folder)
    assert len(model.generate([1, 2], max_new_tokens=2)) == 2
    with pytest.raises(TokenizerError, match=r"pip install tokenizers \(the extra gpt2c\[token"):
        model.generate("MKV")


def test_tokens_outside_the_models_vocabulary(tales: Path, tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "model", vocab_size=20)
    letters(tales).save(str(folder / "tokenizer.json"))
    model = GPT2.from_pretrained(folder)
    assert len(model.generate([1, 2], max_new_tokens=2)) == 2
    with pytest.raises(
        TokenizerError, match="found a token with id 20, but the model's vocabulary has"
    ):
        model.generate("MKV")
    # A padding token that was added without enlarging the model is accepted.
    tokenizer = letters(tales)
    tokenizer.add_special_tokens(["[PAD]"])
    folder = random_folder(tmp_path / "b" / "model", vocab_size=21)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = GPT2.from_pretrained(folder)
    assert model.tokenizer.n_vocab == 22
    with pytest.raises(gpt2c.OptionError, match="21"):
        model.generate("M[PAD]")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        JsonTokenizer(tmp_path / "tokenizer.json")
    assert isinstance(GPT2.from_pretrained(TINY).tokenizer, MissingTokenizer)
