"""Translation of transformers' options to gpt2c's, without torch.

The expected values follow GenerationMixin.generate of transformers 5.24.
test_from_transformers.py compares with transformers itself.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import config_of

import gpt2c
from gpt2c.compat.transformers.options import MergedOptions
from gpt2c.generate.options import CompleteOptions

CONFIG = config_of()  # 50 tokens, 40 positions
# The defaults of GenerationConfig._get_default_generation_params() that matter here.
DEFAULTS = {
    "max_length": 20, "min_length": 0, "do_sample": False, "use_cache": True, "num_beams": 1,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "early_stopping": False, "no_repeat_ngram_size": 0,
    "num_return_sequences": 1, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beam_groups": 1,
    "encoder_repetition_penalty": 1.0, "remove_invalid_values": False, "diversity_penalty": 0.0,
}  # fmt: skip
GREEDY = {
    "do_sample": False, "num_return_sequences": 1, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "max_new_tokens": 20, "min_new_tokens": 0,
}  # fmt: skip


def call_of(given=(), config=(), model_config=(), n_prompt=5):
    asked = MergedOptions(dict(given), dict(config), dict(model_config), DEFAULTS)
    return asked.resolve(n_prompt, CONFIG)


def test_a_call_without_options_is_greedy():
    call = call_of()
    assert call.options == GREEDY
    assert (call.eos_ids, call.pad_id, call.stop_strings) == ((), None, ())
    assert not any([call.draws, call.returns_dict, call.output_scores, call.output_logits])
    assert (call.n_sequences, call.n_beams, call.penalties()) == (1, 1, {})


@pytest.mark.parametrize(
    ("given", "n_prompt", "n_max", "n_min"),
    [
        ({}, 5, 20, 0),
        ({}, 30, 10, 0),  # limited by the context
        ({"max_new_tokens": 35}, 30, 35, 0),
        ({"max_length": 12}, 5, 7, 0),
        ({"max_length": 20}, 5, 15, 0),  # given explicitly, unlike the default
        ({"max_length": 12, "max_new_tokens": 3}, 5, 3, 0),
        ({"max_length": 12, "max_new_tokens": None}, 5, 7, 0),
        ({"min_length": 9}, 5, 20, 4),
        ({"min_length": 3}, 5, 20, 0),
        ({"min_length": 9, "min_new_tokens": 2}, 5, 20, 2),
        ({"min_new_tokens": 30}, 5, 20, 20),
    ],
)
def test_lengths(given, n_prompt, n_max, n_min):
    for places in ((given,), ((), given), ((), (), given)):
        options = call_of(*places, n_prompt=n_prompt).options
        assert (options["max_new_tokens"], options["min_new_tokens"]) == (n_max, n_min)


def test_a_call_overrides_its_configuration_which_overrides_the_models():
    model_config = {"max_new_tokens": 9, "eos_token_id": 7, "repetition_penalty": 1.5, "foo": 1}
    config = {"repetition_penalty": 1.3, "pad_token_id": 2}
    call = call_of({"pad_token_id": 3}, config, model_config)
    assert call.options["max_new_tokens"] == 9
    assert call.options["repetition_penalty"] == 1.3
    assert (call.eos_ids, call.pad_id) == ((7,), 3)
    assert call_of({"repetition_penalty": None}, config).options.get("repetition_penalty") is None


def test_sampling_options_need_do_sample():
    given = {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
    assert call_of(given).options == GREEDY
    drawn = call_of({**given, "do_sample": True})
    assert drawn.draws
    assert drawn.options == {**GREEDY, **given, "do_sample": True}
    plain = call_of({"do_sample": True}).options
    assert plain == {**GREEDY, "do_sample": True, "top_k": 50}
    assert "top_k" not in call_of({"do_sample": True, "top_k": None}).options
    assert "top_k" not in call_of({"do_sample": True, "top_k": 0}).options
    with pytest.raises(gpt2c.OptionError, match="temperature is 0"):
        call_of({"do_sample": True, "temperature": 0.0})


def test_beams_are_passed_on():
    given = {"length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 2}
    assert "length_penalty" not in call_of(given).options
    call = call_of({**given, "num_beams": 4})
    assert call.n_beams == 4
    beams = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"}
    assert {name: call.options.get(name) for name in beams} == beams
    assert "num_beam_groups" not in call.options
    assert call_of({"num_beams": 4, "num_beam_groups": 2}).options["num_beam_groups"] == 2


@pytest.mark.parametrize(
    ("given", "eos", "pad", "ends", "padding"),
    [
        ({"eos_token_id": 4}, (4,), 4, [4], None),
        ({"eos_token_id": [9, 4]}, (9, 4), 9, [4, 9], None),
        ({"eos_token_id": np.array([9, 4])}, (9, 4), 9, [4, 9], None),
        ({"eos_token_id": [-1, 50, 4], "pad_token_id": 6}, (-1, 50, 4), 6, [4], 6),
        ({"eos_token_id": None, "pad_token_id": 6}, (), 6, [], 6),
        ({"eos_token_id": [6, 1], "pad_token_id": 6}, (6, 1), 6, [1, 6], None),
    ],
)
def test_tokens_that_end_and_pad(given, eos, pad, ends, padding):
    call = call_of(given, model_config={"eos_token_id": 49})
    assert (call.eos_ids, call.pad_id, call.end_ids(50)) == (eos, pad, ends)
    assert MergedOptions(given, {}, {}, DEFAULTS).prompt_pad_id == padding


def test_bad_words_that_are_eos_are_dropped():
    given = {"bad_words_ids": [[4], [5], [4, 5]], "eos_token_id": 4}
    assert call_of(given).options["bad_words"] == [[5], [4, 5]]
    assert "bad_words" not in call_of({"bad_words_ids": [[4]], "eos_token_id": 4}).options


def test_options_for_speed_are_accepted_and_ignored():
    speed = {"use_cache": False, "cache_implementation": "static", "prompt_lookup_num_tokens": 4}
    assert call_of({**speed, "synced_gpus": False, "trust_remote_code": True}).options == GREEDY


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"penalty_alpha": 0.6}, "penalty_alpha is 0.6.*does not support"),
        ({"top_h": 0.5}, "top_h is 0.5"),
        ({"encoder_repetition_penalty": 2.0}, "encoder_repetition_penalty is 2"),
        ({"output_attentions": True}, "output_attentions is True"),
        ({"assistant_model": object()}, "assistant_model is "),
        ({"token_type_ids": [[0]]}, "token_type_ids is "),
        ({"inputs_embeds": [[0]]}, "inputs_embeds is "),
        ({"renormalize_logits": True, "output_scores": True}, "renormalize_logits is True"),
        ({"renormalize_logits": True, "num_beams": 2}, "renormalize_logits is True"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_length": 5}, "input_ids are 5 tokens long, and max_length, which counts them, is 5"),
        ({"min_length": -1}, "min_length is -1"),
        ({"do_sample": 1}, "do_sample is 1"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 4, "do_sample": True}, "^do_sample is True and num_beams is 4"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"pad_token_id": [1]}, "pad_token_id is "),
        ({"bad_words_ids": [5]}, "bad_words_ids is 5"),
        ({"stop_strings": [5]}, "stop_strings has 5"),
        ({"stop_strings": ""}, "stop_strings has an empty string"),
        ({"return_dict_in_generate": "yes"}, "return_dict_in_generate is 'yes'"),
    ],
)
def test_errors_name_the_unsupported_option(given, message):
    for places in ((given,), ((), given)):
        with pytest.raises((gpt2c.OptionError, gpt2c.OptionTypeError), match=message):
            call_of(*places)


def test_unknown_options():
    with pytest.raises(gpt2c.OptionTypeError, match=r"no option 'temprature'; did you mean temper"):
        call_of({"temprature": 1.0})
    call_of(config={"temprature": 1.0})  # unknown keys of a configuration are ignored
    with pytest.raises(gpt2c.OptionTypeError, match="no option 'top_n_sigma'"):
        call_of({"top_n_sigma": 1.0})  # an option of gpt2c, not of transformers


def test_a_prompt_that_fills_the_context_is_an_error():
    with pytest.raises(gpt2c.OptionError, match="the context, which counts them, is 40"):
        call_of(n_prompt=40)


def test_translated_options_are_options_of_complete():
    given = {
        "do_sample": True, "min_new_tokens": 2, "suppress_tokens": [3], "max_time": 2.0,
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[1]],
        "temperature": 0.5, "top_p": 0.5, "min_p": 0.2, "typical_p": 0.5, "epsilon_cutoff": 0.1,
        "eta_cutoff": 0.1,
    }  # fmt: skip
    call = call_of(given)
    assert call.options.keys() <= CompleteOptions.__annotations__.keys()
    assert list(call.penalties()) == [
        "repetition_penalty", "no_repeat_ngram_size", "bad_words", "min_new_tokens",
        "suppress_tokens",
    ]  # fmt: skip
    assert not call.without_penalties().penalties()
    assert len(call.options) == len(given) + 3  # max_new_tokens, num_return_sequences, top_k


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(gpt2c.MissingDependencyError, match=r"gpt2c\[transformers\]"):
        gpt2c.from_transformers(None)
