"""Invalid options: the error names the option, its value and its range, before any work."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import config_of, model_on, random_weights

import gpt2c
from gpt2c import GPT2, Tokenizer
from gpt2c.checks import option_hints
from gpt2c.generate.options import CompleteOptions
from gpt2c.generate.sampling import SAMPLING_STAGES, SamplingOptions, Vocabulary, check_sampling
from gpt2c.weights.checkpoint import from_arrays


async def an_async_function(*_):
    """Return a coroutine, which is truthy."""


WRONG = [
    ({"temperature": -0.1}, "temperature is -0.1; it must be finite and from 0 to 3e"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ({"temperature": True}, "temperature is True; it must be a number"),
    ({"top_k": -1}, "top_k is -1; it must be from 0"),
    ({"top_k": 2.0}, "top_k is 2.0; it must be an integer"),
    ({"top_p": 2}, "top_p is 2; it must be finite and from 0 to 1"),
    ({"top_p": -0.01}, "top_p is -0.01"),
    ({"min_p": 1.1}, "min_p is 1.1"),
    ({"typical_p": math.nan}, "typical_p is nan"),
    ({"top_n_sigma": -1}, "top_n_sigma is -1"),
    ({"epsilon_cutoff": 2}, "epsilon_cutoff is 2"),
    ({"eta_cutoff": -1}, "eta_cutoff is -1"),
    ({"xtc_probability": 1.5}, "xtc_probability is 1.5"),
    ({"xtc_probability": 0.5, "xtc_threshold": 2}, "xtc_threshold is 2"),
    ({"xtc_threshold": 0.2}, "xtc_threshold is given without xtc_probability"),
    ({"mirostat_tau": -1}, "mirostat_tau is -1"),
    ({"mirostat_tau": 3, "mirostat_eta": 11}, "mirostat_eta is 11"),
    ({"mirostat_eta": 0.1}, "mirostat_eta is given without mirostat_tau"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be finite and from 0.01"),
    ({"presence_penalty": 101}, "presence_penalty is 101"),
    ({"frequency_penalty": [1]}, "frequency_penalty is"),
    ({"dry_multiplier": -1}, "dry_multiplier is -1"),
    ({"dry_multiplier": 1, "dry_base": 0.5}, "dry_base is 0.5"),
    ({"dry_multiplier": 1, "dry_allowed_length": 0}, "dry_allowed_length is 0"),
    ({"dry_multiplier": 1, "dry_range": -1}, "dry_range is -1"),
    ({"dry_multiplier": 1, "dry_sequence_breakers": [5]}, "dry_sequence_breakers has 5"),
    ({"dry_multiplier": 1, "dry_sequence_breakers": "ab"}, "dry_sequence_breakers is 'ab'"),
    ({"dry_base": 2}, "dry_base is given without dry_multiplier"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
    ({"bad_words": "abc"}, "bad_words is 'abc'; it must be a list"),
    ({"bad_words": [[]]}, "bad_words has an empty word"),
    ({"bad_words": [""]}, "bad_words has an empty word"),
    ({"bad_words": [[50]]}, "bad_words has 50; ids are from 0 to 49"),
    ({"bad_words": [5]}, "bad_words is 5"),
    ({"logit_bias": [1]}, "logit_bias is"),
    ({"logit_bias": {50: 1.0}}, "logit_bias has 50"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias has -1"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of 1 is nan"),
    ({"logit_bias": {1: math.inf}}, "logit_bias of 1 is inf"),
    ({"logit_bias": {1.5: 1.0}}, "logit_bias has 1.5"),
    ({"suppress_tokens": 5}, "suppress_tokens is 5"),
    ({"suppress_tokens": [True]}, "suppress_tokens has True"),
    ({"suppress_tokens": [10**30]}, "suppress_tokens has 1000"),
    ({"min_new_tokens": -1}, "min_new_tokens is -1"),
    ({"min_new_tokens": 50}, "min_new_tokens is 50, more than max_new_tokens, 40"),
    ({"sampler_order": ["top_q"]}, "sampler_order has 'top_q'; the stages are logit_bias"),
    ({"sampler_order": ["top_k", "top_k"]}, "a stage twice"),
    ({"sampler_order": "top_k"}, "sampler_order is 'top_k'"),
    ({"sampler_order": ["top_k"], "top_p": 0.5}, "sampler_order lacks top_p"),
    ({"do_sample": 1}, "do_sample is 1"),
    ({"do_sample": False, "top_p": 0.5}, "do_sample is False, but top_p"),
    ({"do_sample": False, "mirostat_tau": 3}, "do_sample is False, but mirostat_tau"),
    ({"stop_strings": 5}, "stop_strings is 5"),
    ({"stop_strings": [5]}, "stop_strings has 5"),
    ({"stop_strings": ["a", ""]}, "stop_strings has an empty string"),
    ({"stop_strings": ["\ud800"]}, "stop_strings has a string that is not Unicode"),
    ({"stop_token_ids": 5}, "stop_token_ids is 5"),
    ({"stop_token_ids": [50]}, "stop_token_ids has 50"),
    ({"max_time": -1}, "max_time is -1"),
    ({"max_time": math.nan}, "max_time is nan"),
    ({"callback": 5}, "callback is 5; it must be a function"),
    ({"logits_processor": []}, "logits_processor is"),
    ({"callback": an_async_function}, "callback is an async function"),
    ({"overflow": "scroll"}, "overflow is 'scroll'; it must be one of 'stop', 'slide'"),
    ({"truncate": "right"}, "truncate is 'right'"),
    ({"top_kk": 5}, "has no option 'top_kk'; did you mean top_k?"),
    ({"xyzzy": 5}, "has no option 'xyzzy'"),
]
WRONG_OF_LISTS = [
    ({"num_return_sequences": 0, "do_sample": True}, "num_return_sequences is 0"),
    ({"num_return_sequences": 2}, "num_return_sequences is 2, but without sampling"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"progress": 1}, "progress is 1"),
]
WRONG_OF_COMPLETE = [
    ({"logprobs": -1}, "logprobs is -1; it must be from 0 to 128"),
    ({"logprobs": 129}, "logprobs is 129"),
    ({"logprobs": True}, "logprobs is True"),
    ({"echo": True}, "echo is given without logprobs"),
    ({"echo": 1, "logprobs": 1}, "echo is 1"),
]


@pytest.fixture(scope="module")
def model():
    config = config_of()
    return model_on("numpy", config, random_weights(config))


@pytest.fixture(autouse=True)
def no_work(model, monkeypatch):
    """Fail the test if the engine starts any work."""
    monkeypatch.setattr(model._engine, "job", lambda *_: pytest.fail("work was started"))


def check(call, options, message):
    with pytest.raises(gpt2c.Error) as raised:
        call(options)
    assert message in str(raised.value)
    assert isinstance(raised.value, ValueError | TypeError)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(model, options, message):
    for method in (model.generate, model.complete):
        for prompts in ([1], [[1], [2]], iter([[1]])):
            check(lambda o, m=method, p=prompts: m(p, **o), options, message)
    for method in (model.stream, model.stream_async):
        check(lambda o, m=method: m([1], **o), options, message)


@pytest.mark.parametrize(("options", "message"), WRONG_OF_LISTS)
def test_wrong_options_of_lists(model, options, message):
    for method in (model.generate, model.complete):
        check(lambda o, m=method: m([1], **o), options, message)
    with pytest.raises(
        gpt2c.OptionTypeError, match=r"stream has no option .*, but complete\(\) accepts it"
    ):
        model.stream([1], **options)


@pytest.mark.parametrize(("options", "message"), WRONG_OF_COMPLETE)
def test_wrong_options_of_complete(model, options, message):
    check(lambda o: model.complete([1], **o), options, message)
    with pytest.raises(
        gpt2c.OptionTypeError, match=r"generate has no option .* complete\(\) accepts"
    ):
        model.generate([1], **options)


# Names in OpenAI, transformers, llama.cpp, Ollama and lm-evaluation-harness, and ours.
ELSEWHERE = [
    ("max_tokens", "max_new_tokens"),
    ("max_length", "max_new_tokens, which does not count the prompt"),
    ("max_completion_tokens", "max_new_tokens"),
    ("n_predict", "max_new_tokens"),
    ("num_predict", "max_new_tokens"),
    ("max_gen_toks", "max_new_tokens"),
    ("length", "max_new_tokens"),
    ("stop", "stop_strings"),
    ("until", "stop_strings"),
    ("stop_sequences", "stop_strings"),
    ("eos_token_ids", "eos_token_id"),
    ("stop_tokens", "stop_token_ids"),
    ("repeat_penalty", "repetition_penalty"),
    ("min_length", "min_new_tokens, which does not count the prompt"),
    ("Temperature", "temperature"),
]


@pytest.mark.parametrize(("theirs", "ours"), ELSEWHERE)
def test_other_libraries_option_names_get_a_suggestion(model, theirs, ours):
    for method in (model.generate, model.complete, model.stream, model.stream_async):
        message = f"{method.__name__} has no option '{theirs}'; did you mean {ours}?"
        check(lambda o, m=method: m([1], **o), {theirs: 5}, message)


def test_suggestions_depend_on_the_method(model):
    for name in ("n", "nsamples"):
        check(lambda o: model.generate([1], **o), {name: 2}, "did you mean num_return_sequences?")
        check(
            lambda o: model.stream([1], **o),
            {name: 2},
            "complete() accepts num_return_sequences",
        )
    check(lambda o: model.generate([1], **o), {"stream": True}, "; use the method stream")
    message = "only the new text is returned"
    check(lambda o: model.generate([1], **o), {"return_full_text": False}, message)


def test_every_hint_names_an_existing_option():
    assert set(option_hints._GPT2C_NAMES.values()) <= set(CompleteOptions.__annotations__)
    assert not set(option_hints._GPT2C_NAMES) & set(CompleteOptions.__annotations__)
    assert not set(option_hints._INSTEAD) & set(CompleteOptions.__annotations__)


# In GPT-2's vocabulary "198" is the token 22337, and "50256" is two tokens.
@pytest.mark.parametrize("name", ["logit_bias", "suppress_tokens", "stop_token_ids"])
def test_a_string_of_digits_is_ambiguous(name, no_work):
    config = config_of(vocab_size=50257, n_embd=3)
    checkpoint = from_arrays(config, random_weights(config))
    with GPT2(checkpoint, Tokenizer.gpt2(), backend="numpy") as model:

        def given(token):
            return {name: {token: -100} if name == "logit_bias" else [token]}

        for token, message in (
            ("198", "pass the int 198 for the token with that id, or the int 22337 for the token "
                    "whose text is '198'"),
            ("0198", "pass the int 198 for the token with that id (no single token has the text "
                     "'0198')"),
            ("50256", "pass the int 50256 for the token with that id (no single token"),
            ("50257", "pass the int from 0 to 50256 for the token"),
            ("9" * 5000, "pass the int from 0 to 50256 for the token"),
        ):  # fmt: skip
            check(lambda o: model.generate([1], **o), given(token), message)
            check(lambda o: model.generate([1], **o), given(token), f"{name} has ")
        for token in (198, " 198", "the"):  # unambiguous
            model._options(given(token), CompleteOptions, "complete")
    with model_on("numpy", config_of(), random_weights(config_of())) as model:
        check(lambda o: model.generate([1], **o), given("19"), "pass the int 19 for the token with")


def test_texts_need_a_tokenizer(model):
    for options in (
        {"stop_strings": ["a"]}, {"bad_words": ["a"]}, {"suppress_tokens": ["a"]},
        {"logit_bias": {"a": 1.0}}, {"dry_multiplier": 1.0, "dry_sequence_breakers": ["a"]},
    ):  # fmt: skip
        with pytest.raises(gpt2c.TokenizerError, match="no tokenizer"):
            model.generate([1], **options)


def test_neutral_values_are_accepted(monkeypatch):
    """Hugging Face's neutral values are accepted, and greedy stays greedy."""
    config = config_of()
    model = model_on("numpy", config, random_weights(config))
    plain = model.generate([1, 2], max_new_tokens=8)
    neutral = {
        "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "presence_penalty": 0,
        "frequency_penalty": 0.0, "bad_words": [], "logit_bias": {}, "suppress_tokens": [],
        "min_new_tokens": 0, "dry_multiplier": 0, "stop_strings": [], "stop_token_ids": [],
        "max_time": None, "sampler_order": gpt2c.SAMPLER_ORDER, "do_sample": False,
    }  # fmt: skip
    assert model.generate([1, 2], max_new_tokens=8, **neutral) == plain
    sampled = {"top_p": 1.0, "typical_p": 1, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "min_p": 0,
               "top_k": 0, "xtc_probability": 0.0}  # fmt: skip
    drawn = model.generate([1, 2], max_new_tokens=8, do_sample=True, seed=1)
    assert model.generate([1, 2], max_new_tokens=8, seed=1, **sampled) == drawn
    assert model.generate([1, 2], max_new_tokens=8, seed=1, temperature=0, **sampled) == plain


