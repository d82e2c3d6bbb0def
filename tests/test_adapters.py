"""LoRA adapters: the logits of peft's merge, and errors for what cannot be merged."""

from __future__ import annotations

import base64
import json
import logging
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import (
    FIXTURES,
    FORMATS,
    assert_arrays_equal,
    assert_logits_close,
    cases,
    load,
    needs_engine,
)
from fuzzing import mutated

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    Error,
    OptionError,
    OptionTypeError,
)
from gpt2c.weights.adapters import open_with_adapters

ADAPTERS = FIXTURES / "adapters"
BASE = ADAPTERS / "base"
EXPECTED = json.loads((ADAPTERS / "expected.json").read_text())
IDS = EXPECTED["ids"]
CASES = [name for name in EXPECTED["cases"] if name != "classifier"]


def logits_in(case: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(case["logits"]), "<f4")


def tensors_of(adapter: Any, base: Path = BASE) -> dict[str, np.ndarray]:
    with open_with_adapters(base, adapter) as checkpoint:
        return checkpoint.read_all()


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A function that copies an adapter, changes its settings and its tensors."""

    def edit(name: str, change: Callable[[dict], object] | None = None, **settings: Any) -> Path:
        folder = tmp_path / f"{name}_edited"
        shutil.copytree(ADAPTERS / name, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        if change is not None:
            file = folder / "adapter_model.safetensors"
            tensors = safetensors.numpy.load_file(file)
            change(tensors)
            safetensors.numpy.save_file(tensors, file)
        return folder

    return edit


# ---- what peft's merge computes ----


@pytest.mark.parametrize("name", CASES)
def test_logits_and_texts_equal_those_of_pefts_merge(name: str, backend: str) -> None:
    """peft merges in float32; so the two differ by float32's rounding (`logit_atol`)."""
    case = EXPECTED["cases"][name]
    base = ADAPTERS / ("base_untied" if name == "untied" else "base")
    with load(base, backend, adapter=ADAPTERS / name) as model:
        assert model.config.tie_word_embeddings == case["tied"]
        assert_logits_close(model.logits(IDS), logits_in(case))
        assert list(model.generate(IDS, max_new_tokens=5))[-5:] == case["greedy"]


@pytest.mark.parametrize("case", EXPECTED["several"], ids=["sum", "weights"])
def test_several_adapters_add_up_with_their_weights(case: dict[str, Any], backend: str) -> None:
    given = [(ADAPTERS / name, weight) for name, weight in case["adapters"]]
    with load(BASE, backend, adapter=given) as model:
        assert model.adapters == tuple((str(path), weight) for path, weight in given)
        assert_logits_close(model.logits(IDS), logits_in(case))
        assert list(model.generate(IDS, max_new_tokens=5))[-5:] == case["greedy"]


