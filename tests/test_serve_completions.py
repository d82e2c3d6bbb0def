"""POST /v1/completions: answers have the bits of GPT2.complete in this process."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS, TINY, config_of, load, model_on, random_weights
from serving import Answer, Client, ask_async, service_of

from gpt2c import GPT2, Completion
from gpt2c.scheduler import Times
from gpt2c.serve.limits import Limits

PROMPT = "Once upon a time there was a king"
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7}


@pytest.fixture(scope="module")
def client(tales: GPT2) -> Client:
    return Client(service_of({"tales": tales}, aliases={"tales": ["gpt-2"]}))


@pytest.fixture(params=BACKENDS)
def random_client(request: pytest.FixtureRequest) -> Client:
    """A model without a tokenizer whose texts soon end by themselves, on each backend."""
    config = config_of(eos_token_id=7, n_positions=24)
    model = model_on(request.param, config, random_weights(config))
    return Client(service_of(model))


def without_id(answer: Answer) -> Any:
    return {k: v for k, v in answer.json.items() if k not in ("id", "created")}


def expected_logprobs(model: GPT2, ids: list[int], logprobs: list[float], start: int) -> Any:
    """Return OpenAI's tokens, token_logprobs and text_offset for ids, by the plain definitions."""
    raw = [model.tokenizer.token_bytes(id) for id in ids]
    names = []
    for part in raw:
        try:
            names.append(part.decode())
        except UnicodeDecodeError:
            names.append("bytes:" + "".join(f"\\x{b:02x}" for b in part))
        # A token's offset is the number of characters that end before its first byte.
    ends = np.cumsum([len(char.encode()) for char in b"".join(raw).decode()])
    begins = np.cumsum([0, *map(len, raw)])[:-1]
    offsets = [start + int(np.sum(ends <= begin)) for begin in begins]
    return names, [None if math.isnan(p) else p for p in logprobs], offsets


# ---- answers ----


