"""Programs that people use with OpenAI's API, unchanged: their results are those of this process.

tools/ci/serve_clients.sh runs these tests in an environment that has all of the packages.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from serving import running

from gpt2c import GPT2
from gpt2c.serve.server import Running

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PROMPT = "Once upon a time"
PROMPTS = [PROMPT, "The king said", "\N{SNOWMAN} snow"]
REASON = "not installed; tools/ci/serve_clients.sh installs it"
TASKS = FIXTURES / "lm_eval"


@pytest.fixture(scope="module")
def server(tales: GPT2) -> Iterator[Running]:
    with running(tales) as found:
        yield found


@pytest.fixture(scope="module")
def url(server: Running) -> str:
    return f"{server.url}/v1"


# ---- openai ----


def openai_client(url: str, name: str = "OpenAI") -> Any:
    openai = pytest.importorskip("openai", reason=REASON)
    return getattr(openai, name)(base_url=url, api_key="none", max_retries=0)


def test_openai_completes(url: str, tales: GPT2) -> None:
    client = openai_client(url)
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS, max_tokens=9, temperature=0.7, seed=4, logprobs=2, n=2,
        top_p=0.9, frequency_penalty=0.5, presence_penalty=0.1, logit_bias={"13": -50},
        stop=["zzz"], user="someone", echo=True,
    )  # fmt: skip
    wanted = tales.complete(
        PROMPTS, max_new_tokens=9, temperature=0.7, seed=4, logprobs=2, num_return_sequences=2,
        top_p=0.9, frequency_penalty=0.5, presence_penalty=0.1, logit_bias={13: -50},
        stop_strings=["zzz"],
    )  # fmt: skip
    found = [(p, c) for p, group in zip(PROMPTS, wanted, strict=True) for c in group]
    assert [c.text for c in answer.choices] == [p + c.text for p, c in found]
    for choice, (prompt, completion) in zip(answer.choices, found, strict=True):
        scored = tales.score(prompt, top_logprobs=2).logprobs.tolist()[1:]
        assert choice.logprobs.token_logprobs[1:] == [*scored, *completion.logprobs]
        assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 54


@pytest.mark.parametrize("is_async", [False, True])
def test_openai_streams(url: str, tales: GPT2, is_async: bool) -> None:
    wanted = tales.complete(PROMPT, max_new_tokens=9, temperature=0.7, seed=4, logprobs=2)
    given: dict[str, Any] = {
        "model": "tiny", "prompt": PROMPT, "max_tokens": 9, "temperature": 0.7, "seed": 4,
        "logprobs": 2, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip

    async def all_of() -> list[Any]:
        async with openai_client(url, "AsyncOpenAI") as client:
            return [chunk async for chunk in await client.completions.create(**given)]

    if is_async:
        chunks = asyncio.run(all_of())
    else:
        chunks = list(openai_client(url).completions.create(**given))
    assert "".join(c.choices[0].text for c in chunks[:-1]) == wanted.text
    logprobs = [p for c in chunks[:-1] for p in c.choices[0].logprobs.token_logprobs]
    assert logprobs == wanted.logprobs
    assert chunks[-1].usage.completion_tokens == 9


def test_openai_lists_models_embeds_and_raises(url: str, tales: GPT2) -> None:
    openai, client = pytest.importorskip("openai", reason=REASON), openai_client(url)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    vectors = client.embeddings.create(model="tiny", input=PROMPTS)  # as base64
    assert [d.embedding for d in vectors.data] == tales.embed(PROMPTS).tolist()
    for name, fields, error, param in (
        ("completions", {"suffix": "x"}, openai.BadRequestError, "suffix"),
        ("completions", {"model": "gpt-4"}, openai.NotFoundError, "model"),
    ):
        with pytest.raises(error) as caught:
            getattr(client, name).create(**{"model": "tiny", "prompt": PROMPT, **fields})
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


# ---- LangChain ----


def test_langchain(url: str, tales: GPT2) -> None:
    langchain = pytest.importorskip("langchain_openai", reason=REASON)
    common = {"base_url": url, "api_key": "none", "model": "tiny", "max_retries": 0}
    llm = langchain.OpenAI(**common, temperature=0, max_tokens=12)
    wanted = [c.text for c in tales.complete(PROMPTS, max_new_tokens=12)]
    assert llm.invoke(PROMPT) == wanted[0]
    assert "".join(llm.stream(PROMPT)) == wanted[0]
    assert llm.batch(PROMPTS) == wanted
    assert asyncio.run(llm.abatch(PROMPTS)) == wanted
    assert [g[0].text for g in llm.generate(PROMPTS).generations] == wanted
    stop = tales.complete(PROMPT, max_new_tokens=12, stop_strings=[" was"]).text
    assert llm.invoke(PROMPT, stop=[" was"]) == stop
    llm = langchain.OpenAI(
        **common, temperature=0.8, max_tokens=6, n=2, best_of=2, seed=3, top_p=0.9, logprobs=2
    )
    drawn = tales.complete(
        PROMPT, max_new_tokens=6, temperature=0.8, top_p=0.9, seed=3, num_return_sequences=2
    )
    (found,) = llm.generate([PROMPT]).generations
    assert [g.text for g in found] == [c.text for c in drawn]
    # Otherwise the package encodes texts itself, for another model.
    embeddings = langchain.OpenAIEmbeddings(**common, check_embedding_ctx_length=False)
    assert embeddings.embed_documents(PROMPTS) == tales.embed(PROMPTS).tolist()


# ---- llama-index ----


def test_llama_index(url: str, tales: GPT2) -> None:
    module = pytest.importorskip("llama_index.llms.openai_like", reason=REASON)
    common = {
        "api_base": url, "api_key": "none", "model": "tiny", "is_chat_model": False,
        "context_window": tales.config.n_positions, "max_retries": 0,
    }  # fmt: skip
    llm = module.OpenAILike(**common, temperature=0, max_tokens=12)
    wanted = tales.complete(PROMPT, max_new_tokens=12).text
    assert llm.complete(PROMPT).text == wanted
    *_, last = llm.stream_complete(PROMPT)
    assert last.text == wanted
    assert asyncio.run(llm.acomplete(PROMPT)).text == wanted
    drawn = tales.complete(PROMPT, max_new_tokens=5, temperature=0.8, seed=3).text
    llm = module.OpenAILike(**common, temperature=0.8, max_tokens=5)
    assert llm.complete(PROMPT, seed=3).text == drawn


# ---- lm-eval ----


class Request:
    """The part of lm-eval's Instance that models use."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module", params=[(1, 1), (8, 4)], ids=["one", "many"])
