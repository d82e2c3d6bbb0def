"""Choices: the probabilities of several continuations of a prompt, against full distributions."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import config_of, model_on, on_backend, random_weights

import gpt2c
from gpt2c import GPT2
from gpt2c.oracle.reference import gpt2

CONFIG = config_of()
WEIGHTS = random_weights(CONFIG)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# A log-probability in float32, of logits up to 30, has an error of about 30 * 2^-23 * 10; the sums
# have a few of them.
ATOL = 1e-4


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


@pytest.fixture
def tales(backend):
    return on_backend(backend, lambda b: GPT2.from_pretrained(backend=b))


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def oracle(ids):
    """Log-probabilities [n, n_vocab] of the tokens after each id, in float64."""
    weights = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    return log_softmax(gpt2(np.array(ids), weights, CONFIG))


def logprob_of(log_probs, n_context, ids):
    """Add up the log-probabilities of ids after n_context ids."""
    return sum(log_probs[n_context - 1 + i, id] for i, id in enumerate(ids))


def test_choices_of_ids_equal_the_oracle(model):
    choices = [[7], [8, 9, 10], [11, 12], [13, 12]]
    found = model.choose(PROMPT, choices)
    expected = [logprob_of(oracle(PROMPT + c), len(PROMPT), c) for c in choices]
    np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=ATOL)
    weights = np.exp(expected)
    np.testing.assert_allclose(found.probabilities, weights / weights.sum(), atol=ATOL)
    assert found.best_index == int(np.argmax(expected))
    assert found.best == choices[found.best_index]
    assert found.n_tokens.tolist() == [1, 3, 2, 2]
    assert found.neutral_logprobs is None


def test_a_choice_that_begins_another_leaves_that_one_out(model):
    choices = [[7], [7, 8], [7, 8, 9], [7, 10], [11]]
    found = model.choose(PROMPT, choices).logprobs
    after = [oracle(PROMPT + ids) for ids in ([7, 8, 9], [7, 10], [11])]
    p = len(PROMPT)
    after_7, after_7_8 = np.exp(after[0][p]), np.exp(after[0][p + 1])
    expected = [
        logprob_of(after[0], p, [7]) + np.log(1 - after_7[8] - after_7[10]),
        logprob_of(after[0], p, [7, 8]) + np.log(1 - after_7_8[9]),
        logprob_of(after[0], p, [7, 8, 9]),
        logprob_of(after[1], p, [7, 10]),
        logprob_of(after[2], p, [11]),
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_probabilities_of_all_choices_sum_to_1(model):
    """A partition of all continuations, with a choice of two tokens for each id after id 7."""
    vocabulary = range(CONFIG.vocab_size)
    pairs = [[7, id] for id in vocabulary if id % 2]
    found = model.choose(PROMPT, [[id] for id in vocabulary] + pairs).logprobs
    assert np.exp(found).sum() == pytest.approx(1, abs=ATOL)


def test_many_different_ends(model):
    """More of them than are measured in one call."""
    firsts = range(40)
    choices = [ids for id in firsts for ids in ([id], [id, id + 1])]
    found = model.choose(PROMPT, choices).logprobs
    for id in firsts:
        after = oracle([*PROMPT, id])
        one, two = after[-2, id], after[-1, id + 1]
        np.testing.assert_allclose(found[2 * id], one + np.log1p(-np.exp(two)), atol=ATOL)
        np.testing.assert_allclose(found[2 * id + 1], one + two, rtol=0, atol=ATOL)


# ---- texts ----


def text_logprob(model, prompt, choice, n_context=None):
    """The formula, from all logits: the joined text's tokens after the prompt's."""
    joined = model.tokenizer.encode(prompt + choice)
    n = len(model.tokenizer.encode(prompt)) if n_context is None else n_context
    return logprob_of(log_softmax(model.logits(joined)), n, joined[n:])


def end_logprob(model, text, longer=()):
    """The formula: no letter or digit follows, and none of the ids in `longer`."""
    p = np.exp(log_softmax(model.logits(text))[-1])
    eos = model.config.eos_token_ids
    ends = [
        id
        for id in range(model.config.vocab_size)
        if id not in longer
        and (id in eos or re.match(r"[^\w\ufffd]|_", model.tokenizer.decode([id])))
    ]
    return np.log(p[ends].sum())


def test_texts_have_their_canonical_tokens(tales):
    prompt, choices = "Once upon a", [" time", " midnight dreary", " king, who"]
    found = tales.choose(prompt, choices)
    expected = [text_logprob(tales, prompt, choice) for choice in choices]
    np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=ATOL)


def test_the_end_of_a_text_that_begins_another(tales):
    prompt, choices = "They lived in the", [" king", " kingdom", " king of", " sea"]
    encode = tales.tokenizer.encode
    assert encode(choices[1])[0] != encode(choices[0])[0]  # other tokens, but it begins alike
    of = encode(choices[2])[1]
    found = tales.choose(prompt, choices).logprobs
    plain = [text_logprob(tales, prompt, choice) for choice in choices]
    ended = plain[0] + end_logprob(tales, prompt + choices[0], {of})
    np.testing.assert_allclose(found, [ended, *plain[1:]], rtol=0, atol=ATOL)
    found = tales.choose(prompt, choices, ends=True).logprobs
    others = [p + end_logprob(tales, prompt + c) for p, c in zip(plain, choices, strict=True)]
    np.testing.assert_allclose(found, [ended, *others[1:]], rtol=0, atol=ATOL)


def test_a_text_that_begins_another_with_other_tokens(tales):
    prompt, choices = "They lived in the", [" king", " kingdom"]
    first, second = map(tales.tokenizer.encode, choices)
    assert second[: len(first)] != first
    found = tales.choose(prompt, choices).logprobs
    plain = [text_logprob(tales, prompt, choice) for choice in choices]
    ended = plain[0] + end_logprob(tales, prompt + choices[0])
    np.testing.assert_allclose(found, [ended, plain[1]], rtol=0, atol=ATOL)


def test_a_choice_may_change_the_end_of_the_prompt(tales):
    """The space becomes part of the choice's token, so both are scored from there."""
    prompt, choices = "Once upon a ", ["time", "king", "1"]
    encode = tales.tokenizer.encode
    n = len(encode("Once upon a"))
    assert encode(prompt + "time")[:n] == encode(prompt)[:n] != encode(prompt)
    found = tales.choose(prompt, choices)
    expected = [text_logprob(tales, prompt, choice, n) for choice in choices]
    np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=ATOL)
    # The same texts with the space in the choices have the same probabilities.
    moved = tales.choose("Once upon a", [f" {choice}" for choice in choices])
    np.testing.assert_allclose(found.logprobs, moved.logprobs, rtol=0, atol=ATOL)


