"""generate, complete and stream: kinds of prompts, finish reasons, options."""

from __future__ import annotations

import inspect
import itertools
import re

import numpy as np
import pytest
from conftest import BACKENDS, FIXTURES, config_of, in_threads, model_on, on_backend, random_weights

import gpt2c
from gpt2c import GPT2
from gpt2c.generate.beam_options import BeamOptions
from gpt2c.generate.options import DEFAULT_BATCH_SIZE
from gpt2c.weights.checkpoint import from_arrays
from gpt2c.weights.tokenizer_files import tokenizer_of


@pytest.fixture
def model(backend):
    config = config_of()
    return model_on(backend, config, random_weights(config))


@pytest.fixture(scope="module")
def plain():
    return GPT2.from_pretrained(FIXTURES / "transformers" / "plain")


def test_ids_in_ids_out(model):
    expected = model.generate([1, 2, 3], max_new_tokens=5)
    assert len(expected) == 5
    assert all(type(i) is int for i in expected)
    assert model.generate((1, 2, 3), max_new_tokens=5) == expected
    assert model.generate([np.int64(1), 2, np.uint8(3)], max_new_tokens=5) == expected
    for dtype in (np.int8, np.uint16, np.int32, np.int64, np.uint64):
        assert model.generate(np.array([1, 2, 3], dtype=dtype), max_new_tokens=5) == expected
    assert model.generate([[1, 2, 3]], max_new_tokens=5) == [expected]
    assert model.generate([(1, 2, 3), np.array([1, 2, 3])], max_new_tokens=5) == [expected] * 2
    assert model.generate(np.array([[1, 2, 3], [1, 2, 3]]), max_new_tokens=5) == [expected] * 2
    assert model.generate(np.arange(10)[1:8:3], max_new_tokens=5) == model.generate(
        [1, 4, 7], max_new_tokens=5
    )


def test_greedy_is_the_argmax_of_the_logits(model):
    ids = [4, 8, 15]
    for token in model.generate(ids, max_new_tokens=10):
        assert token == model.logits(ids)[-1].argmax()
        ids.append(token)


def test_default_is_40_new_tokens():
    config = config_of(n_positions=100)
    model = model_on(BACKENDS[-1], config, random_weights(config))
    assert len(model.generate([1])) == 40


def test_empty_results(model):
    assert model.generate([]) == []
    assert model.complete([]) == []
    assert model.generate([1], max_new_tokens=0) == []
    assert model.generate([[1], [2]], max_new_tokens=0) == [[], []]
    assert model.complete([1], max_new_tokens=0).finish_reason == "length"
    assert list(model.stream([1], max_new_tokens=0)) == []


def test_finish_reasons(model):
    done = model.complete([1, 2], max_new_tokens=3)
    assert (done.text, len(done.ids), done.finish_reason, done.seed) == (None, 3, "length", None)
    # 40 positions hold 40 fed tokens; the last generated token is not fed.
    done = model.complete([1] * 30, max_new_tokens=100)
    assert (len(done.ids), done.finish_reason) == (11, "context")
    done = model.complete([1] * 30, max_new_tokens=11)
    assert (len(done.ids), done.finish_reason) == (11, "length")
    done = model.complete([1] * 40, max_new_tokens=100)
    assert (len(done.ids), done.finish_reason) == (1, "context")


def test_eos_ends_a_completion_and_is_not_part_of_it(backend):
    weights = random_weights(config_of())
    free = model_on(backend, config_of(), weights).generate([7, 7], max_new_tokens=30)
    # EOS is the first token, after three steps, that did not occur before.
    at = next(i for i in range(3, 30) if free[i] not in free[:i])
    for eos in (free[at], (49, free[at])):
        if 49 in free[:at]:
            continue
        ended = model_on(backend, config_of(eos_token_id=eos), weights)
        done = ended.complete([7, 7], max_new_tokens=30)
        assert done.ids == free[:at]
        assert done.finish_reason == "stop"
        assert list(ended.stream([7, 7], max_new_tokens=30)) == free[:at]


def test_stream_equals_generate(model):
    expected = model.generate([3, 1, 4], max_new_tokens=20)
    assert list(model.stream([3, 1, 4], max_new_tokens=20)) == expected
    stream = model.stream([3, 1, 4], max_new_tokens=20)
    assert list(itertools.islice(stream, 5)) == expected[:5]
    stream.close()


def test_stream_yields_token_by_token(plain):
    stream = plain.stream([1, 2], max_new_tokens=20)
    first = next(stream)
    assert first == plain.generate([1, 2], max_new_tokens=1)[0]


