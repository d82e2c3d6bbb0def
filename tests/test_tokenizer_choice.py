"""The choice between several tokenizers, unreadable ones, and the warnings about them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from model_folders import random_folder

import gpt2c
from gpt2c import GPT2, Tokenizer
from gpt2c.cli.main import main
from gpt2c.config import GPT2Config
from gpt2c.errors import (
    CheckpointNotFoundError,
    ConfigError,
    MissingDependencyError,
    OptionTypeError,
    TokenizerError,
    TokenizerWarning,
)
from gpt2c.text.bpe import BYTE_ALPHABET
from gpt2c.text.tokenizer import MissingTokenizer

TOKENS = [*BYTE_ALPHABET, "ab", "<|endoftext|>"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def vocabulary(first: int = 0) -> dict[str, int]:
    """Return the tokens with ids rotated by `first`, which identifies the file that is used."""
    return {token: (id + first) % len(TOKENS) for id, token in enumerate(TOKENS)}


def write_pair(folder: Path, first: int = 0, names: Any = ("vocab.json", "merges.txt")) -> None:
    (folder / names[0]).write_text(json.dumps(vocabulary(first)))
    (folder / names[1]).write_text("#version: 0.2\na b\n")


def write_json(folder: Path, first: int = 1, name: str = "tokenizer.json") -> Path:
    model = {"type": "BPE", "vocab": vocabulary(first), "merges": [["a", "b"]]}
    values = {"version": "1.0", "added_tokens": [], "normalizer": None, "model": model,
              "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL}  # fmt: skip
    (folder / name).write_text(json.dumps(values))
    return folder / name


def first_of(tokenizer: Tokenizer | MissingTokenizer) -> int:
    return (tokenizer.encode("ab")[0] - TOKENS.index("ab")) % len(TOKENS)


def check_only_ids_work(folder: Path, message: str) -> None:
    """Check that ids, info, convert and quantize work. Any text raises an error with the file."""
    model = GPT2.from_pretrained(folder)
    new = model.generate([1, 2], max_new_tokens=3)
    assert len(new) == 3
    with pytest.raises(TokenizerError, match=message) as caught:
        model.generate("ab")
    assert "pass token ids instead of text" in str(caught.value)
    with pytest.raises(TokenizerError, match=message):
        model.score("ab")
    assert main(["info", "--model", str(folder)]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenizerWarning)
        for command in ("convert", "quantize"):
            to = folder.parent / command
            shutil.rmtree(to, ignore_errors=True)
            assert main([command, str(folder), str(to)]) == 0
            again = GPT2.from_pretrained(to)
            assert len(again.generate([1, 2], max_new_tokens=3)) == 3
            assert isinstance(again.tokenizer, MissingTokenizer)
    assert GPT2.from_pretrained(folder.parent / "convert").generate([1, 2], max_new_tokens=3) == new


# ---- several tokenizers, broken tokenizers ----


def test_tokenizer_json_takes_precedence(tmp_path: Path) -> None:
    """tokenizer.json is preferred to other files, as in transformers 5.24's AutoTokenizer."""
    folder = random_folder(tmp_path / "m")
    write_pair(folder, 2, ("encoder.json", "vocab.bpe"))
    assert first_of(GPT2.from_pretrained(folder).tokenizer) == 2
    write_pair(folder)
    assert first_of(GPT2.from_pretrained(folder).tokenizer) == 0
    write_json(folder)
    model = GPT2.from_pretrained(folder)
    assert first_of(model.tokenizer) == 1
    assert model.tokenizer.source == str(folder / "tokenizer.json")


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "not json": lambda path: path.write_text("{"),
    "no object": lambda path: path.write_text("[]"),
    "other": lambda path: path.write_text("{}"),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("nowhere"),
    "too large": lambda path: (path.touch(), os.truncate(path, (1 << 26) + 1)),
    "other ids": lambda path: path.write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 300}, "unk_token": "a"}})
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_readable_tokenizer_replaces_a_broken_one(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = random_folder(tmp_path / "m")
    BROKEN[how](folder / "tokenizer.json")
    check_only_ids_work(folder, r"no tokenizer: .*tokenizer\.json")
    write_pair(folder)
    caplog.clear()
    assert first_of(GPT2.from_pretrained(folder).tokenizer) == 0
    assert "tokenizer.json" in caplog.text
    assert "the tokenizer is" in caplog.text


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("how", ["not json", "binary", "folder", "link"])
def test_a_broken_pair(tmp_path: Path, name: str, how: str) -> None:
    folder = random_folder(tmp_path / "m")
    write_pair(folder)
    (folder / name).unlink()
    BROKEN[how](folder / name)
    check_only_ids_work(folder, rf"no tokenizer: .*{name}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {"content": "x"}}}'),
        ("added_tokens.json", "[]"),
        ("added_tokens.json", '{"x": 1e30}'),
    ],
)
def test_broken_additional_files(tmp_path: Path, name: str, text: str) -> None:
    folder = random_folder(tmp_path / "m")
    write_pair(folder)
    (folder / name).write_text(text)
    check_only_ids_work(folder, "no tokenizer: ")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "m", vocab_size=100)
    write_pair(folder)
    check_only_ids_work(
        folder, r"vocab\.json: found a token with id 256, but the model's vocabulary has"
    )