def test_a_greedy_text_is_that_of_complete(client: Client, tales: GPT2) -> None:
    answer = client.complete(model="tales", prompt=PROMPT, temperature=0, max_tokens=12).json
    wanted = tales.complete(PROMPT, max_new_tokens=12)
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0, "text": wanted.text, "logprobs": None, "finish_reason": "length", "seed": None,
    }  # fmt: skip
    n = len(tales.tokenizer.encode(PROMPT))
    assert answer["usage"] == {
        "prompt_tokens": n, "completion_tokens": 12, "total_tokens": n + 12,
    }  # fmt: skip
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tales"
    assert answer["id"].startswith("cmpl-")
    assert abs(answer["created"] - time.time()) < 60


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (SAMPLED, {"temperature": 0.9, "top_p": 0.95}),
        ({"temperature": 1, "top_k": 5, "seed": 7}, {"temperature": 1.0, "top_k": 5}),
        ({"temperature": 0, "frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
        ({"temperature": 0, "presence_penalty": -2}, {"presence_penalty": -2}),
        ({"temperature": 0, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"temperature": 0, "logit_bias": {"13": -100}}, {"logit_bias": {13: -100}}),
        ({"temperature": 0, "stop": [" the"]}, {"stop_strings": [" the"]}),
        ({"temperature": 0, "bad_words": ["the"]}, {"bad_words": ["the"]}),
        ({"temperature": 0, "no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"temperature": 0, "dry_multiplier": 0.8}, {"dry_multiplier": 0.8}),
        ({"mirostat_tau": 3, "seed": 7}, {"mirostat_tau": 3, "temperature": 1.0}),
        ({"min_p": 0.1, "typical_p": 0.9, "seed": 7},
         {"min_p": 0.1, "typical_p": 0.9, "temperature": 1.0}),
    ],
)  # fmt: skip
def test_options_mean_what_complete_means(
    client: Client, tales: GPT2, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    answer = client.complete(prompt=PROMPT, max_tokens=20, **fields).json
    wanted = tales.complete(PROMPT, max_new_tokens=20, seed=7, **options)
    assert answer["choices"][0]["text"] == wanted.text
    assert answer["choices"][0]["finish_reason"] == wanted.finish_reason


def test_four_shapes_of_prompts_give_the_same_texts(client: Client, tales: GPT2) -> None:
    prompts = [PROMPT, "The fox"]
    ids = [tales.tokenizer.encode(prompt) for prompt in prompts]
    wanted = [tales.complete(prompt, max_new_tokens=8).text for prompt in prompts]
    for given, texts in (
        (prompts[0], wanted[:1]),
        (prompts, wanted),
        (ids[1], wanted[1:]),
        (ids, wanted),
    ):
        choices = client.complete(prompt=given, max_tokens=8, temperature=0).json["choices"]
        assert [choice["text"] for choice in choices] == texts
        assert [choice["index"] for choice in choices] == [*range(len(texts))]


def test_n_texts_are_those_of_num_return_sequences(client: Client, tales: GPT2) -> None:
    prompts = [PROMPT, "The fox"]
    answer = client.complete(prompt=prompts, n=3, max_tokens=6, seed=[5, 6], temperature=0.9).json
    wanted = tales.complete(
        prompts, num_return_sequences=3, max_new_tokens=6, seed=[5, 6], temperature=0.9
    )
    texts = [c.text for group in wanted for c in group]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert len({*texts}) == 6
    assert [choice["index"] for choice in answer["choices"]] == [*range(6)]
    assert [choice["seed"] for choice in answer["choices"]] == [5, 5, 5, 6, 6, 6]
    assert answer["usage"]["completion_tokens"] == sum(len(c.ids) for g in wanted for c in g)


def test_greedy_texts_of_n_are_equal(client: Client) -> None:
    choices = client.complete(prompt=PROMPT, n=3, max_tokens=4, temperature=0).json["choices"]
    assert len({choice["text"] for choice in choices}) == 1
    assert [choice["index"] for choice in choices] == [0, 1, 2]


def test_best_of_keeps_the_highest_mean_logprob(client: Client, tales: GPT2) -> None:
    answer = client.complete(prompt=PROMPT, n=2, best_of=5, max_tokens=6, seed=3).json
    drawn = tales.complete(
        PROMPT, num_return_sequences=5, max_new_tokens=6, seed=3, temperature=1.0, logprobs=0
    )
    best = sorted(drawn, key=lambda c: -np.mean(c.logprobs))[:2]
    assert [choice["text"] for choice in answer["choices"]] == [c.text for c in best]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["logprobs"] is None


def test_a_random_seed_is_reported_and_gives_the_same_bytes(client: Client) -> None:
    given = {"prompt": [PROMPT, PROMPT], "max_tokens": 10, "logprobs": 2}
    first = client.complete(**given)
    seeds = [choice["seed"] for choice in first.json["choices"]]
    assert seeds[0] != seeds[1]
    again = client.complete(**given, seed=seeds)
    assert without_id(again) == without_id(first)
    raw = [
        a.body.replace(a.json["id"].encode(), b"").replace(str(a.json["created"]).encode(), b"")
        for a in (first, again)
    ]
    assert raw[0] == raw[1]
    other = client.complete(**given).json["choices"]
    assert [choice["seed"] for choice in other] != seeds


def test_the_server_may_have_a_fixed_seed(tales: GPT2) -> None:
    client = Client(service_of(tales, seed=11))
    choice = client.complete(prompt=PROMPT, max_tokens=10).json["choices"][0]
    assert choice["seed"] == 11
    wanted = tales.complete(PROMPT, max_new_tokens=10, temperature=1.0, seed=11)
    assert choice["text"] == wanted.text


# ---- log-probabilities ----


def test_logprobs_are_those_of_complete(client: Client, tales: GPT2) -> None:
    answer = client.complete(prompt=PROMPT, max_tokens=8, logprobs=3, **SAMPLED).json
    wanted = tales.complete(PROMPT, max_new_tokens=8, logprobs=3, **SAMPLED)
    found = answer["choices"][0]["logprobs"]
    names, logprobs, offsets = expected_logprobs(tales, wanted.ids, wanted.logprobs, 0)
    assert found["tokens"] == names
    assert found["token_logprobs"] == logprobs
    assert found["text_offset"] == offsets
    for row, top, name, logprob in zip(
        found["top_logprobs"], wanted.top_logprobs, names, logprobs, strict=True
    ):
        expected = {tales.tokenizer.decode([id]): p for id, p in top.items()} | {name: logprob}
        assert row == expected
        assert 3 <= len(row) <= 4


def test_echo_scores_the_prompt(client: Client, tales: GPT2) -> None:
    for max_tokens in (0, 1, 5):
        answer = client.complete(
            prompt=PROMPT, max_tokens=max_tokens, echo=True, logprobs=2, temperature=0
        ).json
        wanted = tales.complete(PROMPT, max_new_tokens=max_tokens, echo=True, logprobs=2)
        (choice,) = answer["choices"]
        assert choice["text"] == PROMPT + (wanted.text or "")
        found = choice["logprobs"]
        ids = [*tales.tokenizer.encode(PROMPT), *wanted.ids]
        logprobs = [*wanted.prompt_logprobs, *wanted.logprobs]
        names, logprobs, offsets = expected_logprobs(tales, ids, logprobs, 0)
        assert (found["tokens"], found["text_offset"]) == (names, offsets)
        assert found["token_logprobs"] == logprobs
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        tops = [*wanted.prompt_top_logprobs, *wanted.top_logprobs][1:]
        for row, top, name, p in zip(
            found["top_logprobs"][1:], tops, names[1:], logprobs[1:], strict=True
        ):
            assert row == {tales.tokenizer.decode([id]): q for id, q in top.items()} | {name: p}
        for offset, end, name in zip(offsets, [*offsets[1:], None], names, strict=True):
            assert choice["text"][offset:end] == name
        assert answer["usage"]["completion_tokens"] == max_tokens


def test_parts_of_characters_have_names_that_differ(client: Client, tales: GPT2) -> None:
    text = "a \N{SNOWMAN}\N{GRINNING FACE}b"
    ids = tales.tokenizer.encode(text)
    parts = [tales.tokenizer.token_bytes(id) for id in ids]
    assert sum(not part.isascii() for part in parts) >= 4
    answer = client.complete(prompt=text, max_tokens=0, echo=True, logprobs=20).json
    found = answer["choices"][0]["logprobs"]
    names, _, offsets = expected_logprobs(tales, ids, [math.nan] * len(ids), 0)
    assert found["tokens"] == names
    assert sum(name.startswith("bytes:\\x") for name in names) >= 4
    assert found["text_offset"] == offsets
    assert answer["choices"][0]["text"] == text
    assert all(20 <= len(row) <= 21 for row in found["top_logprobs"][1:])


def test_tokens_may_be_named_by_their_ids(client: Client, tales: GPT2) -> None:
    answer = client.complete(
        prompt=PROMPT, max_tokens=3, logprobs=1, temperature=0,
        return_tokens_as_token_ids=True, return_token_ids=True,
    ).json  # fmt: skip
    wanted = tales.complete(PROMPT, max_new_tokens=3)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == wanted.ids
    assert choice["prompt_token_ids"] == tales.tokenizer.encode(PROMPT)
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in wanted.ids]


def test_the_token_that_ends_a_text_is_scored(random_client: Client) -> None:
    """OpenAI's lists of tokens include it, and lm-eval drops the last token of the lists."""
    model = random_client.service.models.get(None).model
    n_ended = 0
    for first in range(12):
        answer = random_client.complete(
            prompt=[first], max_tokens=23, logprobs=2, echo=True, temperature=1, seed=first
        ).json
        wanted = model.complete([first], max_new_tokens=23, temperature=1.0, seed=first)
        (choice,) = answer["choices"]
        ids = [first, *wanted.ids]
        if wanted.end_id is not None:
            n_ended += 1
            ids.append(wanted.end_id)
            assert choice["finish_reason"] == "stop"
        score = model.score(ids, top_logprobs=2)
        assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in ids]
        scored = score.logprobs[1:].tolist()
        if model.backend == "numpy":  # it promises no bits; float32 logits are within 1e-5
            scored = pytest.approx(scored, abs=1e-4)
        assert choice["logprobs"]["token_logprobs"][1:] == scored
        assert answer["usage"]["completion_tokens"] == len(ids) - 1
    assert n_ended >= 3


def test_minus_infinity_is_written_as_vllm_writes_it() -> None:
    config = config_of()
    weights = random_weights(config)
    model = model_on("numpy", config, weights)
    client = Client(service_of(model))
    impossible = Completion(None, [3], "length", None, logprobs=[-math.inf], top_logprobs=[{}])

    service = client.service
    service.models.get(None).scheduler.add = lambda *_, **__: Stub(impossible)  # type: ignore
    answer = client.complete(prompt=[1], logprobs=0, max_tokens=1).json
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"token_id:3": -9999.0}]