def test_prompt_longer_than_the_context(model):
    with pytest.raises(gpt2c.ContextError, match=r"prompt 1 has 41 tokens.* 40 positions"):
        model.generate([[1], [1] * 41])
    with pytest.raises(ValueError, match="prompt 0 has 50 tokens"):
        model.generate(list(range(50)))
    # The prompt is cut so that the new tokens fit, but they get at most half of the context.
    ids = list(range(50))
    assert model.generate(ids, max_new_tokens=6, truncate="left") == model.generate(
        ids[-35:], max_new_tokens=6
    )
    assert model.generate(ids, max_new_tokens=90, truncate="left") == model.generate(
        ids[-20:], max_new_tokens=90
    )
    assert model.generate([1, 2], max_new_tokens=6, truncate="left") == model.generate(
        [1, 2], max_new_tokens=6
    )


def test_an_empty_prompt_starts_from_eos(backend):
    weights = random_weights(config_of())
    no_eos = model_on(backend, config_of(), weights)
    with pytest.raises(gpt2c.OptionError, match="prompt 0 is empty"):
        no_eos.generate([[]])
    model = model_on(backend, config_of(eos_token_id=49), weights)
    assert model.generate([[], [49]], max_new_tokens=4)[0] == model.generate([49], max_new_tokens=4)


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        (None, TypeError),
        (3, TypeError),
        (1.5, TypeError),
        (b"bytes", TypeError),
        ({1: 2}, TypeError),
        ([1, "a"], TypeError),
        (["a", [1]], TypeError),
        ([[1], 1], TypeError),
        ([True, False], TypeError),
        ([1, True], TypeError),
        ([1.0, 2.0], TypeError),
        ([None], TypeError),
        ([[1, None]], TypeError),
        ([[1, [2]]], TypeError),
        (np.array([1.0, 2.0]), TypeError),
        (np.array(3), TypeError),
        (np.array([True]), TypeError),
        (np.zeros((1, 1, 1), dtype=int), TypeError),
        ([-1], ValueError),
        ([50], ValueError),
        ([2**40], ValueError),
        ([10**30], ValueError),
        (np.array([2**63], dtype=np.uint64), ValueError),
    ],
)
def test_bad_prompts(model, prompts, error):
    for call in (model.generate, model.complete, model.stream):
        with pytest.raises(error) as caught:
            call(prompts)
        assert isinstance(caught.value, gpt2c.Error)


def test_errors_name_the_prompt_and_position_of_an_invalid_id(model):
    with pytest.raises(gpt2c.OptionError, match="prompt 1: token 2 is 50; ids are from 0 to 49"):
        model.generate([[1], [1, 2, 50]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens is -1"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens is 2.0"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens is True"),
        ({"max_new_tokens": None}, TypeError, "max_new_tokens is None"),
        ({"max_new_tokens": 2**31}, ValueError, "max_new_tokens is 2147483648"),
        ({"temperature": -0.1}, ValueError, "temperature is -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"temperature": float("inf")}, ValueError, "temperature is inf"),
        ({"temperature": 10**400}, ValueError, "temperature is 1000"),
        ({"temperature": "1"}, TypeError, "temperature is '1'"),
        ({"temperature": True}, TypeError, "temperature is True"),
        ({"top_k": -1}, ValueError, "top_k is -1"),
        ({"top_k": 1.5}, TypeError, "top_k is 1.5"),
        ({"seed": -1, "temperature": 1}, ValueError, "seed is -1"),
        ({"seed": 2**64, "temperature": 1}, ValueError, "seed is 18446744073709551616"),
        ({"seed": 1.0, "temperature": 1}, TypeError, "seed is 1.0"),
        ({"seed": [1, 2], "temperature": 1}, ValueError, "seed is a list of 2"),
        ({"do_sample": 1}, TypeError, "do_sample is 1"),
        ({"do_sample": False, "temperature": 0.5}, ValueError, "temperature"),
        ({"do_sample": False, "top_k": 5}, ValueError, "top_k"),
        ({"truncate": "right"}, ValueError, "truncate is 'right'"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 257}, ValueError, "batch_size is 257"),
    ],
)
def test_bad_options_name_the_option(plain, options, error, message):
    with pytest.raises(error, match=message) as caught:
        plain.generate([1, 2], **options)
    assert isinstance(caught.value, gpt2c.Error)