def test_penalties_apply_to_greedy_decoding(backend):
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    ids = model.generate([1, 2], max_new_tokens=30, no_repeat_ngram_size=2)
    pairs = list(zip([2, *ids], ids, strict=False))
    assert len(set(pairs)) == len(pairs)
    assert model.complete([1, 2], max_new_tokens=30, no_repeat_ngram_size=2).seed is None


def test_numpy_values_are_accepted():
    config = config_of()
    model = model_on("numpy", config, random_weights(config))
    options = {"temperature": np.float32(0.5), "top_k": np.int64(5), "top_p": np.float64(0.9)}
    plain = {"temperature": 0.5, "top_k": 5, "top_p": 0.9}
    assert model.generate([1], seed=1, **options) == model.generate([1], seed=1, **plain)
    ids = np.array([3, 4])
    assert model.generate([1], suppress_tokens=ids) == model.generate([1], suppress_tokens=[3, 4])


def test_sampler_order_changes_the_result(backend):
    """Temperature flattens the distribution, so top_p keeps fewer tokens before it than after."""
    config = config_of()
    model = model_on(backend, config, random_weights(config))
    options = {"temperature": 4.0, "top_p": 0.3, "max_new_tokens": 20, "seed": 1}
    early = ["top_p", "temperature"]
    assert model.generate([1], sampler_order=early, **options) != model.generate([1], **options)
    explicit = model.generate([1], sampler_order=["temperature", "top_p"], **options)
    assert explicit == model.generate([1], **options)


def test_every_option_is_tested():
    tried = {name for options, _ in WRONG for name in options}
    assert set(SamplingOptions.__annotations__) <= tried
    assert GPT2.stream.__doc__


def test_every_filter_turns_sampling_on():
    options = {
        "temperature": 0.5, "top_n_sigma": 1, "top_k": 3, "top_p": 0.5, "min_p": 0.5,
        "typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "xtc_probability": 0.5,
        "mirostat_tau": 3,
    }  # fmt: skip
    stages = []
    for name, value in options.items():
        plan = check_sampling({name: value}, Vocabulary(5, frozenset(), Tokenizer.gpt2))
        assert plan.draws, name
        stages += [stage.name for stage in plan.stages]
    assert tuple(stages) == SAMPLING_STAGES
