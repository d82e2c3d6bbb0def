"""Options for facts that a checkpoint lacks; the file names of TensorFlow checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    FORMATS,
    TINY,
    arrays_of,
    assert_arrays_equal,
    config_of,
    load,
    random_weights,
    shared_data,
)

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    OptionError,
    OptionTypeError,
)
from gpt2c.weights.checkpoint import open_checkpoint
from gpt2c.weights.hub import locate

KINDS = (
    FORMATS / "nanogpt", FORMATS / "build_nanogpt", FORMATS / "mingpt", FORMATS / "llmc_float32",
    FORMATS / "gguf" / "f32.gguf", FORMATS / "tensorflow", FORMATS / "torch_zip", TINY,
)  # fmt: skip


# ---- activation ----


@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.name)
def test_activation_overrides_every_kind(path: Path, backend: str, tmp_path: Path) -> None:
    """The option acts like activation_function in config.json."""
    ids = [2, 1, 0, 2]
    for activation in ("gelu_new", "gelu", "relu"):
        with load(path, backend, activation=activation) as model:
            assert model.config.activation_function == activation
            found = model.logits(ids)
            model.save_pretrained(tmp_path / activation)
        values = json.loads((tmp_path / activation / "config.json").read_text())
        assert values["activation_function"] == activation
        saved = load(tmp_path / activation, backend)
        np.testing.assert_array_equal(saved.logits(ids), found)
    relu = GPT2.from_pretrained(path, activation="relu").logits(ids)
    assert not np.array_equal(relu, GPT2.from_pretrained(path, activation="gelu").logits(ids))


def test_unknown_activations() -> None:
    with pytest.raises(OptionError, match=r"activation is 'gelu_old'; it must be one of.*gelu_new"):
        GPT2.from_pretrained(TINY, activation="gelu_old")
    with pytest.raises(OptionTypeError, match="activation is 5"):
        GPT2.from_pretrained(TINY, activation=5)  # type: ignore[arg-type]


# ---- TensorFlow's checkpoints ----


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A TensorFlow checkpoint folder without hparams.json."""
    folder = shutil.copytree(FORMATS / "tensorflow", tmp_path / "run1")
    (folder / "hparams.json").unlink()
    for file in list(folder.glob("model.ckpt.*")):
        file.rename(folder / file.name.replace("model.ckpt", "model-9"))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model-9"\n')
    return folder


def hparams() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((FORMATS / "tensorflow" / "hparams.json").read_text())
    return values


def test_a_folder_without_hparams(bare: Path, tmp_path: Path) -> None:
    expected = arrays_of(FORMATS / "tensorflow")
    for path in (bare, bare / "model-9", bare / "model-9.index"):
        with pytest.raises(CheckpointNotFoundError, match=r"no hparams\.json.*pass hparams="):
            open_checkpoint(path)
    shutil.copy(FORMATS / "tensorflow" / "hparams.json", tmp_path / "sizes.json")
    shutil.copy(FORMATS / "tensorflow" / "hparams.json", tmp_path)
    for given in (hparams(), {"n_head": hparams()["n_head"]}, tmp_path / "sizes.json",
                  str(tmp_path)):  # fmt: skip
        for path in (bare, bare / "model-9"):
            found = arrays_of(path, hparams=given)
            assert_arrays_equal(found, expected)
    # The option overrides the file.
    (bare / "hparams.json").write_text('{"n_head": 99}')
    with pytest.raises((CheckpointError, ConfigError), match="n_head 99"):
        open_checkpoint(bare)
    assert GPT2.from_pretrained(bare, hparams=hparams()).config.n_head == hparams()["n_head"]