def test_stream_checks_options_before_the_first_token(plain):
    with pytest.raises(gpt2c.OptionError):
        plain.stream([1], temperature=-1)
    with pytest.raises(gpt2c.OptionTypeError):
        plain.stream([[1], [2]])
    with pytest.raises(gpt2c.OptionTypeError):
        plain.stream([1], seed=[1])


def test_a_nan_logit_is_an_error_with_its_position(backend):
    config = config_of()
    weights = random_weights(config)
    weights["wte.weight"][9] = np.nan
    model = model_on(backend, config, weights)
    # The head is tied, so a NaN row of wte makes one logit NaN at every position.
    with pytest.raises(gpt2c.NumericalError, match=r"prompt 0: .*position 2"):
        model.generate([1, 2])
    with pytest.raises(ArithmeticError):
        list(model.stream([1, 2], temperature=1.0, seed=0))


def test_text_needs_a_tokenizer(model):
    with pytest.raises(gpt2c.TokenizerError, match="vocab"):
        model.generate("some text")
    assert issubclass(gpt2c.TokenizerError, ValueError)


def test_close_ends_the_model(model):
    session = model.session()
    stream = model.stream([1, 2])
    next(stream)
    model.close()
    model.close()
    for call in (
        lambda: model.generate([1]),
        lambda: model.logits([1]),
        lambda: model.session(),
        lambda: session.feed(1),
        lambda: next(stream),
        lambda: session.copy(),
    ):
        with pytest.raises(gpt2c.ClosedError):
            call()
    with model_on("numpy", config_of(), random_weights(config_of())) as inside:
        inside.generate([1], max_new_tokens=1)
    with pytest.raises(RuntimeError):
        inside.generate([1])


def test_threads_share_a_model(model):
    prompts = [[i, i + 1, i + 2] for i in range(8)]
    expected = [model.generate(p, max_new_tokens=30) for p in prompts]
    results = [None] * 8

    def work(i):
        results[i] = model.generate(prompts[i], max_new_tokens=30)

    in_threads(work, range(8))
    assert results == expected


def test_more_prompts_than_the_batch_size(model):
    prompts = [[i % 50, (i * 7) % 50] for i in range(DEFAULT_BATCH_SIZE * 2 + 3)]
    together = model.generate(prompts, max_new_tokens=3)
    assert together == [model.generate(p, max_new_tokens=3) for p in prompts]


def test_help_shows_the_options_of_all_methods():
    """The options of generate, complete and stream are listed in several places that must agree."""

    def options(method):
        return [n for n in inspect.signature(method).parameters if n not in ("self", "prompt")]

    complete = options(GPT2.complete)
    assert options(GPT2.generate) == [n for n in complete if n not in ("logprobs", "echo")]
    not_of_stream = ("prompts", "num_return_sequences", "batch_size", "progress", "logprobs",
                     "echo", *BeamOptions.__annotations__)  # fmt: skip
    assert options(GPT2.stream) == [n for n in complete if n not in not_of_stream]
    assert options(GPT2.stream_async) == options(GPT2.stream)
    assert inspect.signature(GPT2.complete).parameters["max_new_tokens"].default == 40
    documented = GPT2.complete.__doc__
    for name in complete[1:]:
        assert re.search(rf"^ *({name}|.*[, ]{name}(,.*)?)$", documented, re.MULTILINE), name


def test_ids_without_text_are_never_generated(backend):
    """The model's likeliest ids by far are ids that the tokenizer lacks, so they have no text."""
    config = config_of(vocab_size=50304, n_layer=0, n_embd=3, n_head=1)
    weights = random_weights(config)
    weights["wte.weight"][50257:] *= 1000
    checkpoint = from_arrays(config, weights)
    assert tokenizer_of(checkpoint) is None
    padded = on_backend(backend, lambda b: GPT2(checkpoint, None, backend=b))
    bare = model_on(backend, config, weights)
    assert max(bare.generate([1], max_new_tokens=5)) >= 50257
    for options in ({}, {"temperature": 1.0, "seed": 1},
                    {"top_k": 5, "sampler_order": ["top_k"]}):  # fmt: skip
        ids = padded.generate([1], max_new_tokens=20, **options)
        assert max(ids) < 50257
        assert isinstance(padded.generate("a", max_new_tokens=5, **options), str)
    assert padded.generate([50300], max_new_tokens=1)  # a prompt may contain them


def test_repr_and_config_of_a_model(model, backend):
    assert model.backend == backend
    assert "n_layer 2" in repr(model)
    assert model.config.n_embd == 24