class Stub:
    """A handle whose completion is known."""

    n_cached = 0

    def __init__(self, completion: Completion) -> None:
        self.completion, self.times = completion, Times()

    def cancel(self) -> None:
        pass

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.completion


# ---- streams ----


def joined(events: list[Any], index: int) -> tuple[str, dict[str, list[Any]], list[str]]:
    """Return the text, the logprobs and the finish reasons of a choice of a stream."""
    choices = [c for e in events for c in e["choices"] if c["index"] == index]
    logprobs: dict[str, list[Any]] = {}
    for choice in choices:
        for name, values in (choice["logprobs"] or {}).items():
            logprobs.setdefault(name, []).extend(values)
    reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
    return "".join(c["text"] for c in choices), logprobs, reasons


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": PROMPT},
        {"prompt": PROMPT, "logprobs": 2},
        {"prompt": PROMPT, "logprobs": 2, "echo": True},
        {"prompt": PROMPT, "echo": True, "max_tokens": 0, "logprobs": 1},
        {"prompt": [PROMPT, "The"], "n": 2},
        {"prompt": PROMPT, "stop": [" the", "and a"]},
        {"prompt": "\N{SNOWMAN}" * 3, "logprobs": 1, "temperature": 2.5},
        {"prompt": [[464], [464, 4]], "n": 2, "return_token_ids": True},
        {"prompt": PROMPT, "temperature": 0, "n": 2},
    ],
)
def test_a_stream_has_the_parts_of_the_whole_answer(client: Client, fields: Any) -> None:
    given = {"max_tokens": 14, "temperature": 0.9, "seed": 5, **fields}
    whole = client.complete(**given).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = client.complete(**given, **options)
    *events, last = streamed.events
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(e["usage"] is None for e in events)
    assert len({(e["id"], e["created"], e["model"]) for e in events}) == 1
    for choice in whole["choices"]:
        text, logprobs, reasons = joined(events, choice["index"])
        assert text == choice["text"]
        assert reasons == [choice["finish_reason"]]
        if choice["logprobs"] is not None:
            assert logprobs == choice["logprobs"]
    if given["max_tokens"]:
        assert len(events) > 5
    again = client.complete(**given, **options)
    strip = [{**e, "id": "", "created": 0} for e in again.events]
    assert strip == [{**e, "id": "", "created": 0} for e in streamed.events]