def completions_model(url: str, tales: GPT2, request: pytest.FixtureRequest) -> Any:
    pytest.importorskip("lm_eval", reason=REASON)
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    batch_size, num_concurrent = request.param
    return LocalCompletionsAPI(
        base_url=f"{url}/completions", model="tiny", tokenizer_backend="remote",
        max_length=tales.config.n_positions, batch_size=batch_size, num_concurrent=num_concurrent,
        max_retries=1,
    )  # fmt: skip


def own_model(tales: GPT2, n_shorter: int) -> Any:
    """Return gpt2c's own model for lm-eval, which cuts texts at the same places.

    "local-completions" keeps a position for a token that it has the server generate, and counts the
    last token of a text, which is not fed.
    """
    from gpt2c.compat.lm_eval import GPT2LM

    return GPT2LM(tales, max_length=tales.config.n_positions - n_shorter)


def evaluated(model: Any, names: list[str]) -> dict[tuple[str, int], Any]:
    """Return each sample's responses."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model, tasks=[f"gpt2c_{name}" for name in names], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    )  # fmt: skip
    return {
        (task, sample["doc_id"]): sample["filtered_resps"]
        for task, samples in results["samples"].items()
        for sample in samples
    }


def test_lm_eval_scores(completions_model: Any, tales: GPT2) -> None:
    names = ["lambada", "hellaswag", "arc", "piqa", "blimp"]
    found, wanted = evaluated(completions_model, names), evaluated(own_model(tales, 2), names)
    assert found.keys() == wanted.keys()
    for place, values in found.items():
        for (logprob, is_greedy), expected in zip(values, wanted[place], strict=True):
            # Both add the same log-probabilities, in float64 but not in one order.
            assert logprob == pytest.approx(expected[0], rel=1e-12)
            assert is_greedy == expected[1]


def test_lm_eval_generates(completions_model: Any, tales: GPT2) -> None:
    names = ["generate", "generate_freely"]
    assert evaluated(completions_model, names) == evaluated(own_model(tales, 1), names)


def test_lm_eval_scores_long_texts(completions_model: Any, tales: GPT2) -> None:
    texts = [" ".join(f"The king had {i} sons and {i} mills." for i in range(90)), PROMPT]
    assert len(tales.tokenizer.encode(texts[0])) > 2 * tales.config.n_positions
    requests = [Request(text) for text in texts]
    found = completions_model.loglikelihood_rolling(requests)
    assert found == pytest.approx(own_model(tales, 2).loglikelihood_rolling(requests), rel=1e-12)


def test_the_command_of_lm_eval(url: str, tales: GPT2, tmp_path: Path) -> None:
    """As docs/server.md writes it."""
    lm_eval = pytest.importorskip("lm_eval", reason=REASON)
    from lm_eval.tasks import TaskManager

    arguments = f"base_url={url}/completions,model=tiny,tokenizer_backend=remote,max_length=512"
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
        arguments, "--tasks", "gpt2c_lambada", "--include_path", str(TASKS), "--output_path",
        str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    (file,) = tmp_path.rglob("*.json")
    found = json.loads(file.read_text())["results"]["gpt2c_lambada"]
    wanted = lm_eval.simple_evaluate(
        own_model(tales, 2), tasks=["gpt2c_lambada"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    )["results"]["gpt2c_lambada"]  # fmt: skip
    assert found["acc,none"] == wanted["acc,none"]
    assert found["perplexity,none"] == pytest.approx(wanted["perplexity,none"], rel=1e-12)
