"""generation_config.json: a model's own defaults, which never make a valid call fail.

Lengths follow transformers 5.24.0: max_length and min_length count the prompt, max_new_tokens and
min_new_tokens override them, and a minimum above the maximum is a warning.
test_transformers_defaults.py compares with transformers itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load
from model_folders import folder_of, random_folder

from gpt2c import GPT2, OptionError, OptionTypeError
from gpt2c.cli.main import main


def with_generation(tmp_path: Path, values: Any) -> GPT2:
    """Return a model with no tokenizer; its generation_config.json holds these values or text."""
    random_folder(tmp_path / "model", vocab_size=21, n_layer=2, n_embd=24)
    text = values if isinstance(values, str) else json.dumps(values)
    (tmp_path / "model" / "generation_config.json").write_text(text)
    return GPT2.from_pretrained(tmp_path / "model")


def test_eos_ids_of_generation_config(tmp_path: Path) -> None:
    model = with_generation(
        tmp_path, {"eos_token_id": [4, 5], "pad_token_id": 3, "bos_token_id": 2}
    )
    assert model.config.eos_token_ids == {4, 5}
    assert model.config.pad_token_id == 3
    assert model.config.bos_token_id == 2
    done = model.complete([1], max_new_tokens=8, logit_bias={5: 1e4})
    assert (done.ids, done.finish_reason) == ([], "stop")
    model.save_pretrained(tmp_path / "saved")
    assert GPT2.from_pretrained(tmp_path / "saved").config == model.config
    assert (tmp_path / "saved" / "generation_config.json").exists()


def test_defaults_of_generation_config(tmp_path: Path) -> None:
    values = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 1.0, "max_new_tokens": 7}
    model = with_generation(tmp_path, values)
    expected = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 7}
    assert dict(model.generation_defaults) == expected
    by_hand = {"temperature": 0.7, "top_k": 5, "seed": 3}
    bare = GPT2.from_pretrained(tmp_path / "model")
    assert len(model.generate([1, 2], seed=3)) == 7
    assert model.generate([1, 2], seed=3) == bare.generate([1, 2], max_new_tokens=7, **by_hand)
    # The call's own options override the file.
    assert len(model.generate([1, 2], max_new_tokens=4)) == 4
    greedy = model.generate([1, 2], do_sample=False)
    assert greedy == model.generate([1, 2], temperature=0)
    (tmp_path / "model" / "generation_config.json").unlink()
    assert greedy == GPT2.from_pretrained(tmp_path / "model").generate([1, 2], max_new_tokens=7)
    assert list(model.stream([1, 2], do_sample=False)) == greedy
    assert model.complete([1], temperature=None).seed is not None


def test_sampling_options_without_do_sample_have_no_effect(tmp_path: Path) -> None:
    model = with_generation(tmp_path, {"temperature": 0.7, "top_k": 50, "do_sample": False})
    assert dict(model.generation_defaults) == {}
    assert model.complete([1]).seed is None


def test_other_defaults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {"penalty_alpha": 0.6, "bad_words_ids": [[3], [4, 5]], "suppress_tokens": [7],
              "no_repeat_ngram_size": 2, "max_length": 50, "min_new_tokens": 45}  # fmt: skip
    values["max_new_tokens"] = 50
    model = with_generation(tmp_path, values)
    assert "options that are not supported are ignored: 'penalty_alpha'" in caplog.text
    assert model.generation_defaults["bad_words"] == [[3], [4, 5]]
    ids = model.generate([1, 2], max_new_tokens=5)
    assert len(ids) == 5
    assert not {3, 7} & set(ids)


def test_beam_search_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    beams = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "num_beam_groups": 1}
    model = with_generation(tmp_path, {**beams, "max_new_tokens": 6})
    by_hand = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "max_new_tokens": 6}
    (tmp_path / "model" / "generation_config.json").unlink()
    bare = GPT2.from_pretrained(tmp_path / "model")
    assert model.complete([1]) == bare.complete([1], **by_hand)
    assert model.complete([1]).sequence_score is not None
    # num_beams=1, sampling and stream() do not search.
    greedy = bare.generate([1], max_new_tokens=6)
    assert model.generate([1], num_beams=1) == list(model.stream([1])) == greedy
    drawn = bare.generate([1], max_new_tokens=6, temperature=2.0, seed=1)
    assert model.generate([1], temperature=2.0, seed=1) == drawn
    assert model.complete([1], temperature=0).sequence_score is not None
    assert not caplog.records


def test_beams_that_sample_are_not_supported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = with_generation(tmp_path, {"num_beams": 4, "do_sample": True, "length_penalty": 2.0})
    assert "options that are not supported are ignored: 'num_beams'" in caplog.text
    assert dict(model.generation_defaults) == {"do_sample": True}
    assert model.complete([1]).seed is not None


def test_logits_do_not_depend_on_generation_config(tmp_path: Path) -> None:
    model = with_generation(tmp_path, {"do_sample": True, "repetition_penalty": 2.0})
    (tmp_path / "model" / "generation_config.json").unlink()
    bare = GPT2.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(model.logits([1, 2]), bare.logits([1, 2]))
    assert model.score([1, 2, 3]).total == bare.score([1, 2, 3]).total


# ---- lengths ----

ALWAYS_ENDS = {"likeliest": 256}  # generates EOS: completions have the minimum length
NEVER_ENDS = {"likeliest": 7}  # never generates EOS: completions have the maximum length


def n_new(model: GPT2, n_prompt: int, **options: Any) -> int:
    return len(model.complete([1] * n_prompt, **options).ids)


@pytest.mark.parametrize(
    ("values", "options", "n_prompt", "n_max"),
    [
        ({"max_length": 20}, {}, 3, 17),
        ({"max_length": 20}, {}, 12, 8),
        ({"max_length": 20}, {"max_new_tokens": 30}, 3, 30),
        ({"max_length": 20, "max_new_tokens": 9}, {}, 3, 9),
        ({"max_length": 20.0}, {}, 3, 17),
        ({"max_length": 60}, {}, 3, 57),
        ({"max_length": None}, {}, 3, 40),
        ({"max_new_tokens": 5}, {}, 12, 5),
        ({"max_new_tokens": 5}, {"max_new_tokens": 8}, 12, 8),
    ],
)
def test_maximum_lengths(
    tmp_path: Path, backend: str, values: Any, options: Any, n_prompt: int, n_max: int
) -> None:
    model = load(folder_of(tmp_path, generation_config=values, **NEVER_ENDS), backend)
    assert n_new(model, n_prompt, **options) == n_max
    assert len(list(model.stream([1] * n_prompt, **options))) == n_max
    both = model.generate([[1] * n_prompt, [1]], **options)
    assert len(both[0]) == n_max


@pytest.mark.parametrize(
    ("values", "options", "n_prompt", "n_min"),
    [
        ({"min_length": 20}, {}, 3, 17),
        ({"min_length": 20}, {}, 12, 8),
        ({"min_length": 20}, {}, 20, 0),
        ({"min_length": 20}, {}, 30, 0),
        ({"min_length": 20}, {"min_new_tokens": 4}, 3, 4),
        ({"min_length": 20}, {"min_new_tokens": 0}, 3, 0),
        ({"min_length": 20, "min_new_tokens": 9}, {}, 3, 9),
        ({"min_length": 20, "min_new_tokens": 9}, {"max_new_tokens": 30}, 3, 9),
        ({"min_new_tokens": 9.0}, {}, 3, 9),
        ({"min_length": 0}, {}, 3, 0),
        ({"min_length": 10, "max_length": 20}, {}, 3, 7),
        ({"min_length": 20}, {"num_beams": 2}, 3, 17),
        ({"min_length": 20}, {"temperature": 0.01, "seed": 1}, 3, 17),
        ({"min_length": 20}, {"draft": None}, 3, 17),
    ],
)
def test_minimum_lengths(
    tmp_path: Path, backend: str, values: Any, options: Any, n_prompt: int, n_min: int
) -> None:
    model = load(folder_of(tmp_path, generation_config=values, **ALWAYS_ENDS), backend)
    assert n_new(model, n_prompt, **options) == n_min
    both = model.generate([[1] * n_prompt, [1] * 30], **options)
    assert len(both[0]) == n_min


@pytest.mark.parametrize(
    ("values", "options", "message", "n"),
    [
        ({"min_new_tokens": 50}, {}, "min_new_tokens asks for 50 new tokens", 40),
        ({"min_new_tokens": 50}, {"max_new_tokens": 10}, "more than the max of 10", 10),
        ({"min_new_tokens": 50}, {"max_new_tokens": 55}, None, 50),
        ({"min_length": 50}, {}, "min_length asks for 47 new tokens", 40),
        ({"min_length": 50, "max_length": 20}, {}, "more than the max of 17", 17),
        ({"max_length": 2}, {"min_new_tokens": 5}, "max_length is 2, and the prompt has 3", 5),
        ({"max_length": 3}, {}, "max_length is 3, and the prompt has 3 tokens", 0),
    ],
)
def test_contradictory_lengths_are_warnings(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    values: Any,
    options: Any,
    message: str | None,
    n: int,
) -> None:
    model = load(folder_of(tmp_path, generation_config=values, **ALWAYS_ENDS))
    assert not caplog.records
    assert n_new(model, 3, **options) == n
    assert [message in r.getMessage() for r in caplog.records] == [True] * (message is not None)
    assert "generation_config.json" in caplog.text or message is None
    assert model.score([1, 2, 3]).n_scored == 2


def test_a_length_above_the_context_has_no_effect(tmp_path: Path) -> None:
    for huge in (10**6, 10**18, int(1e30), 1e30):
        model = load(folder_of(tmp_path, generation_config={"max_length": huge}, **NEVER_ENDS))
        done = model.complete([1] * 4)
        # 64 positions give 65 tokens, and the prompt has 4.
        assert (len(done.ids), done.finish_reason) == (61, "context")


def test_max_length_counts_the_truncated_prompt(tmp_path: Path) -> None:
    model = load(folder_of(tmp_path, generation_config={"max_length": 40}, **NEVER_ENDS))
    assert len(model.generate([1] * 30, truncate="left")) == 10
    # The prompt is cut to its last 32 ids, half of the 64 positions.
    assert len(model.generate([1] * 100, overflow="slide")) == 8


def test_the_command_line_uses_the_models_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, generation_config={"max_length": 9}, **NEVER_ENDS)
    for arguments, n in ([], 7), (["-n", "3"], 3):
        assert main(["generate", "ab", "--json", "--model", str(folder), *arguments]) == 0
        assert len(json.loads(capsys.readouterr().out)["ids"]) == n


# ---- contents of the file ----

PLAIN = {"max_new_tokens": 6}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": "many"}, "num_beams is 'many'"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups is 3"),
        ({"num_beams": -1}, "num_beams is -1"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"do_sample": True, "temperature": -1}, "temperature is -1"),
        ({"do_sample": True, "temperature": "hot"}, "temperature is 'hot'"),
        ({"do_sample": True, "top_p": 7}, "top_p is 7"),
        ({"do_sample": True, "top_k": -2}, "top_k is -2"),
        ({"do_sample": True, "top_k": 2.5}, "top_k is 2.5"),
        ({"do_sample": True, "top_k": [1]}, r"top_k is \[1\]"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'"),
        ({"max_new_tokens": {"a": 1}}, "max_new_tokens is {'a': 1}"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"min_new_tokens": "5"}, "min_new_tokens is '5', which is not a valid length"),
        ({"min_length": [5]}, r"min_length is \[5\], which is not a valid length"),
        ({"max_length": -1}, "max_length is -1, which is not a valid length"),
        ({"max_length": 2.5}, "max_length is 2.5, which is not a valid length"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": None, "no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"bad_words_ids": [[10**9]]}, "bad_words"),
        ({"bad_words_ids": [["a"]]}, "no tokenizer"),
        ({"bad_words_ids": 3}, "bad_words is 3"),
        ({"bad_words_ids": [[]]}, "bad_words has an empty word"),
        ({"suppress_tokens": "x"}, "suppress_tokens is 'x'"),
        ({"stop_strings": ["x"]}, "no tokenizer"),
        ({"stop_strings": 5}, "stop_strings is 5"),
        ({"max_time": -1}, "max_time is -1"),
    ],
)
def test_an_invalid_option_is_a_warning_when_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict[str, Any], message: str
) -> None:
    model = with_generation(tmp_path, {**PLAIN, **values})
    assert not caplog.records
    assert model.score([1, 2]).n_scored == 1
    assert not caplog.records
    done = model.complete([1], seed=3)
    assert len(done.ids) == (40 if "max_new_tokens" in values else 6)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert caplog.records[0].name.startswith("gpt2c")
    assert re.search(message, caplog.text)
    assert "generation_config.json" in caplog.text
    # The file's other options still apply, and the call's own options override them.
    assert len(model.generate([1, 2], max_new_tokens=3)) == 3


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"a": 1', "\ufffe", "[" * 100_000],
)
def test_an_unreadable_file_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    model = with_generation(tmp_path, text)
    assert "generation_config.json" in caplog.text
    assert caplog.text.rstrip().endswith("the file is ignored")
    assert len(model.generate([1, 2])) == 39  # as many tokens as fit in the context of 40


def test_a_folder_or_a_broken_link_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_generation(tmp_path, {})
    path = tmp_path / "model" / "generation_config.json"
    path.unlink()
    path.symlink_to("nowhere")
    assert GPT2.from_pretrained(tmp_path / "model").generate([1], max_new_tokens=2)
    path.unlink()
    path.mkdir()
    assert GPT2.from_pretrained(tmp_path / "model").generate([1], max_new_tokens=2)
    assert "the file is ignored" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        '{"max_new_tokens": 6, "x": 1000000000000000019884624838656}',
        '{"max_new_tokens": 6, "top_p": NaN}',
        '{"max_new_tokens": 6, "do_sample": false, "temperature": Infinity, "y": -1e999}',
        '{"max_new_tokens": 6, "cache_implementation": "no such", "watermarking_config": {"a": 1}}',
        '{"max_new_tokens": 6, "_from_model_config": true, "transformers_version": "9.9"}',
        '{"max_new_tokens": 6, "compile_config": {}, "use_cache": "yes", "do_sample": null}',
        '{"max_new_tokens": 6, "num_return_sequences": 3, "output_scores": true}',
    ],
)
def test_an_odd_value_does_not_affect_the_others(tmp_path: Path, text: str) -> None:
    assert len(with_generation(tmp_path, text).generate([1, 2])) == 6


def test_warnings_name_unknown_keys_and_options(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_generation(tmp_path, {"my_note": 1, "num_return_sequences": 2, "use_cache": True})
    assert "unknown keys are ignored: 'my_note'" in caplog.text
    assert "options that are not supported are ignored: 'num_return_sequences'" in caplog.text
    assert "use_cache" not in caplog.text


@pytest.mark.parametrize(
    ("values", "ends", "warns"),
    [
        ({"eos_token_id": "end"}, {2}, True),
        ({"eos_token_id": [4, None, "x", 5]}, {4, 5}, True),
        ({"eos_token_id": 4.0}, {4}, False),
        ({"eos_token_id": [4, 99, -1]}, {4}, False),
        ({"eos_token_id": True}, {2}, True),
        ({"eos_token_id": [[4]]}, {2}, True),
        ({"eos_token_id": []}, set(), False),
        ({"eos_token_id": None}, set(), False),
        ({"eos_token_id": -1}, set(), False),
        ({"eos_token_id": 10**30}, {2}, True),
        ({"bos_token_id": "start", "pad_token_id": [1]}, {2}, True),
        ({}, {2}, False),
    ],
)
def test_invalid_eos_ids_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Any, ends: set[int], warns: bool
) -> None:
    with_generation(tmp_path, values)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    caplog.clear()
    assert GPT2.from_pretrained(tmp_path / "model").config.eos_token_ids == ends
    assert ("ignored, because it is not a token id" in caplog.text) == warns


# ---- together with a call's options ----


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"do_sample": True, "temperature": 0.5}, {"num_beams": 2}, "num_beams is 2"),
        ({"num_beams": 3}, {"callback": lambda i, ids: False}, "a callback"),
        ({"num_beams": 3, "length_penalty": 2.0}, {"overflow": "slide"}, "overflow='slide'"),
        ({"num_beams": 2}, {"num_return_sequences": 3}, None),
        ({"no_repeat_ngram_size": 2}, {"sampler_order": ["top_k"]}, "sampler_order lacks"),
        ({"min_length": 4}, {"sampler_order": ["top_k"]}, "sampler_order lacks"),
        ({"do_sample": True, "temperature": 0.0}, {"do_sample": True, "seed": 1}, "temperature is"),
    ],
)
def test_defaults_that_conflict_with_a_calls_options_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Any, options: Any, message: str | None
) -> None:
    model = with_generation(tmp_path, {**PLAIN, **values})
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    model = GPT2.from_pretrained(tmp_path / "model")
    caplog.clear()
    if message is None:  # an error of the call itself stays an error
        with pytest.raises(OptionError, match="num_return_sequences is 3"):
            model.complete([1, 2], **options)
        return
    done = model.complete([1, 2], **options)
    assert message in caplog.text
    (tmp_path / "model" / "generation_config.json").unlink()
    bare = GPT2.from_pretrained(tmp_path / "model")
    assert done == bare.complete([1, 2], **{**PLAIN, **options})


def test_invalid_options_of_a_call_are_errors_whatever_the_file_says(tmp_path: Path) -> None:
    model = with_generation(tmp_path, {"repetition_penalty": 0.0, "max_new_tokens": -1})
    with pytest.raises(OptionError, match="top_p is 7"):
        model.generate([1], top_p=7.0)
    with pytest.raises(OptionTypeError, match="generate has no option 'tmperature'"):
        model.generate([1], tmperature=1.0)
    with pytest.raises(OptionError, match="num_return_sequences is 2"):
        model.generate([1], num_return_sequences=2)


def test_several_completions_where_the_file_samples(tmp_path: Path) -> None:
    """num_return_sequences is valid here only because the file sets do_sample."""
    model = with_generation(tmp_path, {"do_sample": True, "top_k": "x", "max_new_tokens": 3})
    assert len(model.complete([1], num_return_sequences=2, seed=1)) == 2


def test_an_integral_float_is_used_as_an_integer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = with_generation(tmp_path, {**PLAIN, "do_sample": True, "top_k": 3.0})
    drawn = model.generate([1, 2], seed=3)
    assert "top_k is 3.0" in caplog.text
    assert "3 is used" in caplog.text
    bare = with_generation(tmp_path, PLAIN)
    assert drawn == bare.generate([1, 2], top_k=3, seed=3)


def test_ids_without_effect_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers, a bad word that is EOS and ids outside the vocabulary have no effect."""
    values = {**PLAIN, "eos_token_id": 4, "bad_words_ids": [[4], [5]],
              "suppress_tokens": [7, 99, -1]}  # fmt: skip
    model = with_generation(tmp_path, values)
    assert dict(model.generation_defaults) == {
        "max_new_tokens": 6, "bad_words": [[5]], "suppress_tokens": [7],
    }  # fmt: skip
    assert model.complete([1], logit_bias={4: 1e4}).finish_reason == "stop"
    assert not caplog.records


@pytest.mark.parametrize("text", ['"max_new_tokens": 1, "max_new_tokens": 2', '"x": "\\ud800"'])
def test_invalid_json_values_do_not_affect_the_others(tmp_path: Path, text: str) -> None:
    model = with_generation(tmp_path, f'{{{text}, "no_repeat_ngram_size": 2}}')
    assert model.generation_defaults["no_repeat_ngram_size"] == 2
    assert len(model.generate([1, 2], max_new_tokens=3)) == 3


def test_the_command_line_shows_logged_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, generation_config={"no_such_key": 1}, **NEVER_ENDS)
    assert main(["generate", "ab", "-n", "1", "--model", str(folder)]) == 0
    error = capsys.readouterr().err
    assert error.startswith("gpt2c: warning: ")
    assert "no_such_key" in error
    # Only the command prints warnings; the library itself never does.
    load(folder)
    assert capsys.readouterr().err == ""
