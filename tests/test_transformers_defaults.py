"""generation_config.json and tokenizers, compared with transformers on the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import load
from model_folders import folder_of

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.24")

# transformers warns about contradictory lengths and about its own defaults.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

# The tokenizer lacks these ids of the model. gpt2c never generates them; transformers might.
PADDING = {"do_sample": False, "suppress_tokens": list(range(257, 270))}
ENDS, GOES_ON = 256, 7  # the id that a model always generates: EOS or another


def theirs_of(folder: Path, n_prompt: int, **options: Any) -> list[int]:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = model.generate(torch.tensor([[1] * n_prompt]), **options)[0, n_prompt:].tolist()
    return ids[:-1] if ids[-1:] == [ENDS] else ids


@pytest.mark.parametrize("likeliest", [ENDS, GOES_ON])
@pytest.mark.parametrize(
    "values",
    [
        {"max_length": 20},
        {"max_length": 20, "max_new_tokens": 9},
        {"max_new_tokens": 9, "min_new_tokens": 5},
        {"max_length": 30, "min_length": 14},
        {"max_length": 30, "min_length": 14, "min_new_tokens": 3},
        {"max_length": 18, "min_length": 25},
        {"max_new_tokens": 6, "min_new_tokens": 8},
        {"max_new_tokens": 9, "suppress_tokens": [7, 300], "bad_words_ids": [[256], [9]]},
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 12}, {"min_new_tokens": 4}])
def test_lengths_equal_those_of_transformers(
    tmp_path: Path, likeliest: int, values: dict[str, Any], options: dict[str, Any]
) -> None:
    given = {**values, "eos_token_id": ENDS, "pad_token_id": ENDS}
    folder = folder_of(tmp_path, generation_config=given, likeliest=likeliest)
    model = load(folder)
    for n_prompt in (1, 5, 13):
        expected = theirs_of(folder, n_prompt, **options)
        if options.get("min_new_tokens", 0) > values.get("max_new_tokens", 99):
            continue
        assert model.generate([1] * n_prompt, **options) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"bos_token_id": 5, "eos_token_id": 6}},
        {"config": {"bos_token_id": 5}, "generation_config": {"bos_token_id": 8}},
        {"config": {"bos_token_id": 5}, "generation_config": "{"},
        {"config": {"bos_token_id": 5}, "tokenizer_config": {"bos_token": "a"}},
    ],
)
def test_bos_equals_that_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = folder_of(tmp_path, **changes)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    expected = model.generate(max_new_tokens=6, **PADDING)[0].tolist()
    assert load(folder).config.bos_token_id == expected[0]
    assert load(folder).complete("", max_new_tokens=6).ids == expected[1:]


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_eos_token": True}, {}])
def test_a_prompt_is_tokenized_like_transformers(tmp_path: Path, flags: dict[str, bool]) -> None:
    folder = folder_of(tmp_path, tokenizer_config=flags)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer("xy", return_tensors="pt")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    n = given["input_ids"].shape[1]
    expected = model.generate(**given, max_new_tokens=6, **PADDING)[0, n:].tolist()
    done = load(folder).complete("xy", max_new_tokens=6)
    assert done.ids == expected
    logits = model(**given).logits.log_softmax(-1)[0, :-1]
    total = logits.gather(1, given["input_ids"][0, 1:, None]).sum().item()
    assert load(folder).score("xy").total == pytest.approx(total, rel=1e-5)
