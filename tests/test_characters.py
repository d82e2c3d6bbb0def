"""Character-level nanoGPT models with meta.pkl, encoded and decoded as nanoGPT's sample.py does.

That is, encode is [stoi[c] for c in text] and decode is "".join(itos[i] for i in ids).
"""

from __future__ import annotations

import collections
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES, load
from model_folders import PickledCall
from test_tool_formats import changed_pickle

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.errors import CheckpointNotFoundError, TokenizerError
from gpt2c.text.characters import read_meta
from gpt2c.text.tokenizer import MissingTokenizer, StreamDecoder
from gpt2c.text.tokenizer_json import JsonTokenizer, read_tokenizer_json

NANOGPT = FIXTURES / "formats" / "nanogpt" / "ckpt.pt"  # vocab_size 11
CHARS = "\n é😀ab'c\r\u2028z"
STOI = {char: id for id, char in enumerate(CHARS)}
META = {"vocab_size": 11, "itos": dict(enumerate(CHARS)), "stoi": STOI}
PROMPT = "ab é"


def text_of(raw: str) -> bytes:
    return b"X" + struct.pack("<I", len(raw.encode())) + raw.encode()


def checkpoint_of(folder: Path, dataset: str | None = None, out_dir: str = "out") -> Path:
    """Write a checkpoint whose configuration names a dataset and an out_dir."""
    folder.mkdir(parents=True, exist_ok=True)
    if dataset is None:
        return Path(shutil.copyfile(NANOGPT, folder / "ckpt.pt"))

    def change(raw: bytes) -> bytes:
        raw = raw.replace(text_of("out_dir") + b"rY\x03\x00\x00" + text_of("out"), b"", 1)
        more = text_of("out_dir") + text_of(out_dir) + text_of("dataset") + text_of(dataset)
        return raw.replace(text_of("learning_rate"), more + text_of("learning_rate"), 1)

    raw_z = b"rZ\x03\x00\x00"  # stores "out" in the memo, where nothing reads it
    return changed_pickle(NANOGPT, folder / "ckpt.pt", lambda raw: change(raw).replace(raw_z, b""))


def write_meta(folder: Path, meta: object = META, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta, **options))
    return folder / "meta.pkl"


def check_texts(model: GPT2) -> None:
    ids = model.generate([STOI[char] for char in PROMPT], max_new_tokens=2)
    expected = "".join(META["itos"][id] for id in ids)  # type: ignore[index]
    assert model.generate(PROMPT, max_new_tokens=2) == expected
    assert "".join(model.stream(PROMPT, max_new_tokens=2)) == expected
    assert len(model.score(PROMPT).ids) == len(PROMPT)


def test_text_in_text_out(tmp_path: Path, backend: str) -> None:
    path = checkpoint_of(tmp_path)
    write_meta(tmp_path)
    for place in (path, tmp_path):
        model = load(place, backend)
        check_texts(model)
    assert model.tokenizer.encode(CHARS) == list(range(11))
    assert model.tokenizer.decode(range(11)) == CHARS
    assert model.tokenizer.source == str(tmp_path / "meta.pkl")
    decoder = StreamDecoder(model.tokenizer)
    assert "".join(map(decoder.push, range(11))) + decoder.finish() == CHARS


def test_a_character_outside_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = read_meta(write_meta(tmp_path))
    message = r"'X' \(U\+0058\) at index 2, .* the 11 characters .*meta\.pkl"
    with pytest.raises(TokenizerError, match=message):
        tokenizer.encode("abXcY")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_forms_of_meta(tmp_path: Path, protocol: int) -> None:
    by_list = {"stoi": STOI, "itos": list(CHARS)}
    ordered = collections.OrderedDict(META)
    for meta in (
        META,
        by_list,
        ordered,
        {"stoi": STOI},
        {"itos": META["itos"]},
        META | {"x": [{}]},
    ):
        assert read_meta(write_meta(tmp_path, meta, protocol=protocol)).encode("ba") == [5, 4]


@pytest.mark.parametrize(
    ("folder", "out_dir"),
    [("nano/out-x", "out-x"), ("nano/runs/1/out", "runs/1/out"), ("nano", "."), ("nano/o", "/o")],
)
def test_meta_is_found_through_the_dataset_name(tmp_path: Path, folder: str, out_dir: str) -> None:
    path = checkpoint_of(tmp_path / folder, "eleven", out_dir)
    meta = write_meta(tmp_path / "nano" / "data" / "eleven")
    model = GPT2.from_pretrained(path)
    assert model.tokenizer.source == str(meta)
    check_texts(model)


