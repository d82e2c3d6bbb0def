"""picoGPT's functions on gpt2c's engine, compared with picoGPT's definition."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS, FIXTURES, FORMATS, TALES

import gpt2c
from gpt2c import GPT2, gen_text, load_encoder_hparams_and_params
from gpt2c.errors import CheckpointNotFoundError, ConfigError, FallbackWarning
from gpt2c.pico import generate, gpt2


def test_parts_of_openais_folder() -> None:
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


def test_gen_text_with_the_loaded_parts() -> None:
    triple = load_encoder_hparams_and_params("tales", TALES.parent)
    assert gen_text("Once upon a time", 12, model=triple) == gen_text("Once upon a time", 12)


def test_openais_tokenizer_files(tmp_path: Path) -> None:
    """encoder.json and vocab.bpe of another vocabulary are used, not GPT-2's own."""
    folder = shutil.copytree(TALES, tmp_path / "124M")
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    encoder, _, _ = load_encoder_hparams_and_params("124M", tmp_path)
    text = "The king of the forest<|endoftext|>"
    assert encoder.encode(text) == GPT2.from_pretrained().tokenizer.encode(text)
    GPT2.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert GPT2.from_pretrained(tmp_path / "saved").tokenizer.encode(text) == encoder.encode(text)


def test_models_that_picogpt_cannot_express(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="355M: there is no such folder"):
        load_encoder_hparams_and_params("355M", tmp_path)
    with pytest.raises(TypeError, match="model_size is 5"):
        load_encoder_hparams_and_params(5, tmp_path)  # type: ignore[arg-type]
    for models_dir in (None, 5, b"models"):
        with pytest.raises(gpt2c.OptionTypeError, match="models_dir is"):
            load_encoder_hparams_and_params("355M", models_dir)  # type: ignore[arg-type]
    folder = FIXTURES / "transformers"
    for name, message in (
        ("untied_inverse", "scale_attn_by_inverse_layer_idx is True"),
        ("unscaled_silu", "scale_attn_weights is False"),
        ("tanh", "activation_function is 'tanh'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_encoder_hparams_and_params(name, folder)


# ---- gpt2 and generate ----

N_HEAD, N_CTX, N_VOCAB, N_EMBD = 3, 20, 50, 24


def random_params(seed: int = 0) -> dict[str, Any]:
    """Return float32 params nested as in picoGPT, large enough that each affects the logits."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray[Any, Any]:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    def norm() -> dict[str, Any]:
        return {"g": 1 + array(N_EMBD), "b": array(N_EMBD)}

    def linear(n_in: int, n_out: int) -> dict[str, Any]:
        return {"w": array(n_in, n_out), "b": array(n_out)}

    def block() -> dict[str, Any]:
        return {
            "ln_1": norm(),
            "attn": {"c_attn": linear(N_EMBD, 3 * N_EMBD), "c_proj": linear(N_EMBD, N_EMBD)},
            "ln_2": norm(),
            "mlp": {"c_fc": linear(N_EMBD, 4 * N_EMBD), "c_proj": linear(4 * N_EMBD, N_EMBD)},
        }

    return {
        "wte": array(N_VOCAB, N_EMBD),
        "wpe": array(N_CTX, N_EMBD),
        "blocks": [block(), block()],
        "ln_f": norm(),
    }


def as_float64(tree: Any) -> Any:
    """Convert nested params to float64."""
    if isinstance(tree, dict):
        return {name: as_float64(value) for name, value in tree.items()}
    return list(map(as_float64, tree)) if isinstance(tree, list) else tree.astype(np.float64)


def exact_logits(ids: list[int], p: dict[str, Any], n_head: int) -> np.ndarray[Any, Any]:
    """Compute logits [n, n_vocab] from nested params as picoGPT defines them."""

    def norm(x: Any, g: Any, b: Any) -> Any:
        centred = x - x.mean(axis=1, keepdims=True)
        return centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + 1e-5) * g + b

    def dense(x: Any, w: Any, b: Any) -> Any:
        return x @ w + b

    x = p["wte"][ids] + p["wpe"][: len(ids)]  # [n, n_embd]
    future = np.triu(np.ones((len(ids), len(ids)), dtype=bool), 1)  # [n, n]
    for block in p["blocks"]:
        qkv = dense(norm(x, **block["ln_1"]), **block["attn"]["c_attn"])  # [n, 3 * n_embd]
        q, k, v = qkv.reshape(len(ids), 3, n_head, -1).transpose(1, 2, 0, 3)  # [n_head, n, head]
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])  # [n_head, n, n]
        e = np.where(future, 0.0, np.exp(scores))
        attended = e / e.sum(axis=2, keepdims=True) @ v  # [n_head, n, head]
        attended = attended.transpose(1, 0, 2).reshape(x.shape)  # [n, n_embd]
        x = x + dense(attended, **block["attn"]["c_proj"])
        u = dense(norm(x, **block["ln_2"]), **block["mlp"]["c_fc"])  # [n, 4 * n_embd]
        u = u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + dense(u, **block["mlp"]["c_proj"])
    return norm(x, **p["ln_f"]) @ p["wte"].T


@pytest.fixture(params=BACKENDS)
def every_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backend in turn, set in the environment, since picoGPT's functions have no option."""
    if request.param == "numpy":
        monkeypatch.setenv("GPT2C_BACKEND", "numpy")
    else:
        monkeypatch.setenv("GPT2C_BACKEND", "c")
        monkeypatch.setenv("GPT2C_ISA", request.param)


IDS = np.random.default_rng(7).integers(0, N_VOCAB, N_CTX).tolist()
# Logits are up to about 8 after two float32 blocks, with a few hundred roundings of 6e-8 each.
ATOL = 1e-4


@pytest.mark.usefixtures("every_backend")
def test_logits_follow_picogpts_definition() -> None:
    params = random_params()
    exact = exact_logits(IDS, as_float64(params), N_HEAD)
    assert np.abs(exact).max() > 1
    for inputs in (IDS, np.array(IDS), tuple(IDS)):
        logits = gpt2(inputs, **params, n_head=N_HEAD)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, exact, rtol=0, atol=ATOL)
    by_position = gpt2(IDS, params["wte"], params["wpe"], params["blocks"], params["ln_f"], N_HEAD)
    np.testing.assert_array_equal(by_position, logits)
    assert gpt2([], **params, n_head=N_HEAD).shape == (0, N_VOCAB)
    np.testing.assert_array_equal(gpt2(IDS, **as_float64(params), n_head=N_HEAD), logits)


@pytest.mark.usefixtures("every_backend")
def test_generate_matches_picogpt() -> None:
    for seed in range(3):
        params = random_params(seed)
        wide, expected = as_float64(params), IDS[:5]
        for _ in range(15):
            logits = exact_logits(expected, wide, N_HEAD)[-1]
            first, second = np.sort(logits)[::-1][:2]
            assert first - second > ATOL  # a float32 error cannot change the choice
            expected = [*expected, int(np.argmax(logits))]
        inputs = IDS[:5]
        new = generate(inputs, params, N_HEAD, 15)
        assert new == expected[5:]
        assert all(type(id) is int for id in new)
        assert inputs == expected  # picoGPT appends to inputs
        new.append(1)
        assert inputs == expected
        named = generate(inputs=IDS[:5], params=params, n_head=N_HEAD, n_tokens_to_generate=3)
        assert named == expected[5:8]


@pytest.mark.usefixtures("every_backend")
def test_params_changed_in_place_take_effect() -> None:
    params = random_params()
    before, _ = gpt2(IDS, **params, n_head=N_HEAD), generate(IDS[:3], params, N_HEAD, 4)
    untouched = copy.deepcopy(params)
    params["blocks"][1]["mlp"]["c_proj"]["w"][:] *= -1
    params["wte"][3] += 1
    after = gpt2(IDS, **params, n_head=N_HEAD)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(
        after, exact_logits(IDS, as_float64(params), N_HEAD), rtol=0, atol=ATOL
    )
    new = generate(IDS[:3], params, N_HEAD, 4)
    assert new == generate(IDS[:3], copy.deepcopy(params), N_HEAD, 4)
    params["ln_f"]["g"][:] = 0  # now only ln_f.b determines the logits
    params["ln_f"]["b"][:] = 0
    params["ln_f"]["b"][0] = 1
    likeliest = int(np.argmax(params["wte"][:, 0]))
    assert generate(IDS[:3], params, N_HEAD, 4) == [likeliest] * 4
    np.testing.assert_array_equal(gpt2(IDS, **untouched, n_head=N_HEAD), before)


def test_a_program_written_for_picogpt() -> None:
    encoder, hparams, params = load_encoder_hparams_and_params("tales", TALES.parent)
    ids = encoder.encode("Once upon a time")
    new = generate(ids, params, hparams["n_head"], 12)
    assert encoder.decode(new) == gen_text("Once upon a time", 12)
    assert ids == encoder.encode("Once upon a time") + new


def test_eos_is_ignored_and_the_context_is_the_limit() -> None:
    params = random_params()
    params["ln_f"]["g"][:] = params["ln_f"]["b"][:] = 0  # all logits are 0: the lowest id is chosen
    assert generate(IDS[:1], params, N_HEAD, N_CTX) == [0] * N_CTX  # the last one is never fed
    assert generate([*IDS], params, N_HEAD, 1) == [0]
    inputs = IDS[:2]
    with pytest.raises(gpt2c.ContextError, match=r"2 ids and 20 to generate.*wpe's 20 positions"):
        generate(inputs, params, N_HEAD, N_CTX)
    assert inputs == IDS[:2]
    with pytest.raises(gpt2c.ContextError, match="inputs has 21 ids, more than wpe's 20"):
        gpt2([*IDS, 1], **params, n_head=N_HEAD)
    assert generate(inputs, params, N_HEAD, 0) == []
    given = np.array(IDS[:2])
    assert generate(given, params, N_HEAD, 2) == [0, 0]
    assert given.tolist() == IDS[:2]


def test_errors_name_the_argument_and_leave_inputs_unchanged() -> None:
    params, inputs = random_params(), [1, 2]
    with pytest.raises(gpt2c.OptionError, match="inputs is empty"):
        generate([], params, N_HEAD, 1)
    with pytest.raises(gpt2c.OptionError, match="inputs: token 1 is 50"):
        gpt2([1, 50], **params, n_head=N_HEAD)
    with pytest.raises(gpt2c.OptionError, match="n_tokens_to_generate is -1"):
        generate(inputs, params, N_HEAD, -1)
    with pytest.raises(TypeError, match=r"n_tokens_to_generate is 1\.5"):
        generate(inputs, params, N_HEAD, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_head"):
        generate(inputs, params, 5, 1)
    with pytest.raises(gpt2c.CheckpointError, match="missing keys: 'b'"):
        gpt2(inputs, **{**params, "ln_f": {"g": params["ln_f"]["g"]}}, n_head=N_HEAD)
    with pytest.raises(TypeError):
        gpt2(inputs, **params)
    params["wte"][5] = np.nan
    with pytest.raises(gpt2c.NumericalError):
        generate(inputs, params, N_HEAD, 3)
    assert inputs == [1, 2]


@pytest.mark.usefixtures("no_engine", "no_preferences")
def test_without_the_engine_numpy_runs_with_a_warning() -> None:
    params = random_params()
    with pytest.warns(FallbackWarning):
        logits = gpt2(IDS, **params, n_head=N_HEAD)
    np.testing.assert_allclose(
        logits, exact_logits(IDS, as_float64(params), N_HEAD), rtol=0, atol=ATOL
    )
