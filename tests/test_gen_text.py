"""gen_text, and generation from text."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import FIXTURES

import gpt2c
from gpt2c import GPT2, Tokenizer
from gpt2c.oracle.reference import gpt2


class WordEncoder:
    """The seed problem's toy encoder: it splits words on spaces; unknown words have the id 0."""

    ids = {"hello": 1, "world": 2, "<UNK>": 0}  # noqa: RUF012
    words = {i: word for word, i in ids.items()}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(word, 0) for word in text.split(" ")]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


def toy_parts():
    np.random.seed(42)
    params = {
        "wte": np.random.rand(3, 10),
        "wpe": np.random.rand(1024, 10),
        "blocks": [],
        "ln_f": {"g": np.ones(10), "b": np.zeros(10)},
    }
    return WordEncoder(), {"n_ctx": 1024, "n_head": 12}, params


def test_the_seed_problem():
    assert gpt2c.gen_text("hello", 5, model=toy_parts()) == "hello hello hello <UNK> <UNK>"
    assert gpt2c.gen_text("hello", n_tokens_to_generate=0, model=toy_parts()) == ""
    assert len(gpt2c.gen_text("hello", model=toy_parts()).split(" ")) == 40


def test_a_whole_model_in_picogpts_parts():
    rng = np.random.default_rng(3)

    def linear(n_in, n_out):
        return {"w": rng.standard_normal((n_in, n_out)), "b": rng.standard_normal(n_out)}

    def norm():
        return {"g": rng.standard_normal(8), "b": rng.standard_normal(8)}

    params = {
        "wte": rng.standard_normal((20, 8)),
        "wpe": rng.standard_normal((16, 8)),
        "blocks": [
            {
                "ln_1": norm(),
                "attn": {"c_attn": linear(8, 24), "c_proj": linear(8, 8)},
                "ln_2": norm(),
                "mlp": {"c_fc": linear(8, 32), "c_proj": linear(32, 8)},
            }
            for _ in range(2)
        ],
        "ln_f": norm(),
    }
    hparams = {"n_ctx": 16, "n_head": 2, "n_embd": 8, "n_layer": 2, "n_vocab": 20}
    model = GPT2.from_picogpt(hparams, params)
    weights = {"wte.weight": params["wte"], "wpe.weight": params["wpe"]}
    weights |= {"ln_f.weight": params["ln_f"]["g"], "ln_f.bias": params["ln_f"]["b"]}
    for i, block in enumerate(params["blocks"]):
        for part, inner in (("attn", ("c_attn", "c_proj")), ("mlp", ("c_fc", "c_proj"))):
            for name in inner:
                weights[f"h.{i}.{part}.{name}.weight"] = block[part][name]["w"]
                weights[f"h.{i}.{part}.{name}.bias"] = block[part][name]["b"]
        for name in ("ln_1", "ln_2"):
            weights[f"h.{i}.{name}.weight"] = block[name]["g"]
            weights[f"h.{i}.{name}.bias"] = block[name]["b"]
    oracle = gpt2(np.arange(16), weights, model.config)
    # The model rounds float64 parts to float32 and computes in float32.
    np.testing.assert_allclose(model.logits(list(range(16))), oracle, rtol=1e-4, atol=1e-4)


def test_gen_text_with_a_model_or_a_folder(shared):
    folder = shared / "models" / "prose-21m"
    with GPT2.from_pretrained(folder) as model:
        text = gpt2c.gen_text("Once upon a time", 12, model=model)
        assert text == model.generate("Once upon a time", max_new_tokens=12)
    assert gpt2c.gen_text("Once upon a time", 12, model=folder) == text


def test_gen_text_refuses_other_models():
    with pytest.raises(gpt2c.OptionTypeError):
        gpt2c.gen_text("Once upon a time", model=3)


def test_prose(shared):
    """Text in, text out, on a trained model with its own vocabulary."""
    model = GPT2.from_pretrained(shared / "models" / "prose-21m")
    prompts = ["Once upon a time", "The old king said", "“Come in,” said the"]
    texts = model.generate(prompts, max_new_tokens=40)
    assert texts == [model.generate(p, max_new_tokens=40) for p in prompts]
    for prompt, text in zip(prompts, texts, strict=True):
        pieces = list(model.stream(prompt, max_new_tokens=40))
        assert "".join(pieces) == text
        assert len(pieces) > 1
        done = model.complete(prompt, max_new_tokens=40)
        assert done.text == text
        assert model.tokenizer.decode(done.ids) == text
        assert model.generate(model.tokenizer.encode(prompt), max_new_tokens=40) == done.ids
    assert (
        model.complete("", max_new_tokens=5).text
        == model.complete("<|endoftext|>", max_new_tokens=5).text
    )
    np.testing.assert_array_equal(
        model.logits("Once upon a time"), model.logits(model.tokenizer.encode("Once upon a time"))
    )


def test_backends_agree_on_prose(shared):
    folder = shared / "models" / "prose-21m"
    compiled, plain = GPT2.from_pretrained(folder), GPT2.from_pretrained(folder, backend="numpy")
    text = (folder / "held-out.txt").read_text()[:2000]
    ids = compiled.tokenizer.encode(text)[:400]
    # Both compute 6 blocks in float32, with logits up to about 20.
    np.testing.assert_allclose(compiled.logits(ids), plain.logits(ids), rtol=0, atol=1e-4)
    options = {"max_new_tokens": 30, "temperature": 0.8, "top_k": 40, "seed": 5}
    assert compiled.generate("The wolf", **options) == plain.generate("The wolf", **options)


def test_a_stream_never_splits_a_character():
    model = GPT2.from_pretrained(FIXTURES / "transformers" / "plain")
    # Ids below 97 decode to single bytes, mostly parts of characters.
    model.tokenizer = Tokenizer.gpt2()
    pieces = list(model.stream("!", max_new_tokens=30, temperature=3.0, seed=1))
    assert "".join(pieces) == model.generate("!", max_new_tokens=30, temperature=3.0, seed=1)