def test_a_merge_is_rounded_to_float32_once() -> None:
    """No merged weight is further than half an ULP from the value in float64."""
    weights = {"plain": 1.0, "everywhere": -0.75}
    merged = tensors_of([(ADAPTERS / name, weight) for name, weight in weights.items()])
    name = "h.1.attn.c_attn"
    exact = tensors_of(None)[f"{name}.weight"].astype(np.float64)
    for adapter, weight in weights.items():
        config = json.loads((ADAPTERS / adapter / "adapter_config.json").read_text())
        tensors = safetensors.numpy.load_file(ADAPTERS / adapter / "adapter_model.safetensors")
        stored = f"base_model.model.transformer.{name}"
        a, b = (tensors[f"{stored}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        exact += weight * config["lora_alpha"] / config["r"] * (a.T @ b.T)
    found = merged[f"{name}.weight"]
    # The sums in float64 may be in another order, which moves them by far less than 1% of an ULP.
    assert (np.abs(found - exact) <= 0.51 * np.spacing(np.abs(found)).astype(np.float64)).all()
    assert (np.abs(found - exact) > 0).any()


def test_a_weight_of_zero_changes_nothing() -> None:
    assert_arrays_equal(tensors_of([(ADAPTERS / "everywhere", 0)]), tensors_of(None))


def test_parts_are_merged_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces in which the weights are read and updated do not show in any bit."""
    whole = tensors_of(ADAPTERS / "embeddings")
    monkeypatch.setattr("gpt2c.weights.checkpoint.shared.views._UPDATED_ELEMENTS", 50)
    monkeypatch.setattr("gpt2c.weights.loading.CHUNK_BYTES", 300)
    with GPT2.from_pretrained(BASE, adapter=ADAPTERS / "embeddings") as model:
        for name, array in whole.items():
            np.testing.assert_array_equal(model.weight(name), array)


# ---- everything that loads a model ----


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@needs_engine
def test_every_dtype_and_command_has_the_merged_weights(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`convert` and `quantize` write what loading with the adapter computes."""
    adapters = ["--adapter", str(ADAPTERS / "everywhere"), "--adapter"]
    adapters += [f"{ADAPTERS / 'plain'}=-0.5"]
    given = [ADAPTERS / "everywhere", (ADAPTERS / "plain", -0.5)]
    command = ["convert"] if dtype == "float32" else ["quantize", "--dtype", dtype]
    assert main([*command, str(BASE), str(tmp_path / "out"), *adapters]) == 0
    with (
        GPT2.from_pretrained(BASE, adapter=given, dtype=dtype) as model,
        GPT2.from_pretrained(tmp_path / "out") as written,
        GPT2.from_pretrained(BASE, dtype=dtype) as base,
    ):
        assert written.dtype == model.dtype == dtype
        assert written.fingerprint == model.fingerprint != base.fingerprint
        np.testing.assert_array_equal(written.logits(IDS), model.logits(IDS))
    assert main(["info", "--model", str(BASE), "--dtype", dtype, *adapters]) == 0
    assert f"{ADAPTERS / 'plain'} (weight -0.5)" in capsys.readouterr().out


@needs_engine
@pytest.mark.parametrize("draft", ["packing", "lookup"])
def test_drafts_change_no_text(draft: str) -> None:
    options = {"max_new_tokens": 6, "temperature": 0.9, "seed": 3}
    with GPT2.from_pretrained(BASE, adapter=ADAPTERS / "everywhere") as model:
        assert model.generate(IDS, draft=draft, **options) == model.generate(
            IDS, draft=None, **options
        )


@needs_engine
def test_a_quantised_base_is_dequantised_merged_and_quantised_again(tmp_path: Path) -> None:
    with GPT2.from_pretrained(BASE, dtype="int8") as model:
        model.save_pretrained(tmp_path / "int8")
        base = model.weight("h.0.attn.c_attn.weight")
        untouched = model.weight("h.0.mlp.c_fc.weight")
    with GPT2.from_pretrained(tmp_path / "int8", adapter=ADAPTERS / "plain") as model:
        assert model.dtype == "int8"
        np.testing.assert_array_equal(model.weight("h.0.mlp.c_fc.weight"), untouched)
        found = model.weight("h.0.attn.c_attn.weight")
    change = tensors_of(ADAPTERS / "plain")["h.0.attn.c_attn.weight"]
    change = change - tensors_of(None)["h.0.attn.c_attn.weight"]
    # Symmetric int8: half a step of the largest weight of a group, and bfloat16's scale.
    atol = float(np.abs(base + change).max()) * (0.5 / 127 + 2**-8)
    np.testing.assert_allclose(found, base + change, rtol=0, atol=atol)


def test_other_kinds_of_checkpoints_take_adapters(edited: Callable[..., Path]) -> None:
    """nanoGPT stores its matrices transposed, and so reads them whole."""
    with open_with_adapters(FORMATS / "nanogpt", None) as checkpoint:
        config, before = checkpoint.config, checkpoint.read_all()
    rng = np.random.default_rng(0)
    width = config.n_embd

    def fit(tensors: dict[str, Any]) -> None:
        tensors.clear()
        for block in range(config.n_layer):
            name = f"base_model.model.transformer.h.{block}.attn.c_attn.lora_"
            tensors[f"{name}A.weight"] = rng.standard_normal((3, width), np.float32)
            tensors[f"{name}B.weight"] = rng.standard_normal((3 * width, 3), np.float32)

    folder = edited("plain", fit)
    with GPT2.from_pretrained(FORMATS / "nanogpt", adapter=folder) as model:
        found = model.weight("h.0.attn.c_attn.weight")
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.transformer.h.0.attn.c_attn.lora_{x}.weight"] for x in "AB")
    expected = before["h.0.attn.c_attn.weight"] + 5 / 3 * (a.T @ b.T)
    # numpy's product is in float32 here: some ULP of the largest weight.
    np.testing.assert_allclose(found, expected, rtol=0, atol=8e-7 * np.abs(expected).max())


def test_matrices_of_16_bits_that_an_adapter_changes_are_float32(tmp_path: Path) -> None:
    base = tmp_path / "half"
    shutil.copytree(BASE, base)
    weights = safetensors.numpy.load_file(base / "model.safetensors")
    halves = {name: array.astype(np.float16) for name, array in weights.items()}
    safetensors.numpy.save_file(halves, base / "model.safetensors")
    with GPT2.from_pretrained(base, adapter=ADAPTERS / "plain") as model:
        assert model.stored_dtype("h.0.attn.c_attn.weight") == "float32"
        if model.backend != "numpy":
            assert model.stored_dtype("h.0.mlp.c_fc.weight") == "float16"


def test_the_path_of_an_adapters_file_means_its_folder() -> None:
    by_file = tensors_of(ADAPTERS / "plain" / "adapter_model.safetensors")
    assert_arrays_equal(by_file, tensors_of(str(ADAPTERS / "plain")))


def test_heads_that_the_model_lacks_are_left_out(
    edited: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = edited("plain", lambda t: t.update({"v_head.summary.weight": np.zeros(3, "f4")}))
    with caplog.at_level(logging.WARNING, "gpt2c"):
        assert_arrays_equal(tensors_of(folder), tensors_of(ADAPTERS / "plain"))
    assert "left out: 'v_head.summary.weight'" in caplog.text


def test_a_tied_head_changes_with_its_embedding_and_a_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "gpt2c"):
        tensors_of(ADAPTERS / "head")
    assert "changes both wte and lm_head" in caplog.text


# ---- what cannot be merged ----


REFUSED = {
    "dora": "use_dora is True: DoRA is not supported",
    "lora_bias": "lora_bias is True: a bias of lora_B",
    "tokens": "trainable_token_indices",
    "parameters": "target_parameters",
    "pissa": "init_lora_weights is 'pissa'",
    "ia3": "peft_type 'IA3', expected 'LORA'",
    "tied": "ensure_weight_tying is true",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_adapters_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}/adapter_config.json: .*{REFUSED[name]}"):
        tensors_of(ADAPTERS / "refused" / name)


def test_tensors_of_other_adapters_are_refused_even_if_the_settings_do_not_name_them(
    edited: Callable[..., Path],
) -> None:
    folder = edited("plain")
    shutil.copy(ADAPTERS / "refused/dora/adapter_model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector' is not one of plain LoRA's"):
        tensors_of(folder)


ATTN = "base_model.model.transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{ATTN}.lora_A.weight"), "'transformer.h.0.attn.c_attn' has lora_B and"),
        (
            lambda t: [t.pop(f"{ATTN}.lora_{x}.weight") for x in "AB"],
            "no LoRA for 'transformer.h.0.attn.c_attn', which target_modules",
        ),
        (
            lambda t: t.update({f"{ATTN}.lora_A.weight": np.zeros((2, 16), np.float32)}),
            r"found lora_A \[2, 16\].*expected \[3, 16\]",
        ),
        (
            lambda t: t.update({f"{ATTN}.lora_A.weight": np.zeros(0, np.float32)}),
            "not gathered from its shards",
        ),
        (
            lambda t: t.update({f"{ATTN}.lora_A.weight": np.full((3, 16), np.nan, np.float32)}),
            "found nan in row 0, expected finite",
        ),
        (
            lambda t: t.update({f"{ATTN}.lora_A.weight": np.zeros((3, 16), np.int32)}),
            "found dtype I32",
        ),
        (
            lambda t: t.update({k.replace("h.0", "h.7"): v for k, v in t.items() if "h.0" in k}),
            r"for 'transformer.h.7.attn.c_attn', and this model of 2 blocks .*adapters/base",
        ),
        (
            lambda t: t.update({k.replace("attn.c_attn", "mlp.c_proj"): v for k, v in t.items()}),
            "which target_modules of adapter_config.json do not name",
        ),
        (
            lambda t: t.update({"base_model.model.transformer.h.0.new.weight": np.zeros(3, "f4")}),
            "'transformer.h.0.new.weight', which this model does not have",
        ),
        (
            lambda t: t.update({"base_model.model.transformer.ln_f.bias": np.zeros(3, "f4")}),
            r"'ln_f.bias': found shape \[3\], expected \[16\]",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(
    change: Callable[[dict], object], message: str, edited: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        tensors_of(edited("plain", change))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": None}, "no peft_type"),
        ({"r": 0}, "r is 0, expected an integer from 1"),
        ({"r": True}, "r is True"),
        ({"r": 4}, "the rank 4 of adapter_config.json"),
        ({"lora_alpha": "5"}, "lora_alpha is '5'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"rank_pattern": [1]}, "rank_pattern is"),
        ({"rank_pattern": {"c_attn": "x"}}, r"rank_pattern\['c_attn'\] is 'x'"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern: the pattern '\(' has an unbalanced"),
        ({"alpha_pattern": {"(?=a)": 1}}, r"alpha_pattern: the pattern .* not supported"),
        ({"target_modules": [3]}, "target_modules is"),
        ({"target_modules": ["c_fc"]}, "do not name"),
        ({"target_modules": "(?i)c_attn"}, "target_modules: the pattern"),
        ({"layers_to_transform": [0]}, "'transformer.h.1.attn.c_attn', which target_modules"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
        ({"layers_to_transform": [0], "layers_pattern": "h|x"}, "a pattern without"),
        ({"modules_to_save": ["a.*"]}, "modules_to_save is"),
        ({"use_newlora": True}, "unknown option 'use_newlora'"),
        ({"new_config": {"a": 1}}, "unknown option 'new_config'"),
        ({"rank_pattern": {f"c{i}.*": 1 for i in range(2000)}}, "too many or too long"),
        ({"alpha_pattern": {f"c{i}": 1 for i in range(20_000)}}, "too many or too long"),
        ({"exclude_modules": ["x"] * 300_000}, "too many"),
    ],
)
def test_wrong_settings_are_an_error(
    settings: dict[str, Any], message: str, edited: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match=f"adapter_.*: .*{message}"):
        tensors_of(edited("plain", **settings))


def test_unknown_settings_without_consequence_are_a_warning(
    edited: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = edited("plain", note="mine", use_something=False, future_config=None)
    with caplog.at_level(logging.WARNING, "gpt2c"):
        assert_arrays_equal(tensors_of(folder), tensors_of(ADAPTERS / "plain"))
    assert "unknown keys are ignored: 'note'" in caplog.text


def test_adapters_with_whole_tensors_cannot_be_scaled_or_combined() -> None:
    with pytest.raises(CheckpointError, match=r"whole copies of tensors .*must be 1, not 0.5"):
        tensors_of([(ADAPTERS / "saved_norm", 0.5)])
    with pytest.raises(CheckpointError, match=r"has a whole copy of 'h.0.attn.c_attn.bias'"):
        tensors_of([ADAPTERS / "bias_lora_only", ADAPTERS / "bias_all"])
    tensors_of([ADAPTERS / "saved_norm", (ADAPTERS / "rslora", 0.5)])


@pytest.mark.parametrize(
    ("adapter", "error", "message"),
    [
        (5, OptionTypeError, "adapter is 5"),
        ([], OptionError, "adapter has 0 items"),
        ("", OptionError, "adapter is empty"),
        (("a", 0.5), OptionTypeError, r"adapter=\[\(folder, weight\)\]"),
        ([("a", "b")], OptionTypeError, "the weight of an adapter is 'b'"),
        ([("a", float("nan"))], OptionError, "the weight of an adapter is nan"),
        ([("a", 1, 2)], OptionTypeError, "adapter is"),
        (b"a", OptionTypeError, "adapter is b'a'"),
        (Path("nowhere"), CheckpointNotFoundError, "nowhere"),
        (BASE, CheckpointNotFoundError, "adapter_config.json"),
    ],
)
def test_wrong_arguments_are_errors(adapter: Any, error: type[Error], message: str) -> None:
    with pytest.raises(error, match=message):
        GPT2.from_pretrained(BASE, adapter=adapter)


def test_the_command_checks_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", str(BASE), "--adapter", "folder=x"]) == 2
    assert "expected PATH or PATH=WEIGHT" in capsys.readouterr().err


def test_an_adapter_alone_names_its_base_and_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, edited: Callable[..., Path]
) -> None:
    """The file names the base model, but only the caller's words open or fetch anything."""
    monkeypatch.setattr("gpt2c.weights.hub._download", lambda *_: pytest.fail("the hub was asked"))
    folder = edited("plain", base_model_name_or_path="openai-community/gpt2")
    with pytest.raises(
        CheckpointError,
        match=r"from_pretrained\('openai-community/gpt2', adapter=.*--model 'openai-community/gp",
    ):
        GPT2.from_pretrained(folder)
    GPT2.from_pretrained(BASE, adapter=folder).close()


def test_mutated_files_raise_only_gpt2cs_errors(tmp_path: Path) -> None:
    rng = random.Random(0)
    for round_ in range(cases(300)):
        name = rng.choice(["patterns", "bias_all", "embeddings", "torch"])
        folder = tmp_path / str(round_)
        shutil.copytree(ADAPTERS / name, folder)
        file = rng.choice(sorted(folder.iterdir()))
        file.write_bytes(mutated(rng, file.read_bytes()))
        with suppress(Error):
            tensors_of(folder)
