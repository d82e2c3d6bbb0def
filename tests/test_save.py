"""Saving: saved models load again, here and with the safetensors package; writes are atomic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import (
    FIXTURES,
    TINY,
    arrays_of,
    assert_arrays_equal,
    config_of,
    load,
    model_on,
    random_weights,
)
from model_folders import as_hub_cache

import gpt2c
from gpt2c import GPT2
from gpt2c.cli.main import main

TRANSFORMERS = FIXTURES / "transformers"


@pytest.mark.parametrize("name", ["tiny", "untied_inverse", "relu_inner", "no_blocks", "bfloat16"])
def test_a_saved_model_loads_again(backend: str, name: str, tmp_path: Path) -> None:
    source = TRANSFORMERS / name
    with load(source, backend) as model:
        model.save_pretrained(tmp_path / "a" / "saved")
        assert_arrays_equal(arrays_of(tmp_path / "a" / "saved"), arrays_of(source))
        ids = list(range(min(model.config.vocab_size, model.config.n_positions)))
        saved = load(tmp_path / "a/saved", backend)
        assert saved.config == model.config
        np.testing.assert_array_equal(saved.logits(ids), model.logits(ids))


def test_the_file_has_transformers_format(tmp_path: Path) -> None:
    """The prefix "transformer.", transformers' metadata, no tied head, and matrices [in, out]."""
    source = TRANSFORMERS / "plain"
    GPT2.from_pretrained(source).save_pretrained(str(tmp_path / "saved"))
    ours = safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors")
    theirs = safetensors.numpy.load_file(source / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    with safetensors.safe_open(tmp_path / "saved" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["architectures"] == ["GPT2LMHeadModel"]
    modes = {path.stat().st_mode for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1


def test_the_tokenizer_is_saved_too(tmp_path: Path) -> None:
    model = GPT2.from_pretrained()
    model.save_pretrained(tmp_path / "tales")
    again = GPT2.from_pretrained(tmp_path / "tales")
    assert again.generate("Once upon a time") == model.generate("Once upon a time")
    assert sorted(os.listdir(tmp_path)) == ["tales"]


def test_saving_over_another_model(tmp_path: Path) -> None:
    config = config_of()
    models = [model_on("numpy", config, random_weights(config, seed)) for seed in (1, 2)]
    (tmp_path / "notes.txt").write_text("kept")
    for model in models:
        model.save_pretrained(tmp_path)
        saved = GPT2.from_pretrained(tmp_path, backend="numpy")
        np.testing.assert_array_equal(saved.logits([1, 2]), model.logits([1, 2]))
    names = ["config.json", "model.safetensors", "notes.txt"]
    assert sorted(os.listdir(tmp_path)) == names
    saved.save_pretrained(tmp_path)  # overwrite the files from which the model was loaded
    assert sorted(os.listdir(tmp_path)) == names


def test_a_failed_save_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    model = model_on("numpy", config, random_weights(config))
    model.save_pretrained(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    other = model_on("numpy", config, random_weights(config, 5))
    for name in ("model", "new"):
        with pytest.raises(gpt2c.CheckpointError, match="No space left"):
            other.save_pretrained(tmp_path / name)
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_only_writing_needs_safetensors(tmp_path: Path) -> None:
    """Importing, reading and generating work without the package; saving says what to install."""
    program = f"""
        import sys
        sys.modules["safetensors"] = sys.modules["safetensors.numpy"] = None
        import gpt2c
        from gpt2c.weights.checkpoint import open_checkpoint
        with open_checkpoint({str(TINY)!r}) as checkpoint:
            assert checkpoint.read_all()
        for path in (None, {str(TINY)!r}):
            model = gpt2c.GPT2.from_pretrained(path)
            assert len(model.generate([1, 2], max_new_tokens=3)) == 3
        try:
            model.save_pretrained({str(tmp_path / "new")!r})
        except gpt2c.MissingDependencyError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "pip install safetensors" in result.stdout
    assert not (tmp_path / "new").exists()


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    config = config_of()
    model = model_on("numpy", config, random_weights(config))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(gpt2c.CheckpointError, match="cannot be written"):
            model.save_pretrained(path)
    assert (tmp_path / "file").read_text() == ""
    model.close()
    with pytest.raises(gpt2c.ClosedError):
        model.save_pretrained(tmp_path / "closed")
    assert not (tmp_path / "closed").exists()


def test_engine_reads_back_any_rows(isa: str) -> None:
    config = config_of(vocab_size=77, n_embd=24)
    weights = random_weights(config)
    engine = model_on(isa, config, weights)._engine
    for name in ("wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_proj.weight"):
        for begin, end in ((0, 1), (3, 20), (5, len(weights[name]))):
            rows = np.empty((end - begin, weights[name].shape[1]), dtype=np.float32)
            engine.read(name, rows, begin)
            np.testing.assert_array_equal(rows, weights[name][begin:end])
    rows = np.empty((1, 24), dtype=np.float32)
    for name, begin in (("wte.weight", 77), ("h.2.ln_1.weight", 0), ("lm_head.weight", 0)):
        with pytest.raises(gpt2c.OptionError):
            engine.read(name, rows, begin)
    with pytest.raises(gpt2c.OptionError):
        engine.read("wte.weight", rows[:, :5].copy(), 0)


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("torch_legacy", "safetensors_sharded"):
        assert main(["convert", str(FIXTURES / "formats" / name), str(tmp_path / name)]) == 0
        expected = arrays_of(TINY)
        for tensor, array in arrays_of(tmp_path / name).items():
            np.testing.assert_array_equal(array, expected[tensor])
    assert capsys.readouterr().out == ""
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """A saved folder may be shared, so an untrusted checkpoint must not pull in other files."""
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for name in ("special_tokens_map.json", "tokenizer_config.json", "generation_config.json"):
        source = tmp_path / name / "model"
        GPT2.from_pretrained().save_pretrained(source)
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(secret)
        assert main(["convert", str(source), str(tmp_path / name / "to")]) == 2
        assert os.listdir(tmp_path / name) == ["model"]
    # The hub's cache consists of links.
    GPT2.from_pretrained().save_pretrained(tmp_path / "plain")
    snapshot = as_hub_cache(tmp_path / "plain", tmp_path / "repo")
    assert main(["convert", str(snapshot), str(tmp_path / "to")]) == 0
    assert (tmp_path / "to" / "vocab.json").is_file()


def test_no_file_is_replaced_unless_all_can_be(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(gpt2c.CheckpointError, match="found a folder"):
        GPT2.from_pretrained().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def test_unusual_paths_to_save_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT2.from_pretrained()
    for path in ("a\0b", "\ud800"):
        with pytest.raises(gpt2c.CheckpointError, match="cannot be written"):
            model.save_pretrained(path)
    for path in (5, None, b"x"):
        with pytest.raises(gpt2c.OptionTypeError, match="must be a str or a Path"):
            model.save_pretrained(path)  # type: ignore[arg-type]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model.save_pretrained(".")
    assert GPT2.from_pretrained(".").config == model.config