def test_convert_warns_that_broken_files_are_copied_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{")
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    assert "warning: the tokenizer's files are copied unchanged: " in capsys.readouterr().err
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{"


def test_without_the_package_another_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_folder(tmp_path / "m")
    model = {"type": "WordLevel", "vocab": {"ab": 0}, "unk_token": "ab"}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    write_pair(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert first_of(GPT2.from_pretrained(folder).tokenizer) == 0
    with pytest.raises(MissingDependencyError, match="pip install tokenizers"):
        GPT2.from_pretrained(folder, tokenizer=folder / "tokenizer.json")
    (folder / "vocab.json").unlink()
    with pytest.raises(TokenizerError, match="pip install tokenizers"):
        GPT2.from_pretrained(folder).generate("ab")


# ---- unused keys ----

JUNK = [
    "1000000000000000019884624838656", "-1e999", "NaN", "Infinity", "-0", '"\\ud800"',
    '{"a": [null, {"b": 1e400, "b": 2}]}', "[" * 100 + "]" * 100, '["\\udfff", -Infinity]',
    "9" * 5000, "0." + "1" * 5000, '[{"a": ' * 40 + "1" + "}]" * 40,
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: junk[:12])
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"],
)
def test_unused_keys_may_hold_anything(tmp_path: Path, name: str, junk: str) -> None:
    folder = random_folder(tmp_path / "m")
    write_pair(folder)
    expected = GPT2.from_pretrained(folder).generate("ab", max_new_tokens=3)
    values = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    text = json.dumps({"model_max_length": 1, **values}).replace(
        '"model_max_length": 1', f'"model_max_length": {junk}, "task_specific_params": {junk}'
    )
    (folder / name).write_text(text)
    assert GPT2.from_pretrained(folder).generate("ab", max_new_tokens=3) == expected
    twice = text.replace('{"model_max_length"', '{"model_max_length": 5, "model_max_length"', 1)
    (folder / name).write_text(twice)
    assert GPT2.from_pretrained(folder).generate("ab", max_new_tokens=3) == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"n_positions": 40',
            '"n_positions": 1000000000000000019884624838656',
            "found 10000000000",
        ),
        ('"n_embd": 6', '"n_embd": NaN', "n_embd must be an integer .*, found NaN"),
        ('"n_embd": 6', '"n_embd": 6, "n_embd": 12', "found two values, 6 and 12"),
        ('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 1e999', "a number, found 1e999"),
        ('"n_embd": 6', '"n_embd": ' + "[" * 50 + "]" * 50, "found \\["),
    ],
)
def test_used_keys_are_checked(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = random_folder(tmp_path / "m")
    text = (folder / "config.json").read_text()
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        GPT2Config.from_json(folder / "config.json")
    assert len(str(caught.value)) < 500


def test_duplicate_keys_with_equal_values_are_accepted(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "m")
    text = (folder / "config.json").read_text().replace('"n_embd": 6', '"n_embd": 6, "n_embd": 6')
    (folder / "config.json").write_text(text)
    assert GPT2Config.from_json(folder / "config.json").n_embd == 6


# ---- GPT-2's own vocabulary, maybe by mistake ----


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with GPT-2's vocabulary size, without a tokenizer."""
    folder = tmp_path_factory.mktemp("own") / "m"
    return random_folder(folder, vocab_size=50257, n_embd=3, n_layer=0)


def copy_of(own: Path, to: Path) -> Path:
    return Path(shutil.copytree(own, to))


def test_gpt2s_own_vocabulary_is_used_and_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GPT2.from_pretrained(own)
    assert model.tokenizer.encode("Hello world") == [15496, 995]
    assert model.tokenizer.source == "GPT-2's own vocabulary, which is part of gpt2c"
    assert main(["info", "--model", str(own)]) == 0
    captured = capsys.readouterr()
    assert "eot_id=50256 from GPT-2's own vocabulary, which is part of gpt2c>" in captured.out
    assert captured.err == ""


FOREIGN = [
    "vocab.txt", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt", "my-vocab.json",
    "my_tokenizer.json", "bpe.model", "ru.tiktoken", "sentencepiece.bpe.model", "dict.txt",
    "tokenization_own.py", "tokenizer.pkl", "vocab.bpe", "encoder.json", "Tokenizer-v2.JSON",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_unknown_tokenizer_files_give_a_warning(own: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(own, tmp_path / "m")
    (folder / name).write_text("x")
    with pytest.warns(TokenizerWarning, match=rf"{name}: looks like .*; text is encoded with GP"):
        model = GPT2.from_pretrained(folder)
    assert model.tokenizer.encode("Hello world") == [15496, 995]


def test_other_signs_of_a_tokenizer(own: Path, tmp_path: Path) -> None:
    folder = copy_of(own, tmp_path / "a")
    (folder / "tokenizer").mkdir()
    with pytest.warns(TokenizerWarning, match="tokenizer: looks like a tokenizer"):
        GPT2.from_pretrained(folder)
    folder = copy_of(own, tmp_path / "b")
    write_json(folder, name="ours.json")  # detected by its content
    with pytest.warns(TokenizerWarning, match=r"ours\.json: looks like a tokenizer"):
        GPT2.from_pretrained(folder)
    (folder / "ours.json").write_text(json.dumps(vocabulary()))
    with pytest.warns(TokenizerWarning, match=r"ours\.json: looks like a tokenizer"):
        GPT2.from_pretrained(folder)
    folder = copy_of(own, tmp_path / "c")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.warns(TokenizerWarning, match="names a tokenizer of class 'BertTokenizer'"):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    ["README.md", "training_args.bin", "trainer_state.json", "gpt2_tokenizer.bin", "predict.txt",
     "all_results.json", "tokens.npy", "train.txt", "special_tokens_map.json"],
)  # fmt: skip
def test_other_files_give_no_warning(own: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(own, tmp_path / "m")
    (folder / name).write_text('{"epoch": 3, "step": 5, "eval_loss": 3.1}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GPT2.from_pretrained(folder).tokenizer is Tokenizer.gpt2()


def test_the_error_without_a_tokenizer_names_such_a_file(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "m")
    (folder / "vocab.txt").write_text("x")
    model = GPT2.from_pretrained(folder)
    with pytest.raises(TokenizerError, match=r"vocab\.txt: looks like part of a tokenizer, which"):
        model.generate("ab")


# ---- tokenizer= ----


def test_the_tokenizer_option(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "m")
    write_json(folder, 3)
    other = tmp_path / "other"
    other.mkdir()
    write_pair(other, 5)
    write_pair(other, 6, ("my-vocab.json", "my-merges.txt"))
    given = {
        write_json(tmp_path, 4, "mine.json"): 4,
        str(other): 5, other / "vocab.json": 5, other / "merges.txt": 5,
        other / "my-vocab.json": 6, str(other / "my-merges.txt"): 6,
        Tokenizer.from_files(other / "vocab.json", other / "merges.txt"): 5,
    }  # fmt: skip
    for tokenizer, first in given.items():
        model = GPT2.from_pretrained(folder, tokenizer=tokenizer)
        assert first_of(model.tokenizer) == first
        if not isinstance(tokenizer, Tokenizer):
            model.save_pretrained(tmp_path / "new")
            assert first_of(GPT2.from_pretrained(tmp_path / "new").tokenizer) == first
            shutil.rmtree(tmp_path / "new")
    assert first_of(GPT2.from_pretrained(folder).tokenizer) == 3
    again = GPT2.from_pretrained(folder).tokenizer
    assert GPT2.from_pretrained(folder, tokenizer=again).tokenizer is again


def test_the_tokenizer_of_a_gguf_file(tmp_path: Path) -> None:
    path = FIXTURES / "formats" / "gguf" / "f32.gguf"
    inside = GPT2.from_pretrained(path)
    size = inside.config.vocab_size
    model = GPT2.from_pretrained(random_folder(tmp_path / "m", vocab_size=size), tokenizer=path)
    assert model.tokenizer.encode("a b") == inside.tokenizer.encode("a b")


def test_tokenizer_option_gpt2(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy_of(own, tmp_path / "m")
    (folder / "vocab.txt").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GPT2.from_pretrained(folder, tokenizer="gpt2")
    assert model.tokenizer is Tokenizer.gpt2()
    model.save_pretrained(tmp_path / "new")
    saved = Tokenizer.from_files(tmp_path / "new" / "vocab.json", tmp_path / "new" / "merges.txt")
    assert saved.encode("Hello world<|endoftext|>") == [15496, 995, 50256]


def test_invalid_tokenizer_options(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "m")
    (tmp_path / "vocab.txt").write_text("x\ny\n")
    for given, kind, message in (
        (tmp_path / "none", CheckpointNotFoundError, "none: there is no such file or folder"),
        (tmp_path / "vocab.txt", TokenizerError, r"vocab\.txt: has no token '\[UNK\]'"),
        (tmp_path, CheckpointNotFoundError, r"found no tokenizer, .*vocab\.txt: looks like"),
        (5, OptionTypeError, "tokenizer is a int; it must be a path, 'gpt2' or a gpt2c.Tok"),
        (b"x", OptionTypeError, "tokenizer is a bytes"),
        (folder / "model.safetensors", TokenizerError, "at the beginning"),
        (folder / "config.json", TokenizerError, r"config\.json: "),
    ):
        with pytest.raises(kind, match=message):
            GPT2.from_pretrained(folder, tokenizer=given)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="found a token with id 50255, but the model's voc"):
        GPT2.from_pretrained(folder, tokenizer=Tokenizer.gpt2())


def test_tokenizer_of_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = random_folder(tmp_path / "m")
    write_pair(tmp_path, 7)
    options = ["--model", str(folder), "--tokenizer", str(tmp_path / "vocab.json")]
    assert main(["info", *options]) == 0
    assert f"from {tmp_path / 'vocab.json'}>" in capsys.readouterr().out
    assert main(["generate", "ab", "-n", "2", *options]) == 0
    for command in ("convert", "quantize"):
        assert main([command, str(folder), str(tmp_path / command), *options[2:]]) == 0
        assert first_of(GPT2.from_pretrained(tmp_path / command).tokenizer) == 7


def test_a_tokenizer_from_memory_cannot_be_saved(tmp_path: Path) -> None:
    model = GPT2.from_pretrained(random_folder(tmp_path / "m"))
    model.tokenizer = Tokenizer.from_vocabulary(vocabulary(), [("a", "b")], ("memory", "memory"))
    with pytest.raises(TokenizerError, match="memory: this tokenizer was made in memory"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert np.isfinite(model.logits(model.tokenizer.encode("ab"))).all()
    assert gpt2c.TokenizerWarning is TokenizerWarning
