"""Every method tokenizes a text alike; BOS and EOS; tokens that files add around every text.

fixtures/special_tokens.json has transformers' results for the same files.
tools/make_special_token_fixtures.py made it with transformers 5.24.0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, load
from model_folders import N_VOCAB, RECORDED, VOCAB, folder_of

from gpt2c import GPT2, OptionTypeError, Tokenizer
from gpt2c.cli.main import main
from gpt2c.coloring import terminal_text
from gpt2c.text.added_tokens import read_tokenizer_config
from gpt2c.text.special_tokens import read_template

CASES = RECORDED["cases"]
TEXTS = RECORDED["texts"]
ADDED = CASES["added_tokens_decoder"]["files"]  # new9 is 257 and not special, <s> is 258
ADD_BOS = CASES["add_bos_token"]["files"]
BOTH = CASES["both"]["files"]  # adds <|bos|> (257) and <|eos|> (258) around every text


def write_tokenizer(folder: Path, files: dict[str, Any]) -> Path:
    for name, values in {"vocab": VOCAB, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def check_against(recorded: dict[str, Any], tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eot_id) == (recorded["bos"], recorded["eos"])
    for text, ids, split, bare in zip(
        TEXTS, recorded["ids"], recorded["split"], recorded["bare"], strict=True
    ):
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode(text, special=False) == split
        assert tokenizer.encode(text, add_special_tokens=False) == bare
        assert tokenizer.decode(bare) == text


@pytest.mark.parametrize("case", CASES)
def test_ids_equal_those_of_transformers(tmp_path: Path, case: str) -> None:
    folder = write_tokenizer(tmp_path, CASES[case]["files"])
    check_against(CASES[case], Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt"))


@pytest.mark.parametrize("case", [name for name in CASES if "tokenizer" in CASES[name]["files"]])
def test_ids_of_tokenizer_json_equal_those_of_transformers(tmp_path: Path, case: str) -> None:
    pytest.importorskip("tokenizers")
    from gpt2c.text.tokenizer_json import JsonTokenizer

    folder = write_tokenizer(tmp_path, CASES[case]["files"])
    config = read_tokenizer_config(folder)
    check_against(CASES[case], JsonTokenizer(folder / "tokenizer.json", config))


@pytest.mark.parametrize(
    "processor",
    [
        None, 1, [], {}, {"type": "TemplateProcessing"}, {"type": "Sequence", "processors": 3},
        {"type": "TemplateProcessing", "single": [1, {"SpecialToken": None}], "special_tokens": 1},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}],
         "special_tokens": {"a": {"ids": ["x", None, 1.5, True]}}},
        {"type": "RobertaProcessing", "cls": "a", "sep": ["a"]},
    ],
)  # fmt: skip
def test_a_malformed_template_adds_no_tokens(processor: Any) -> None:
    assert read_template(processor) == ((), ())


def test_bos_outside_the_vocabulary_is_not_added(tmp_path: Path) -> None:
    files = {"tokenizer_config": {"add_bos_token": True, "bos_token": "<no such token>"}}
    folder = write_tokenizer(tmp_path, files)
    tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    assert tokenizer.encode("ab") == [VOCAB["a"], VOCAB["b"]]
    assert tokenizer.bos_id is None


def test_an_unreadable_special_tokens_map_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, special_tokens_map="{")
    assert load(folder).tokenizer.encode("ab<|endoftext|>")[-1] == 256
    assert "special_tokens_map.json: is not JSON" in caplog.text


# ---- every method tokenizes alike ----


def test_every_method_tokenizes_alike(tmp_path: Path, backend: str) -> None:
    model = load(folder_of(tmp_path, **ADDED), backend)
    text = "a new9 b"
    ids = CASES["added_tokens_decoder"]["ids"][TEXTS.index(text)]
    assert 257 in ids
    assert model.score(text).ids.tolist() == ids
    assert [s.ids.tolist() for s in model.score(iter([text, text]))] == [ids, ids]
    assert model.perplexity(text) == model.perplexity(ids)
    np.testing.assert_array_equal(model.logits(text), model.logits(ids))
    np.testing.assert_array_equal(
        model.forward(text)["logits"], model.session().feed(ids, all=True)
    )
    done = model.complete(text, max_new_tokens=4, logprobs=0, echo=True)
    assert done.ids == model.generate(ids, max_new_tokens=4)
    assert len(done.prompt_logprobs or []) == len(ids)
    assert "".join(model.stream(text, max_new_tokens=4)) == done.text
    assert "new9" in terminal_text(model.score(text), model.tokenizer, color=False)


@pytest.mark.parametrize("files", [ADDED, ADDED | {"tokenizer_config": {
    **ADDED["tokenizer_config"], "add_bos_token": True, "add_eos_token": True}}])  # fmt: skip
def test_options_accept_an_added_token(tmp_path: Path, files: Any) -> None:
    """Tokens that are added around texts are not added around the strings of options."""
    model = load(folder_of(tmp_path, **files, likeliest=257))
    assert model.generate([1, 2], max_new_tokens=3) == [257] * 3
    for option in ({"stop_token_ids": ["new9"]}, {"stop_strings": ["new9"]}):
        done = model.complete([1, 2], max_new_tokens=3, **option)
        assert (done.ids, done.finish_reason) == ([], "stop")
    for option in ({"bad_words": ["new9"]}, {"suppress_tokens": ["new9"]},
                   {"logit_bias": {"new9": -1e4}}):  # fmt: skip
        assert 257 not in model.generate([1, 2], max_new_tokens=3, **option)
    assert model.complete("a", max_new_tokens=2).text == "new9new9"


def test_special_tokens_of_a_scored_text(tmp_path: Path, backend: str) -> None:
    """Special tokens are scored as characters; special_tokens=True tokenizes as for a prompt."""
    model = load(folder_of(tmp_path, **ADDED), backend)
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        characters = model.tokenizer.encode(text, special=False)
        assert model.score(text).ids.tolist() == characters
        assert model.score(text, special_tokens=True).ids.tolist() == ids
        if len(ids) > 1:
            assert model.perplexity(text, special_tokens=True) == model.perplexity(ids)
    assert model.score("a<s>b", special_tokens=True, bos=True).total == (
        model.score([256, VOCAB["a"], 258, VOCAB["b"]]).total
    )
    with pytest.raises(OptionTypeError, match="special_tokens is 1"):
        model.score("a", special_tokens=1)  # type: ignore[call-overload]


@pytest.mark.parametrize("command", ["score", "perplexity"])
def test_special_tokens_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder = folder_of(tmp_path / "model", **ADDED)
    (tmp_path / "text.txt").write_text("a<s>b new9")
    seen = []
    for options in ([], ["--special-tokens"]):
        arguments = [command, str(tmp_path / "text.txt"), "--model", str(folder), *options]
        assert main(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        seen.append(found["ids"] if command == "score" else found["tokens"])
    tokenizer = load(folder).tokenizer
    expected = [tokenizer.encode("a<s>b new9", special=special) for special in (False, True)]
    assert seen == (expected if command == "score" else [len(ids) for ids in expected])


# ---- BOS and EOS ----

OWN = {"added_tokens": {"<|bos|>": 257, "<|eos|>": 258}}
NAMES = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
NEITHER_ID = ("bos_token_id", "eos_token_id")


@pytest.mark.parametrize(
    ("changes", "bos", "ends"),
    [
        ({}, 256, {256}),
        # generation_config.json overrides config.json, which overrides the tokenizer's files
        ({"generation_config": {"bos_token_id": 4, "eos_token_id": [5, 6]}}, 4, {5, 6}),
        ({"generation_config": {"bos_token_id": 4}, "config": {"bos_token_id": 7}}, 4, {256}),
        ({"generation_config": {}, "config": {"bos_token_id": 7, "eos_token_id": 8}}, 7, {8}),
        ({"config": {"bos_token_id": 7, "eos_token_id": 8}, "tokenizer_config": NAMES}, 7, {8}),
        ({"without": NEITHER_ID, "tokenizer_config": NAMES}, 257, {258}),
        ({"without": NEITHER_ID, "special_tokens_map": NAMES}, 257, {258}),
        ({"without": NEITHER_ID, "tokenizer_config": {"bos_token": {"content": "<|bos|>"}}},
         257, {256}),
        ({"without": ("bos_token_id",), "tokenizer_config": NAMES}, 257, {256}),
        ({"without": NEITHER_ID}, 256, {256}),
        # a token of the vocabulary, not an added one
        ({"without": NEITHER_ID, "tokenizer_config": {"bos_token": "a"}}, VOCAB["a"], {256}),
        # null or an invalid id: BOS comes from elsewhere, EOS is disabled
        ({"config": {"bos_token_id": None}, "tokenizer_config": NAMES}, 257, {256}),
        ({"config": {"bos_token_id": 9999}, "tokenizer_config": NAMES}, 257, {256}),
        ({"config": {"eos_token_id": None}, "tokenizer_config": NAMES}, 256, set()),
        ({"generation_config": {"eos_token_id": None}}, 256, set()),
        ({"generation_config": {"eos_token_id": -1}}, 256, set()),
        ({"generation_config": {"bos_token_id": None}}, 256, {256}),
        ({"generation_config": {"bos_token_id": 9999}}, 256, {256}),
    ],
)  # fmt: skip
def test_sources_of_bos_and_eos(
    tmp_path: Path, changes: dict[str, Any], bos: int, ends: set[int]
) -> None:
    model = load(folder_of(tmp_path / "model", **{**OWN, **changes}))
    assert model.config.bos_token_id == bos
    assert model.config.eos_token_ids == ends
    options = {"max_new_tokens": 5, "suppress_tokens": sorted(ends)}
    assert model.complete("", **options).ids == model.generate([bos], **options)
    empty = np.array([], dtype=np.int32)
    assert model.generate(empty, **options) == model.generate([bos], **options)
    ids = [VOCAB["x"], VOCAB["y"]]
    assert model.score("xy", bos=True).total == model.score([bos, *ids]).total
    assert model.score("xy", bos=True).ids.tolist() == ids
    # Saving and converting keep BOS and EOS.
    model.save_pretrained(tmp_path / "saved")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "converted")]) == 0
    for name in ("saved", "converted"):
        again = load(tmp_path / name).config
        assert (again.bos_token_id, again.eos_token_ids) == (bos, ends)


def test_bos_of_a_tokenizer_set_later(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, without=NEITHER_ID, has_tokenizer=False)
    model = load(folder)
    other = write_tokenizer(tmp_path, {})
    model.tokenizer = Tokenizer.from_files(other / "vocab.json", other / "merges.txt")
    assert model.complete("", max_new_tokens=3).ids == model.generate([256], max_new_tokens=3)


# ---- tokens added around every text ----


def test_bos_before_every_text(tmp_path: Path, backend: str) -> None:
    model = load(folder_of(tmp_path, **ADD_BOS), backend)
    ids = [VOCAB["x"], VOCAB["y"]]
    options = {"max_new_tokens": 4, "logprobs": 0, "echo": True}
    prompted = model.complete("xy", **options)
    assert prompted.ids == model.generate([256, *ids], max_new_tokens=4)
    assert len(prompted.prompt_logprobs or []) == 3
    assert "".join(model.stream("xy", max_new_tokens=4)) == prompted.text
    assert model.generate("", max_new_tokens=4) == model.generate("xy"[:0], max_new_tokens=4)
    np.testing.assert_array_equal(model.logits("xy"), model.logits([256, *ids]))
    # score() scores tokenizer(text), and bos=True does not add BOS twice.
    plain, with_bos = model.score("xy"), model.score("xy", bos=True)
    assert plain.ids.tolist() == [256, *ids]
    assert with_bos.ids.tolist() == ids
    assert plain.total == with_bos.total == model.score(ids, bos=True).total
    assert model.perplexity("xy") == model.perplexity("xy", bos=True)
    # Ids are used unchanged.
    assert model.score([256, *ids], bos=True).ids.tolist() == [256, *ids]


def test_tokens_around_every_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With bos=True, a tokenizer's BOS that differs from the model's is part of the scored text."""
    files = {**BOTH, "config": {"bos_token_id": 3}}
    folder = folder_of(tmp_path / "model", **files)
    model = load(folder)
    x = VOCAB["x"]
    assert model.score("x").ids.tolist() == [257, x, 258]
    assert model.score("x", bos=True).ids.tolist() == [257, x, 258]
    assert model.score("x", bos=True).total == model.score([3, 257, x, 258]).total
    # Bits per byte count only the text's own bytes.
    (tmp_path / "x.txt").write_text("x")
    assert main(["perplexity", str(tmp_path / "x.txt"), "--model", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_byte"] == pytest.approx(-model.score("x").total / np.log(2), rel=1e-6)


def gguf_flag(name: bytes) -> bytes:
    """Return a GGUF metadata entry with the value true."""
    return len(name).to_bytes(8, "little") + name + (7).to_bytes(4, "little") + b"\1"


def test_gguf_adds_bos_if_its_metadata_says_so(tmp_path: Path) -> None:
    """llama.cpp's key adds BOS. Two keys of 64 bytes together keep the tensors aligned."""
    source = FIXTURES / "formats" / "gguf" / "f32.gguf"
    ids = GPT2.from_pretrained(source).tokenizer.encode("a b")
    raw = source.read_bytes()
    n_keys = int.from_bytes(raw[16:24], "little")
    keys = gguf_flag(b"tokenizer.ggml.add_bos_token") + gguf_flag(b"general.xy")
    assert len(keys) == 64
    path = tmp_path / "bos.gguf"
    path.write_bytes(raw[:16] + (n_keys + 2).to_bytes(8, "little") + keys + raw[24:])
    model = GPT2.from_pretrained(path)
    assert model.tokenizer.encode("a b") == [model.config.bos_token_id, *ids]
    assert model.tokenizer.encode("a b", add_special_tokens=False) == ids
    model.save_pretrained(tmp_path / "saved")
    saved = GPT2.from_pretrained(tmp_path / "saved").tokenizer
    assert saved.encode("a b") == model.tokenizer.encode("a b")


# ---- ids outside the tokenizer ----

UNKNOWN = N_VOCAB - 2  # the tokenizer has 257 ids, the model 270


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize("ends", [UNKNOWN, [3, UNKNOWN]])
def test_an_eos_id_outside_the_tokenizer(
    tmp_path: Path, backend: str, name: str, ends: Any
) -> None:
    files = {name: {"eos_token_id": ends}}
    model = load(folder_of(tmp_path, **files, likeliest=UNKNOWN), backend)
    assert int(model.logits([1, 2])[-1].argmax()) == UNKNOWN
    for prompt in ([1, 2], "ab"):
        done = model.complete(prompt, max_new_tokens=5)
        assert (done.ids, done.finish_reason, done.end_id) == ([], "stop", UNKNOWN)
        assert list(model.stream(prompt, max_new_tokens=5)) == []
    assert model.complete([1, 2], max_new_tokens=5, num_beams=2).end_id == UNKNOWN
    late = model.complete([1, 2], max_new_tokens=5, min_new_tokens=3)
    assert len(late.ids) == 3
    assert UNKNOWN not in late.ids


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"pad_token_id": UNKNOWN}},
        {"config": {"bos_token_id": UNKNOWN}},
        {"config": {"sep_token_id": UNKNOWN}},
        {"generation_config": {"forced_eos_token_id": [UNKNOWN]}},
        {"generation_config": {"pad_token_id": UNKNOWN}},
        {"generation_config": {"bad_words_ids": [[1, UNKNOWN]]}},
    ],
)
def test_an_id_named_by_a_file_may_be_generated(tmp_path: Path, files: dict[str, Any]) -> None:
    model = load(folder_of(tmp_path, **files, likeliest=UNKNOWN))
    assert model.generate([2], max_new_tokens=3) == [UNKNOWN] * 3
    # The tokenizer has no text for this id.
    assert model.generate("a", max_new_tokens=3) == ""
    assert "".join(model.stream("a", max_new_tokens=3)) == ""
    assert model.generate("a", max_new_tokens=3, stop_strings=["x"]) == ""