def test_a_stream_has_no_usage_unless_asked(client: Client) -> None:
    events = client.complete(prompt=PROMPT, stream=True, max_tokens=3).events
    assert all("usage" not in event for event in events)


def test_an_error_before_the_first_event_has_its_status(client: Client) -> None:
    answer = client.post("/v1/completions", prompt="a " * 2000, stream=True)
    assert answer.status == 400
    assert answer.error["code"] == "context_length_exceeded"


# ---- prompts ----


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    client: Client, tales: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    tokenizer = tales.tokenizer
    encode = type(tokenizer).encode
    monkeypatch.setattr(
        type(tokenizer),
        "encode",
        lambda self, text, **o: encoded.append(1) or encode(self, text, **o),
    )
    longest = max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.n_vocab))
    long = "x" * (tales.config.n_positions * longest + 1)
    answer = client.post("/v1/completions", prompt=long)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert not encoded
    for prompt in ("a " * 2000, [1] * (tales.config.n_positions + 1)):
        answer = client.post("/v1/completions", prompt=prompt)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert str(tales.config.n_positions) in answer.error["message"]


def test_prompts_are_truncated_at_either_end(client: Client, tales: GPT2) -> None:
    ids = tales.tokenizer.encode(PROMPT)
    for side, kept in (("left", ids[-4:]), ("right", ids[:4])):
        answer = client.complete(
            prompt=PROMPT, truncate_prompt_tokens=4, truncation_side=side, max_tokens=3,
            temperature=0, echo=True, return_token_ids=True,
        ).json  # fmt: skip
        assert answer["choices"][0]["prompt_token_ids"] == kept
        wanted = tales.complete(kept, max_new_tokens=3)
        assert answer["choices"][0]["token_ids"] == wanted.ids
        assert answer["choices"][0]["text"] == tales.tokenizer.decode([*kept, *wanted.ids])


