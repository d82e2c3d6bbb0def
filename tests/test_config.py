"""GPT2Config: accepted keys, derived values, and errors that name the key."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2c.config import ACTIVATIONS, GPT2Config
from gpt2c.errors import CheckpointNotFoundError, ConfigError, Error

# transformers 5.23: GPT2Config().to_json_string(use_diff=False)
TRANSFORMERS_KEYS: dict[str, Any] = {
    "_name_or_path": "",
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "architectures": None,
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "chunk_size_feed_forward": 0,
    "dtype": None,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_range": 0.02,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_inner": None,
    "n_layer": 12,
    "n_positions": 1024,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "problem_type": None,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "return_dict": True,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "tie_word_embeddings": True,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "vocab_size": 50257,
}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_defaults_are_those_of_transformers(caplog: pytest.LogCaptureFixture) -> None:
    assert GPT2Config.from_dict({}) == GPT2Config() == GPT2Config.from_dict(TRANSFORMERS_KEYS)
    assert GPT2Config().inner == 3072
    assert GPT2Config().activation == "gelu_tanh"
    assert GPT2Config().eos_token_ids == {50256}
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"n_ctx": 77}, {"n_positions": 77}),
        ({"n_ctx": 77, "n_positions": 99}, {"n_positions": 99}),
        ({"n_ctx": None, "n_positions": 99}, {"n_positions": 99}),
        ({"max_position_embeddings": 9, "n_ctx": 8}, {"n_positions": 9}),
        ({"hidden_size": 24, "num_attention_heads": 3}, {"n_embd": 24, "n_head": 3}),
        ({"num_hidden_layers": 2, "n_layer": 2}, {"n_layer": 2}),
        ({"n_layer": 0, "n_embd": 10, "vocab_size": 3, "n_positions": 1}, {"n_embd": 10}),
        ({"n_inner": 5}, {"inner": 5}),
        ({"layer_norm_epsilon": 0}, {"layer_norm_epsilon": 0.0}),
        ({"activation_function": "swish"}, {"activation": "silu"}),
        ({"activation_function": "gelu"}, {"activation": "gelu_erf"}),
        ({"pad_token_id": 50257}, {"pad_token_id": None}),
        ({"bos_token_id": 5}, {"bos_token_id": 5}),
    ],
)
def test_keys(values: dict[str, Any], expected: dict[str, Any]) -> None:
    config = GPT2Config.from_dict(values)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("values", "eos", "ids"),
    [
        ({}, 50256, {50256}),
        ({"vocab_size": 50256}, None, set()),  # the default id is outside the vocabulary
        ({"eos_token_id": None}, None, set()),
        ({"eos_token_id": 0}, 0, {0}),
        ({"eos_token_id": 60000}, None, set()),
        ({"eos_token_id": -1}, None, set()),
        ({"eos_token_id": [7]}, 7, {7}),
        ({"eos_token_id": []}, None, set()),
        ({"eos_token_id": [9, 7, 9, 60000]}, (9, 7), {7, 9}),
    ],
)
def test_eos_tokens(values: dict[str, Any], eos: object, ids: set[int]) -> None:
    config = GPT2Config.from_dict(values)
    assert config.eos_token_id == eos
    assert config.eos_token_ids == ids


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
@pytest.mark.parametrize("value", [-1, 2**20 + 1, 2**60, 1.0, "12", True, None, [1]])
def test_errors_name_the_impossible_size(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^here: {name} must be an integer .*found"):
        GPT2Config.from_dict({name: value}, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_head": 0}, "n_head must be an integer from 1"),
        ({"n_inner": 0}, "n_inner must be an integer from 1"),
        ({"n_embd": 10, "n_head": 3}, "n_embd 10 and n_head 3"),
        ({"activation_function": "mish"}, "'mish'"),
        ({"activation_function": ["gelu"]}, "activation_function must be one of gelu, "),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be finite"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be finite"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon must be finite"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be a number"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon must be a number"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be true or false, found 1"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be"),
        ({"eos_token_id": "<|endoftext|>"}, "eos_token_id must be"),
        ({"eos_token_id": [1, None]}, "eos_token_id must be"),
        ({"eos_token_id": [1, 2.0]}, "eos_token_id must be"),
        ({"bos_token_id": False}, "bos_token_id must be"),
        ({"model_type": "gpt_neo"}, "model_type must be 'gpt2', found 'gpt_neo'"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"rope_theta": 10000.0}, "rope_theta"),
        ({"attention_head_type": "multiquery"}, "attention_head_type"),
        ({"n_embd": 12, "hidden_size": 24}, "n_embd is given twice"),
    ],
)
def test_unsupported_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as caught:
        GPT2Config.from_dict(values, "here")
    assert message in str(caught.value)


def test_neutral_values_are_accepted(caplog: pytest.LogCaptureFixture) -> None:
    values = {"add_cross_attention": False, "pruned_heads": {}, "quantization_config": None}
    GPT2Config.from_dict(values | {"position_embedding_type": "absolute", "torch_dtype": "float16"})
    assert not caplog.records


def test_unknown_keys_are_logged_and_not_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING, logger="gpt2c"):
        GPT2Config.from_dict({"my_note": 1, "n_ctx": 5, "n_positions": 6, "eos_token_id": -5})
    text = caplog.text
    assert "my_note" in text
    assert "n_ctx 5 is ignored" in text
    assert "eos_token_id -5" in text
    assert capfd.readouterr() == ("", "")


def test_the_constructor_checks_values_too() -> None:
    with pytest.raises(ConfigError, match=r"^n_embd must be a multiple"):
        GPT2Config(n_embd=10, n_head=3)
    config = GPT2Config(n_embd=np.int64(24), n_head=3)  # type: ignore[arg-type]
    assert type(config.n_embd) is int
    with pytest.raises(AttributeError):
        config.n_embd = 5  # type: ignore[misc]


def test_every_activation_maps_to_one_of_the_engine() -> None:
    engine = {"gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu", "tanh"}
    assert {GPT2Config(activation_function=name).activation for name in ACTIVATIONS} == engine


def test_from_json(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"vocab_size": 3, "n_layer": 0}))
    assert GPT2Config.from_json(str(path)) == GPT2Config(vocab_size=3, n_layer=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "found a JSON list, expected an object"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("{} {}", "is not JSON"),
        (b"\xff{}", "is not UTF-8 at byte 0"),
        (
            '{"n_embd": 8, "n_embd": 9}',
            "n_embd must be an integer from 1 to 1048576, found two val",
        ),
        ('{"layer_norm_epsilon": NaN}', "must be a number, found NaN"),
        ('{"layer_norm_epsilon": -Infinity}', "must be a number, found -Infinity"),
        ('{"layer_norm_epsilon": 1e999}', "must be a number, found 1e999"),
        ('{"n_embd": ' + "9" * 5000 + "}", "found a number of 5000 digits"),
        ('{"activation_function": "\\ud800"}', "found '\\ud800'"),
        (
            '{"n_embd": ' + "[" * 99 + "]" * 99 + "}",
            "must be an integer from 1 to 1048576, found [",
        ),
        ('{"x": ' + "[" * 100_000, "is not JSON"),
        ('{"x": ' + "[" * 100_000 + "}" * 100_000, "is not JSON"),
        ('{"vocab_size": 0}', "vocab_size must be an integer from 1"),
    ],
)
def test_from_json_rejects(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        GPT2Config.from_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400
    str(caught.value).encode()


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "-0", "1e999", "NaN", "[-Infinity]", '"\\ud800"', '{"0": "a", "0": "b"}',
     "[" * 33 + "]" * 33, "[" * 100_000 + "]" * 100_000, '1, "x": 2'],
    ids=lambda value: value[:9],
)  # fmt: skip
def test_unused_keys_may_hold_anything(tmp_path: Path, value: str) -> None:
    for key in ("x", "id2label", "\\ud800"):
        path = write(tmp_path, f'{{"n_embd": 24, "n_embd": 24, "{key}": {value}, "n_head": 3}}')
        config = GPT2Config.from_json(path)
        assert (config.n_embd, config.n_head) == (24, 3)


def test_brackets_in_strings_do_not_count_as_nesting(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"_name_or_path": '\\"' + "[{" * 100, "n_layer": 2}))
    assert GPT2Config.from_json(path).n_layer == 2


def test_from_json_of_something_that_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nothing"):
        GPT2Config.from_json(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        GPT2Config.from_json(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be opened"):
        GPT2Config.from_json(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # a plain open() would hang
        with pytest.raises(ConfigError, match="expected a regular file"):
            GPT2Config.from_json(tmp_path / "pipe")


TEXTS = st.text("0gelu_<|>", max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from([*TRANSFORMERS_KEYS, "n_ctx", "hidden_size", "pruned_heads", "rope_theta"])


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_value_is_accepted_or_raises_our_error(values: dict[str, Any]) -> None:
    try:
        config = GPT2Config.from_dict(values)
    except Error:
        return
    assert GPT2Config.from_dict(config.__dict__) == config