def test_an_id_named_by_an_option_may_be_generated(tmp_path: Path, backend: str) -> None:
    model = load(folder_of(tmp_path, likeliest=UNKNOWN), backend)
    assert UNKNOWN not in model.generate([2], max_new_tokens=3)
    done = model.complete([2], max_new_tokens=3, stop_token_ids=[UNKNOWN])
    assert (done.ids, done.finish_reason) == ([], "stop")
    for options in ({"logit_bias": {UNKNOWN: 1.0}}, {"bad_words": [[1, UNKNOWN]]},
                    {"temperature": 1e-6, "seed": 1, "logit_bias": {UNKNOWN: 0.0}}):  # fmt: skip
        assert model.generate([2], max_new_tokens=3, **options) == [UNKNOWN] * 3
    for options in ({"suppress_tokens": [UNKNOWN]}, {"bad_words": [[UNKNOWN]]}):
        assert max(model.generate([2], max_new_tokens=3, **options)) < 257
    # An option that names one id does not allow the others.
    drawn = model.generate([2], max_new_tokens=40, temperature=50.0, seed=2,
                           logit_bias={UNKNOWN: -1e4})  # fmt: skip
    assert max(drawn) < 257


def test_a_length_in_a_file_does_not_name_an_id(tmp_path: Path) -> None:
    files = {"generation_config": {"max_new_tokens": UNKNOWN}}
    model = load(folder_of(tmp_path, **files, likeliest=UNKNOWN))
    assert UNKNOWN not in model.generate([2], max_new_tokens=3)
