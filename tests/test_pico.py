"""picoGPT's way of loading a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES

import gpt2c
from gpt2c import GPT2, gen_text, load_encoder_hparams_and_params
from gpt2c.errors import CheckpointNotFoundError, ConfigError

FORMATS = FIXTURES / "formats"
TALES = Path(gpt2c.__file__).parent / "models"


def test_openais_folder() -> None:
    encoder, hparams, params = load_encoder_hparams_and_params("tensorflow", FORMATS)
    assert hparams == {"n_vocab": 3, "n_ctx": 9, "n_embd": 10, "n_head": 5, "n_layer": 2}
    assert params.keys() == {"wte", "wpe", "blocks", "ln_f"}
    assert params["blocks"][1].keys() == {"ln_1", "attn", "ln_2", "mlp"}
    assert params["blocks"][1]["mlp"]["c_fc"]["w"].shape == (10, 40)
    assert params["ln_f"]["g"].dtype == np.float32
    model = GPT2.from_picogpt(hparams, params)
    whole = GPT2.from_pretrained(FORMATS / "tensorflow")
    np.testing.assert_array_equal(model.logits([0, 1, 2]), whole.logits([0, 1, 2]))
    with pytest.raises(gpt2c.TokenizerError):
        encoder.encode("a")


def test_the_triple_generates_the_same_text() -> None:
    triple = load_encoder_hparams_and_params("tales", TALES)
    assert gen_text("Once upon a time", 12, model=triple) == gen_text("Once upon a time", 12)


def test_openais_tokenizer_files(tmp_path: Path) -> None:
    """encoder.json and vocab.bpe, here of another vocabulary: they count, not GPT-2's own."""
    folder = shutil.copytree(TALES / "tales", tmp_path / "124M")
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    encoder, _, _ = load_encoder_hparams_and_params("124M", tmp_path)
    text = "The king of the forest<|endoftext|>"
    assert encoder.encode(text) == GPT2.from_pretrained().tokenizer.encode(text)
    GPT2.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert GPT2.from_pretrained(tmp_path / "saved").tokenizer.encode(text) == encoder.encode(text)


def test_what_picogpt_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="355M: there is no such folder"):
        load_encoder_hparams_and_params("355M", tmp_path)
    with pytest.raises(TypeError, match="model_size is 5"):
        load_encoder_hparams_and_params(5, tmp_path)  # type: ignore[arg-type]
    folder = FIXTURES / "transformers"
    for name, message in (
        ("untied_inverse", "scale_attn_by_inverse_layer_idx is True"),
        ("unscaled_silu", "scale_attn_weights is False"),
        ("tanh", "activation_function is 'tanh'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_encoder_hparams_and_params(name, folder)