def test_mismatched_hparams(bare: Path) -> None:
    with pytest.raises(CheckpointError, match="hparams: n_vocab is 50257, and the tensors have 3"):
        open_checkpoint(bare, hparams="124M")
    with pytest.raises(OptionError, match=r"hparams is '125M', and there is no such file.*124M"):
        open_checkpoint(bare, hparams="125M")
    with pytest.raises(OptionTypeError, match="hparams is 5; it must be a dict, a path, or a name"):
        open_checkpoint(bare, hparams=5)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="n_head is missing"):
        open_checkpoint(bare, hparams={})
    for path in (TINY, FORMATS / "nanogpt", FORMATS / "gguf" / "f32.gguf"):
        with pytest.raises(OptionError, match="hparams and n_head are for checkpoints that do"):
            open_checkpoint(path, hparams={"n_head": 2})


def test_named_sizes_are_those_of_openai() -> None:
    """OpenAI names each size by its number of parameters, rounded to millions."""
    from gpt2c.config import GPT2Config
    from gpt2c.weights.checkpoint.shared.hparams import given_hparams

    for name in ("124M", "355M", "774M", "1558M"):
        values = given_hparams(name)
        config = GPT2Config(
            vocab_size=values["n_vocab"], n_positions=values["n_ctx"], n_embd=values["n_embd"],
            n_head=values["n_head"], n_layer=values["n_layer"],
        )  # fmt: skip
        assert f"{config.n_parameters / 1e6:.0f}M" == name
        assert config.n_embd // config.n_head == 64


def test_every_file_of_a_tensorflow_checkpoint_names_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "run1/model-9" is a path here, not a name on the hub."""
    (bare / "hparams.json").write_text(json.dumps(hparams()))
    monkeypatch.chdir(bare.parent)
    assert locate("run1/model-9") == Path("run1/model-9")
    expected = arrays_of(FORMATS / "tensorflow")
    for name in ("run1", "run1/model-9", "run1/model-9.index", "run1/checkpoint",
                 "run1/model-9.data-00000-of-00001", "run1/model-9.meta"):  # fmt: skip
        (bare / "model-9.meta").write_bytes(b"a graph")
        np.testing.assert_array_equal(arrays_of(Path(name))["wpe.weight"], expected["wpe.weight"])
    with pytest.raises(CheckpointNotFoundError):
        open_checkpoint(Path("run1/model-8"))


def test_the_latest_of_several_checkpoints_is_read(bare: Path) -> None:
    (bare / "hparams.json").write_text(json.dumps(hparams()))
    for file in list(bare.glob("model-9.*")):
        shutil.copy(file, bare / file.name.replace("-9", "-10"))
    for latest in ("model-10", "model-9"):
        (bare / "checkpoint").write_text(
            f'model_checkpoint_path: "{latest}"\nall_model_checkpoint_paths: "model-9"\n'
        )
        for path in (bare, bare / "checkpoint"):
            with open_checkpoint(path) as checkpoint:
                assert checkpoint.files[0].path.name == f"{latest}.index"  # type: ignore[attr-defined]


def test_hparams_of_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays_of(TINY))
    with pytest.raises(CheckpointError, match="n_head is missing"):
        open_checkpoint(tmp_path / "x.npz")
    with open_checkpoint(tmp_path / "x.npz", hparams={"n_head": 5}) as checkpoint:
        assert checkpoint.config.n_head == 5


# ---- the command line ----


def test_every_command_accepts_hparams_and_activation(
    bare: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ["--hparams", str(FORMATS / "tensorflow" / "hparams.json"), "--activation", "relu"]
    for command in ("convert", "quantize"):
        assert main([command, str(bare), str(tmp_path / command), *options]) == 0
        values = json.loads((tmp_path / command / "config.json").read_text())
        assert values["activation_function"] == "relu"
    assert main(["info", "--model", str(bare), *options]) == 0
    assert "activation        relu" in capsys.readouterr().out
    (tmp_path / "ids.jsonl").write_text("[1, 2, 0]\n")
    for command in (["perplexity"], ["score"]):
        found = []
        for last in ("relu", "gelu"):
            model = ["--model", str(bare), *options[:3], last]
            assert main([*command, str(tmp_path / "ids.jsonl"), *model]) == 0
            found.append(capsys.readouterr().out)
        assert found[0] != found[1]
    assert main(["info", "--model", str(bare), *options[:3], "elu"]) == 2
    assert "activation is 'elu'" in capsys.readouterr().err
    assert main(["generate", "a", "--model", str(bare), *options[:3], "elu"]) == 2
    assert "activation is 'elu'" in capsys.readouterr().err


def test_bench_passes_the_options_to_its_fresh_process(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fresh process of the benchmark gets the same options."""
    from gpt2c.cli.bench import speed

    config = config_of(n_positions=64)
    stored = {
        "model/" + _openai_name(name): array for name, array in random_weights(config).items()
    }
    np.savez(tmp_path / "x.npz", **stored)
    options = {"activation": None, "hparams": {"n_head": config.n_head}}
    with GPT2.from_pretrained(tmp_path / "x.npz", backend="numpy", **options) as model:  # type: ignore[arg-type]
        *_, last = speed._measure_fresh_process(model, str(tmp_path / "x.npz"), 1, options)
        assert last.values[0] > 0
    assert last.unit == "MB"