def test_names_of_special_tokens_are_tokens_or_text(tales: GPT2) -> None:
    prompt = "One<|endoftext|>Two"
    as_token = tales.tokenizer.encode(prompt)
    as_text = tales.tokenizer.encode(prompt, special=False)
    assert as_token != as_text
    for allowed, asked, wanted in (
        (True, None, as_token),
        (True, True, as_token),
        (True, False, as_text),
        (False, None, as_text),
        (False, True, as_text),
    ):
        client = Client(service_of(tales, parses_special=allowed))
        answer = client.complete(
            prompt=prompt, parse_special=asked, max_tokens=0, return_token_ids=True
        ).json
        assert answer["choices"][0]["prompt_token_ids"] == wanted


def test_an_empty_prompt_begins_at_the_start_token(client: Client, tales: GPT2) -> None:
    for prompt in ("", [[]]):
        answer = client.complete(prompt=prompt, max_tokens=5, temperature=0, logprobs=0, echo=True)
        wanted = tales.complete("", max_new_tokens=5, logprobs=0)
        (choice,) = answer.json["choices"]
        assert choice["text"] == wanted.text
        assert choice["logprobs"]["token_logprobs"] == wanted.logprobs
        assert answer.json["usage"]["prompt_tokens"] == 0


def test_allowed_tokens_and_eos(random_client: Client) -> None:
    model = random_client.service.models.get(None).model
    answer = random_client.complete(prompt=[1], allowed_token_ids=[3, 5], max_tokens=9, seed=1).json
    assert set(answer["choices"][0]["token_ids"]) <= {3, 5}
    refused = random_client.post("/v1/completions", prompt=[1], allowed_token_ids=[50])
    assert refused.error["param"] == "allowed_token_ids"
    answer = random_client.complete(prompt=[1], ignore_eos=True, max_tokens=23, seed=2).json
    wanted = model.complete([1], suppress_tokens=[7], max_new_tokens=23, seed=2, temperature=1.0)
    assert answer["choices"][0]["token_ids"] == wanted.ids
    assert answer["choices"][0]["finish_reason"] == "length"
    text = random_client.post("/v1/completions", prompt="a")
    assert text.status == 400
    assert text.error["code"] == "no_tokenizer"


# ---- clients that leave, and limits ----


