"""What lm-eval's requests mean; lm-eval itself is not needed. See also test_lm_eval.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import config_of, model_on, random_weights

import gpt2c
from gpt2c.cli import evaluate
from gpt2c.cli.main import main, make_parser
from gpt2c.compat.lm_eval.generating import Limits, complete_options, generate_texts
from gpt2c.compat.lm_eval.scoring import Pair, encode_pair, score_pairs

CONFIG = config_of(n_positions=40)
WEIGHTS = random_weights(CONFIG)
LIMITS = Limits(max_length=64, max_gen_toks=16, seed=3)
DRAFTS = {"draft": None}


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, WEIGHTS)


def characters(text, special):
    """A tokenizer whose ids are characters; "<" begins every text with special tokens."""
    return [*([ord("<")] if special else []), *map(ord, text)]


def pair(context, continuation, prefix="|"):
    found = encode_pair(context, continuation, characters, ord(prefix))
    return "".join(map(chr, found.context)), "".join(map(chr, found.continuation))


def test_contexts_and_continuations_are_encoded_as_one_text():
    assert pair("The", " end") == ("<The", " end")
    assert pair("The \n", "end") == ("<The", " \nend")
    assert pair("", "end") == ("|", "end")
    assert pair(" ", "end") == ("|", " end")
    assert pair("", "|end") == ("|", "end")
    assert pair("", "") == ("|", "")
    assert pair("The", "") == ("<The", "")


def test_a_continuation_inside_the_contexts_last_token_is_refused():
    with pytest.raises(gpt2c.OptionError, match="'g' has no token of its own"):
        encode_pair("The kin", "g", lambda text, special: text.split(), 0)


def test_scores_are_those_of_the_window(model):
    n, generator = model.config.n_positions, np.random.default_rng(5)
    ids = generator.integers(0, model.config.vocab_size, 3 * n).tolist()
    pairs = [
        Pair(ids[:5], ids[5:9]), Pair(ids[:5], ids[9:10]), Pair(ids[:5], []),
        Pair(ids, ids[:3]),  # the context's beginning does not fit
        Pair(ids[:1], ids[1 : n + 1]),  # feeds all positions
        Pair(ids[:n], ids[n : n + 1]),
    ]  # fmt: skip
    for each, (total, greedy) in zip(pairs, score_pairs(model._engine, pairs, n), strict=True):
        text = [*each.context, *each.continuation][-(n + 1) :]
        logits = model.logits(text[:-1]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        m = len(each.continuation)
        rows = np.arange(len(text) - 1)[len(text) - 1 - m :]
        expected = logprobs[rows, text[len(text) - m :]].sum()
        # float32's rounding in each log-probability
        assert total == pytest.approx(expected, abs=2e-5 * max(m, 1))
        assert greedy == (logits[rows].argmax(1).tolist() == text[len(text) - m :])


def test_a_continuation_longer_than_the_context_is_refused(model):
    n = model.config.n_positions
    with pytest.raises(gpt2c.ContextError, match=rf"request 1: .* {n + 1} tokens"):
        list(score_pairs(model._engine, [Pair([1], [2]), Pair([1], [2] * (n + 1))], n))


def test_generation_kwargs_have_lm_evals_meaning():
    greedy = complete_options({"temperature": 0.0, "top_p": 0.9, "until": "x"}, LIMITS)
    assert greedy == {"do_sample": False, "max_new_tokens": 16, "stop_strings": ["x"]}
    forced = complete_options({"do_sample": False, "temperature": 1, "max_tokens": 5}, LIMITS)
    assert forced == {"do_sample": False, "max_new_tokens": 5, "stop_strings": None}
    drawn = complete_options({"temperature": 0.5, "until": ["", "a"], "max_new_tokens": 2}, LIMITS)
    assert drawn == {
        "do_sample": True, "temperature": 0.5, "seed": 3, "max_new_tokens": 2, "stop_strings": ["a"]
    }  # fmt: skip
    first = {"max_tokens": 9, "max_gen_toks": 7}
    assert complete_options(first, LIMITS)["max_new_tokens"] == 7
    for kwargs in ({"max_gen_toks": 64}, {"max_gen_toks": -1}):
        with pytest.raises(gpt2c.OptionError, match="max_gen_toks"):
            complete_options(kwargs, LIMITS)
    with pytest.raises(gpt2c.OptionTypeError, match="until is 3"):
        complete_options({"until": 3}, LIMITS)


def texts_of(model, contexts, limits=LIMITS):
    ids = [(model.tokenizer.encode(context), kwargs) for context, kwargs in contexts]
    found = dict(generate_texts(model, ids, limits, DRAFTS))
    return [found[i] for i in range(len(contexts))]


def test_each_request_has_its_own_options(tales):
    contexts = [
        ("Once upon a time", {"max_gen_toks": 12}),
        ("The old king", {"until": [" the", "."], "max_gen_toks": 30}),
        ("The old king", {"num_beams": 3, "max_gen_toks": 8}),
        ("word " * 200, {"max_gen_toks": 10}),
    ]
    ids = tales.tokenizer.encode("word " * 200)[-54:]
    assert texts_of(tales, contexts) == [
        tales.generate("Once upon a time", max_new_tokens=12),
        tales.generate("The old king", stop_strings=[" the", "."], max_new_tokens=30),
        tales.generate("The old king", num_beams=3, max_new_tokens=8),
        tales.tokenizer.decode(tales.generate(ids, max_new_tokens=10)),
    ]
    with pytest.raises(gpt2c.OptionTypeError, match=r"request 1, .* no option 'foo'"):
        texts_of(tales, [("a", {}), ("b", {"foo": 1})])


def test_draws_depend_on_the_context_the_seed_and_the_repeat(tales):
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    contexts = [("The old king", drawn), ("A fox", drawn), ("The old king", drawn)]
    first, fox, again = texts_of(tales, contexts)
    assert first != again
    assert texts_of(tales, contexts[:1]) == [first]
    assert texts_of(tales, contexts[1:]) == [fox, first]
    assert texts_of(tales, contexts[:1], LIMITS._replace(seed=4)) != [first]


def arguments(*given):
    options = make_parser().parse_args(["eval", *given])
    return evaluate.lm_eval_arguments(options, frozenset({"gpt2c", "hf"}))


def test_the_command_passes_lm_evals_options_on():
    rest = ["--tasks", "a,b", "--limit", "3", "-s"]
    assert arguments(*rest) == ["--model", "gpt2c", *rest]
    assert arguments("--model", "a, b", "--tasks", "c", "--dtype", "int8") == [
        "--model", "gpt2c", "--model_args", '{"dtype": "int8", "pretrained": "a, b"}', "--tasks",
        "c",
    ]  # fmt: skip
    hf = ["--model", "hf", "--model_args", "pretrained=x", "--tasks", "a"]
    assert arguments(*hf) == hf
    assert arguments("--config", "file.yaml") == ["--config", "file.yaml"]
    assert arguments("ls", "tasks") == ["ls", "tasks"]


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "gpt2c.compat.lm_eval.model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    assert main(["eval", "--tasks", "a"]) == 2
    assert "pip install 'lm-eval>=0.4.13'" in capsys.readouterr().err
