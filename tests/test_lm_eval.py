"""gpt2c as a model of lm-eval, compared with lm-eval's own model "hf" on the same requests.

tools/ci/lm_eval.sh runs these tests in an environment with lm-eval, torch and transformers.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from conftest import FIXTURES, needs_engine, shared_file

import gpt2c
from gpt2c.cli.main import main

pytest.importorskip("lm_eval", reason="lm-eval is not installed; tools/ci/lm_eval.sh installs it")
pytest.importorskip("transformers", reason="transformers is not installed")
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from gpt2c.compat.lm_eval import GPT2LM, register

pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = FIXTURES / "lm_eval"
SCORED = ["lambada", "hellaswag", "arc", "piqa", "blimp", "wikitext"]
GENERATED = ["generate", "generate_freely"]


class Request(NamedTuple):
    """The part of lm-eval's Instance that models use."""

    args: tuple


def evaluated(model, names, **options):
    return lm_eval.simple_evaluate(
        model, tasks=[f"gpt2c_{name}" for name in names], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False), **options,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["tales", "prose-21m"])
def folder(request, tmp_path_factory):
    if request.param == "prose-21m":
        return shared_file("models/prose-21m")
    path = tmp_path_factory.mktemp("lm_eval") / "tales"
    gpt2c.GPT2.from_pretrained().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def hf(folder):
    return HFLM(str(folder), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def ours(folder):
    return GPT2LM(folder)


def answers(results):
    """Return each sample's responses, by task and document."""
    return {
        (task, sample["doc_id"]): sample["filtered_resps"]
        for task, samples in results["samples"].items()
        for sample in samples
    }


def test_log_likelihoods_and_metrics_are_those_of_hf(hf, ours):
    expected, found = evaluated(hf, SCORED), evaluated(ours, SCORED)
    ties = 0
    theirs = answers(expected)
    assert theirs.keys() == answers(found).keys()
    for place, values in answers(found).items():
        for value, other in zip(values, theirs[place], strict=True):
            if isinstance(value, float):
                # hf adds each window in float32, so the sum loses a part of 2**-24 per token.
                assert value == pytest.approx(other, rel=1e-6, abs=1e-4)
            else:
                assert value[0] == pytest.approx(other[0], abs=1e-4)
                ties += value[1] != other[1]
    assert ties == 0
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert found["results"][task][name] == pytest.approx(value, rel=1e-5), (task, name)


def test_texts_are_those_of_hf(hf, ours):
    expected, found = evaluated(hf, GENERATED), evaluated(ours, GENERATED)
    assert answers(found) == answers(expected)
    texts = [text for (text,) in answers(found).values()]
    assert any(texts)
    for text in texts[: len(texts) // 2]:
        assert not any(stop in text for stop in ("\n\n", ". ", "the king", "!"))


def test_requests_that_tasks_seldom_make(hf, ours):
    requests = [
        Request(pair)
        for pair in [
            ("", "The king"), ("", "<|endoftext|>The king"), ("The king ", " said"),
            ("The king\n\t ", "said"), ("Once  upon", "  a  time"), ("The king", " said"),
            ("word " * 3000, "king"), ("Märchen", " und «schön»"),
        ]
    ]  # fmt: skip
    for found, expected in zip(
        ours.loglikelihood(requests), hf.loglikelihood(requests), strict=True
    ):
        assert found[0] == pytest.approx(expected[0], abs=1e-4)
        assert found[1] == expected[1]
    assert ours.loglikelihood([Request(("The king", "")), Request(("", ""))]) == [(0.0, True)] * 2
    assert ours.loglikelihood([]) == ours.loglikelihood_rolling([]) == ours.generate_until([]) == []
    assert ours.loglikelihood_rolling([Request(("",))]) == [0.0]
    (text,) = ours.generate_until([Request(("", {"max_gen_toks": 5}))])
    assert text == ours.gpt2.generate("", max_new_tokens=5)
    with pytest.raises(gpt2c.OptionError, match="no token of its own"):
        ours.loglikelihood([Request(("The kin", "g"))])
    with pytest.raises(gpt2c.ContextError, match="request 1"):
        ours.loglikelihood([Request(("a", " b")), Request(("a", " b" * 2000))])


def samples_files(out, *options):
    arguments = ["--include_path", str(TASKS), "--log_samples", "--output_path", str(out)]
    tasks = ",".join(f"gpt2c_{name}" for name in [*SCORED, *GENERATED, "sample"])
    assert main(["eval", "--tasks", tasks, *arguments, *options]) == 0
    files = {p.name.split("_2")[0]: p.read_bytes() for p in out.rglob("samples_*.jsonl")}
    assert len(files) == len(SCORED) + len(GENERATED) + 1
    return files


def test_samples_do_not_depend_on_the_batch_size(tmp_path, capsys):
    first = samples_files(tmp_path / "a", "--batch_size", "1")
    limited = ["--batch_size", "16", "--threads", "1", "--limit", "4"]
    second = samples_files(tmp_path / "b", *limited)
    for name, samples in second.items():
        lines = samples.splitlines()
        assert lines == first[name].splitlines()[: len(lines)]
        assert len(lines) == 4
    drawn = [json.loads(line)["resps"][0] for line in first["samples_gpt2c_sample"].splitlines()]
    assert any(one != two for one, two in drawn), "repeats draw different texts"
    assert "gpt2c_wikitext" in capsys.readouterr().out


@needs_engine
def test_both_backends_have_the_same_answers():
    found = answers(evaluated(GPT2LM(backend="numpy"), ["blimp", "generate"]))
    expected = answers(evaluated(GPT2LM(backend="c"), ["blimp", "generate"]))
    for place, values in found.items():
        for value, other in zip(values, expected[place], strict=True):
            if isinstance(value, str):
                assert value == other
            else:
                assert value == (pytest.approx(other[0], abs=1e-4), other[1])


def test_the_cache_answers_without_the_model(ours, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = evaluated(ours, ["blimp", "wikitext", "generate"], use_cache=cache)
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        monkeypatch.setattr(ours, name, lambda requests: pytest.fail("not from the cache"))
    again = evaluated(ours, ["blimp", "wikitext", "generate"], use_cache=cache)
    assert answers(again) == answers(first)


def test_partial_results_are_cached(ours):
    seen = []

    class Hook:
        def add_partial(self, kind, key, result):
            seen.append((kind, key, result))

    before, ours.cache_hook = ours.cache_hook, Hook()
    try:
        (answer,) = ours.loglikelihood([Request(("a", " b"))])
        (total,) = ours.loglikelihood_rolling([Request(("a b",))])
        (text,) = ours.generate_until([Request(("a", {"max_gen_toks": 2}))])
    finally:
        ours.cache_hook = before
    assert seen == [
        ("loglikelihood", ("a", " b"), answer),
        ("loglikelihood_rolling", ("a b",), total),
        ("generate_until", ("a", {"max_gen_toks": 2}), text),
    ]


def test_lm_eval_keeps_its_own_models():
    register()
    register()
    from lm_eval.api.registry import get_model

    assert get_model("gpt2c") is GPT2LM
    assert get_model("hf") is HFLM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft": "folder"}, "no argument 'peft'"),
        ({"dtipe": "int8"}, "did you mean dtype"),
        ({"max_length": 100000}, "max_length is 100000"),
        ({"prefix_token_id": -1}, "prefix_token_id is -1"),
        ({"pretrained": 5}, "pretrained is 5"),
        ({"pretrained": "no/such/model"}, "no/such/model"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(gpt2c.Error, match=message):
        GPT2LM(**options)


def test_arguments_have_their_meaning(tales):
    assert GPT2LM(dtype="int8", threads=1).gpt2.dtype == "int8"
    with pytest.raises(gpt2c.OptionError, match="dtype is given with a loaded model"):
        GPT2LM(tales, dtype="int8")
    short = GPT2LM(tales, max_length=32, prefix_token_id=7, batch_size="auto", device="cuda:0")
    ids = short.tok_encode("word " * 40 + "king")
    ((total, _),) = short.loglikelihood([Request(("word " * 40, "king"))])
    n = len(ids) - len(short.tok_encode(("word " * 40).rstrip()))
    assert total == tales.score(ids[-33:-n], ids[-n:]).total
    (total,) = short.loglikelihood_rolling([Request(("The king",))])
    assert total == tales.score([7], short.tok_encode("The king")).total
    with pytest.raises(gpt2c.OptionError, match="no chat template"):
        short.apply_chat_template([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "gpt2c_none"], "Tasks not found: gpt2c_none"),
        (["--gen_kwargs", "foo=1"], "no option 'foo'"),
    ],
)
def test_an_error_of_the_command_is_one_line(options, message, capsys):
    given = ["eval", "--include_path", str(TASKS)]
    assert main([*given, "--tasks", "gpt2c_generate", *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gpt2c: ")
    assert message in last