def slow_client(n_positions: int = 4096, **limits: Any) -> Client:
    config = config_of(n_positions=n_positions, n_embd=128, n_head=2, n_layer=8)
    model = model_on(BACKENDS[-1], config, random_weights(config))
    return Client(service_of(model, limits=Limits(**limits)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(stream: bool) -> None:
    client = slow_client()
    served = client.service.models.get(None)
    body = json.dumps(
        {"prompt": [1], "max_tokens": 4000, "stream": stream, "n": 2, "seed": 1}
    ).encode()

    def leaves(answer: Answer) -> bool:
        return bool(answer.parts) if stream else served.scheduler.n_running > 0

    began = time.monotonic()
    answer = asyncio.run(ask_async(client.app, "POST", "/v1/completions", body, leaves=leaves))
    assert b"[DONE]" not in answer.body
    while served.scheduler.n_running or served.model.kv_cache_bytes:
        assert time.monotonic() < began + 20
        time.sleep(0.01)
    assert b"gpt2c:disconnects_total 1.0" in client.get("/metrics").body


def test_requests_beyond_the_queue_get_a_429() -> None:
    client = slow_client(max_running=2, max_queued=1)

    async def ask(n: int, **leave: Any) -> Answer:
        body = json.dumps({"prompt": [1], "n": n, "seed": 1, "max_tokens": 3000}).encode()
        return await ask_async(client.app, "POST", "/v1/completions", body, **leave)

    async def both() -> Answer:
        done = asyncio.Event()
        first = asyncio.create_task(ask(2, leaves=lambda _: done.is_set()))
        await asyncio.sleep(0.05)
        refused = await ask(2)
        done.set()
        await first
        return refused

    refused = asyncio.run(both())
    assert (refused.status, refused.error["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    too_many = asyncio.run(ask(4))
    assert (too_many.status, too_many.error["code"]) == (400, "too_many_texts")


def test_a_time_limit_ends_a_text() -> None:
    client = slow_client(request_seconds=0.3)
    choice = client.complete(prompt=[1], max_tokens=4000, temperature=0).json["choices"][0]
    assert choice["finish_reason"] == "time"
    assert 0 < len(choice["token_ids"]) < 4000


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_may_cut_its_text_at_any_time(stream: bool) -> None:
    """Also before the first token: then the text is empty, and no error."""
    client = slow_client()
    options = {"stream_options": {"include_usage": True}} if stream else {}
    for ms in (1, 200):
        answer = client.complete(
            prompt=[1] * 3000, max_tokens=1000, t_max_predict_ms=ms, stream=stream, **options
        )
        if stream:
            *_, last, usage = answer.events
            (choice,), n_new = last["choices"], usage["usage"]["completion_tokens"]
        else:
            (choice,), n_new = answer.json["choices"], answer.json["usage"]["completion_tokens"]
        assert choice["finish_reason"] == "time"
        assert n_new < 1000


def test_a_request_that_waits_too_long_gets_a_503() -> None:
    client = slow_client(request_seconds=10)
    waited = Completion(None, [], "time", None)
    client.service.models.get(None).scheduler.add = lambda *_, **__: Stub(waited)  # type: ignore
    for ms, status in ((None, 503), (20_000, 503), (10_000, 503), (9_999, 200)):
        answer = client.post("/v1/completions", prompt=[1], t_max_predict_ms=ms)
        assert answer.status == status
        if status == 503:
            assert answer.error["code"] == "queue_time"


def test_many_requests_at_once_have_the_bits_of_each_alone(client: Client, tales: GPT2) -> None:
    bodies = [
        {
            "prompt": f"Once upon a time the {word} {i}", "max_tokens": 4 + i, "seed": i,
            "temperature": 0.8 if i % 3 else 0, "logprobs": i % 4, "echo": i % 2 == 0,
            "stream": i % 5 == 0,
        }
        for i, word in enumerate(["king", "fox", "mill", "bread"] * 4)
    ]  # fmt: skip

    async def all_at_once() -> list[Answer]:
        asks = (
            ask_async(client.app, "POST", "/v1/completions", json.dumps(b).encode()) for b in bodies
        )
        return await asyncio.gather(*asks)

    for body, answer in zip(bodies, asyncio.run(all_at_once()), strict=True):
        wanted = tales.complete(
            body["prompt"], max_new_tokens=body["max_tokens"], seed=body["seed"],
            temperature=body["temperature"], logprobs=body["logprobs"], echo=body["echo"],
        )  # fmt: skip
        if body["stream"]:
            text, found, _ = joined(answer.events, 0)
        else:
            (choice,) = answer.json["choices"]
            text, found = choice["text"], choice["logprobs"]
        before = body["prompt"] if body["echo"] else ""
        assert text == before + wanted.text
        scores = [*(wanted.prompt_logprobs or []), *wanted.logprobs]
        assert found["token_logprobs"] == [None if math.isnan(p) else p for p in scores]


def test_a_long_answer_is_that_of_complete(client: Client, tales: GPT2) -> None:
    """It is written in a thread, choice by choice."""
    given = {"prompt": PROMPT, "n": 8, "max_tokens": 60, "logprobs": 20, "echo": True, "seed": 1}
    found = client.complete(**given).json["choices"]
    wanted = tales.complete(
        PROMPT, num_return_sequences=8, max_new_tokens=60, temperature=1.0, logprobs=20, seed=1
    )
    assert [c["text"] for c in found] == [PROMPT + c.text for c in wanted]
    for choice, completion in zip(found, wanted, strict=True):
        assert choice["logprobs"]["token_logprobs"][-60:] == completion.logprobs


def test_the_numpy_backend_serves_too() -> None:
    model = load(TINY)
    client = Client(service_of(model))
    answer = client.complete(prompt=[1, 2, 0], max_tokens=4, temperature=0, logprobs=1).json
    wanted = model.complete([1, 2, 0], max_new_tokens=4, logprobs=1)
    assert answer["choices"][0]["logprobs"]["token_logprobs"][: len(wanted.ids)] == wanted.logprobs
    assert "numpy" in answer["system_fingerprint"]