def test_a_neutral_prompt(tales):
    prompts, choices, neutral = ["The sea was", "The night was"], [" dark", " wet"], "It was"
    plain = tales.choose(prompts, choices)
    base = tales.choose(neutral, choices)
    found = tales.choose(prompts, choices, neutral=neutral)
    for with_neutral, without in zip(found, plain, strict=True):
        np.testing.assert_allclose(with_neutral.logprobs, without.logprobs, atol=ATOL)
        np.testing.assert_allclose(with_neutral.neutral_logprobs, base.logprobs, atol=ATOL)
        ratios = np.exp(without.logprobs) / np.exp(base.logprobs)
        np.testing.assert_allclose(with_neutral.probabilities, ratios / ratios.sum(), atol=ATOL)
        assert with_neutral.best == choices[int(ratios.argmax())]


def test_bos_and_special_tokens():
    model = GPT2.from_pretrained()
    bos, encode = model.config.bos_token_id, model.tokenizer.encode
    ids = model.choose([bos], [encode("Once"), encode("King")])
    np.testing.assert_array_equal(
        model.choose("", ["Once", "King"], bos=True).logprobs, ids.logprobs
    )
    found = model.choose("<|endoftext|>", ["Once", "King"], special_tokens=True)
    np.testing.assert_array_equal(found.logprobs, ids.logprobs)


# ---- several prompts ----


def test_prompts_of_a_list_and_of_an_iterator(backend):
    model = on_backend(backend, lambda b: GPT2.from_pretrained(backend=b))
    prompts = [f"Once upon a time, {'a king and ' * n}" for n in range(6)]
    choices = [[" a", " a queen"], [" b", " c"]] * 3
    alone = [model.choose(p, c).logprobs for p, c in zip(prompts, choices, strict=True)]
    atol = 0 if backend != "numpy" else ATOL
    for found, expected in zip(model.choose(prompts, choices), alone, strict=True):
        np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=atol)
    lazily = model.choose(iter(prompts), choices[0], neutral="A", ends=True)
    at_once = model.choose(prompts, choices[0], neutral="A", ends=True)
    for found, expected in zip(lazily, at_once, strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=atol)
    assert model.choose([], choices[0]) == []


def test_an_iterator_is_read_lazily(model):
    read = []

    def prompts():
        for index in range(100_000):
            read.append(index)
            yield [index % CONFIG.vocab_size] * 30

    next(model.choose(prompts(), [[1], [2]]))
    assert len(read) < 1000


def test_the_prompt_is_computed_once(model, monkeypatch):
    n_fed = []
    measure = type(model._engine).measure

    class Engine:
        def __init__(self, engine):
            self._engine = engine

        def __getattr__(self, name):
            return getattr(self._engine, name)

        def measure(self, sequences, ids, *others):
            n_fed.append(sum(map(len, ids)))
            return measure(self._engine, sequences, ids, *others)

    monkeypatch.setattr(model, "_engine", Engine(model._engine))
    prompt = PROMPT * 4
    model.choose(prompt, [[id] for id in range(8)])
    # The last token of the prompt is fed for each choice, because its scores differ.
    assert sum(n_fed) <= len(prompt) + 8


@pytest.mark.parametrize(
    ("prompts", "choices", "error", "message"),
    [
        ([1, 2], [], gpt2c.OptionError, "choices is empty"),
        ([1, 2], " a", gpt2c.OptionTypeError, "choices is ' a'"),
        ([1, 2], [[1], []], gpt2c.OptionError, "choices[1] is empty"),
        ([1, 2], [[1], 3.5], gpt2c.OptionTypeError, "choices[1] is 3.5"),
        ([1, 2], [[1], [2], [1]], gpt2c.OptionError, "choices 0 and 2 are the same tokens"),
        ([1, 2], [" a"], gpt2c.OptionTypeError, "both must be texts, or both ids"),
        ([1, 2], [[1], [99]], gpt2c.OptionError, "choice 1: token 0 is 99"),
        ([[1], [2]], [[[1]]], gpt2c.OptionError, "2 prompts and 1 lists of choices"),
        ([[]], [[1], [2]], gpt2c.OptionError, "prompt 0: nothing precedes the first token"),
        ([1] * 38, [[1], [2, 3]], gpt2c.ContextError, "prompt 0 with choice 1"),
        ("a", ["b"], gpt2c.TokenizerError, "prompt 0: no tokenizer"),
    ],
)
def test_errors_say_what_is_wrong(model, prompts, choices, error, message):
    with pytest.raises(error, match=re.escape(message)):
        model.choose(prompts, choices)
