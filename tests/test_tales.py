"""The embedded model: its files, its tokenizer, and the samples on its model card."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import ROOT

import gpt2c
from gpt2c.weights.hub import embedded_folder


def test_its_files_take_at_most_10_mb():
    files = {path.name: path.stat().st_size for path in embedded_folder().iterdir()}
    assert set(files) == {
        "MODEL_CARD.md", "config.json", "merges.txt", "model.safetensors", "vocab.json",
    }  # fmt: skip
    assert sum(files.values()) <= 10_000_000


def test_it_is_the_default_model(tales):
    assert tales.config.n_positions >= 256
    text = tales.generate("Once upon a time", max_new_tokens=15)
    assert text
    assert gpt2c.gen_text("Once upon a time", 15) == text
    assert gpt2c.gen_text("Once upon a time", 15, model="tales") == text


def test_its_tokenizer_encodes_any_text(tales):
    for text in ("Once upon a time", "“Ah!” naïve 🐺\n\n\t", "<|endoftext|>The End", ""):
        assert tales.tokenizer.decode(tales.tokenizer.encode(text)) == text
    assert tales.tokenizer.encode("<|endoftext|>") == [tales.config.eos_token_id]


def test_the_samples_on_the_card_are_reproducible(tales):
    card = (embedded_folder() / "MODEL_CARD.md").read_text(encoding="utf-8")
    for seed in (1, 2, 3):
        shown = card.split(f"Seed {seed}:\n\n")[1].split("\nSeed ")[0]
        shown = re.sub(r"^> ?", "", shown, flags=re.M)
        sample = tales.generate("", max_new_tokens=150, temperature=0.8, top_k=40, seed=seed)
        assert shown.split() == sample.split()


@pytest.mark.slow
def test_its_samples_are_words_and_not_copied_from_training(shared):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from check_tales import draw_samples, measure
        from tales_corpus import load
    finally:
        sys.path.pop(0)
    training = [tale.text for tale in load(shared / "corpus" / "childrens-prose.txt").train]
    measures = measure(draw_samples(embedded_folder()), training)
    assert measures.passed, measures