def _openai_name(name: str) -> str:
    *path, leaf = name.split(".")
    if path in (["wte"], ["wpe"]):
        return path[0]
    leaf = {"weight": "g" if path[-1].startswith("ln_") else "w", "bias": "b"}[leaf]
    block = [f"h{path[1]}", *path[2:]] if path[0] == "h" else path
    return "/".join([*block, leaf])


# ---- GPT-2's own tokenizer is saved too ----


def test_gpt2s_own_tokenizer_is_saved(tmp_path: Path) -> None:
    """The saved vocab.json and merges.txt equal OpenAI's, so transformers reads them."""
    config = config_of(vocab_size=50257, n_embd=6, n_layer=1)
    np.savez(tmp_path / "x.npz", **random_weights(config), n_head=3)
    assert main(["convert", str(tmp_path / "x.npz"), str(tmp_path / "converted")]) == 0
    model = GPT2.from_pretrained(tmp_path / "x.npz")
    model.save_pretrained(tmp_path / "saved")
    assert model.tokenizer.encode("Hello world") == [15496, 995]
    model.save_pretrained(tmp_path / "saved_again")
    for name in ("converted", "saved", "saved_again"):
        vocab = json.loads((tmp_path / name / "vocab.json").read_text())
        assert len(vocab) == 50257
        assert (vocab["!"], vocab["Ġthe"], vocab["<|endoftext|>"]) == (0, 262, 50256)
        merges = (tmp_path / name / "merges.txt").read_text().splitlines()
        assert merges[:2] == ["#version: 0.2", "Ġ t"]
        assert len(merges) == 50001
        again = GPT2.from_pretrained(tmp_path / name)
        text = "Hello <|endoftext|> wörld\n\n  '' it's"
        assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
        if (data := shared_data()) is not None:
            assert vocab == json.loads((data / "tokenizer" / "encoder.json").read_text())


def test_no_tokenizer_is_saved_for_other_vocabulary_sizes(tmp_path: Path) -> None:
    assert main(["convert", str(TINY), str(tmp_path / "tiny")]) == 0
    assert sorted(os.listdir(tmp_path / "tiny")) == ["config.json", "model.safetensors"]


def test_transformers_reads_a_converted_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = config_of(vocab_size=50257, n_embd=6, n_layer=1)
    np.savez(tmp_path / "x.npz", **random_weights(config), n_head=3)
    assert main(["convert", str(tmp_path / "x.npz"), str(tmp_path / "new")]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    ours = GPT2.from_pretrained(tmp_path / "new").tokenizer
    text = "Hello <|endoftext|> wörld\n\n  '' it's 漢字 😀"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == 50256