@pytest.mark.parametrize("dataset", ["../eleven", "/abs", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_dataset_name_cannot_leave_the_data_folder(tmp_path: Path, dataset: str) -> None:
    path = checkpoint_of(tmp_path / "out", dataset)
    for place in ("eleven", "data", "data/a/b", "data/a\\b"):
        write_meta(tmp_path / place)
    write_meta(tmp_path)
    assert isinstance(GPT2.from_pretrained(path).tokenizer, MissingTokenizer)


def test_links_to_other_folders_are_not_followed(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path / "out", "eleven")
    write_meta(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eleven").symlink_to(tmp_path / "elsewhere")
    assert isinstance(GPT2.from_pretrained(path).tokenizer, MissingTokenizer)
    (tmp_path / "data" / "eleven").unlink()
    (tmp_path / "data" / "eleven").mkdir()
    (tmp_path / "data" / "eleven" / "meta.pkl").symlink_to(tmp_path / "elsewhere" / "meta.pkl")
    assert isinstance(GPT2.from_pretrained(path).tokenizer, MissingTokenizer)
    # A file that the user names may be a link.
    model = GPT2.from_pretrained(path, tokenizer=tmp_path / "data" / "eleven" / "meta.pkl")
    check_texts(model)


EVIL = PickledCall(os.system, "touch executed")


@pytest.mark.parametrize(
    "meta",
    [
        EVIL, {"stoi": EVIL}, {"stoi": STOI, "itos": EVIL}, 5, [], {}, {"vocab_size": 11},
        {"stoi": {"a": "b"}}, {"stoi": {"a": -1}}, {"stoi": {"a": 0, "b": 0}}, {"stoi": {"": 0}},
        {"stoi": {"a": 10**6}}, {"stoi": {"a": True}}, {"stoi": {}}, {"stoi": [1]},
        {"stoi": {"a": 0}, "itos": {0: "b"}}, {"stoi": {"a": 0}, "itos": {1: "a"}},
        {"itos": {0: 5}}, {"stoi": {"a": 11}},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_meta(tmp_path: Path, meta: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid meta.pkl raises an error only if text or the file itself is used; no code runs."""
    monkeypatch.chdir(tmp_path)
    path = checkpoint_of(tmp_path)
    write_meta(tmp_path, meta)
    model = GPT2.from_pretrained(path)
    assert len(model.generate([1, 2], max_new_tokens=2)) == 2
    with pytest.raises(TokenizerError, match=r"no tokenizer: .*meta\.pkl: "):
        model.generate("ab")
    with pytest.raises(TokenizerError, match=r"meta\.pkl: "):
        GPT2.from_pretrained(path, tokenizer=tmp_path / "meta.pkl")
    assert not (tmp_path / "executed").exists()


def test_truncated_or_huge_meta(tmp_path: Path) -> None:
    path = write_meta(tmp_path)
    raw = path.read_bytes()
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(TokenizerError, match=r"meta\.pkl: the pickle"):
            read_meta(path)
    with path.open("ab") as file:
        file.truncate(17 << 20)
    with pytest.raises(TokenizerError, match="expected at most 16777216"):
        read_meta(path)
    with pytest.raises(CheckpointNotFoundError):
        read_meta(tmp_path / "none.pkl")


@pytest.mark.parametrize("how", ["convert", "quantize", "save_pretrained"])
def test_a_saved_tokenizer_loads_again(tmp_path: Path, how: str) -> None:
    path = checkpoint_of(tmp_path / "out", "eleven")
    write_meta(tmp_path / "data" / "eleven")
    new = tmp_path / "new"
    if how == "save_pretrained":
        GPT2.from_pretrained(path).save_pretrained(new)
    else:
        assert main([how, str(path), str(new)]) == 0
    model = GPT2.from_pretrained(new)
    assert model.tokenizer.encode(CHARS) == list(range(11))
    assert model.tokenizer.decode(range(11)) == CHARS
    assert model.tokenizer.source == str(new / "tokenizer.json")
    assert not isinstance(model.tokenizer, JsonTokenizer)
    with pytest.raises(TokenizerError, match="the character 'X'"):
        model.generate("X")
    model.save_pretrained(tmp_path / "again")
    assert GPT2.from_pretrained(tmp_path / "again").tokenizer.encode("ba") == [5, 4]


def test_the_package_reads_the_saved_tokenizer_alike(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = read_meta(write_meta(tmp_path, {"stoi": STOI | {"<unk>": 11}}))
    assert tokenizer.write_files is not None
    tokenizer.write_files(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(CHARS * 2 + "\r\n").ids == tokenizer.encode(CHARS * 2 + "\r\n")
    assert theirs.decode(list(range(11))) == CHARS
    with pytest.raises(Exception, match=r"Missing \[UNK\]"):
        theirs.encode("X")
    assert read_tokenizer_json(tmp_path / "tokenizer.json").encode("ba") == [5, 4]
