"""The server's other endpoints, its errors, who may ask, and the limits of HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cases, config_of, model_on, random_weights, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Answer, Client, ask_async, service_of

import gpt2c
from gpt2c import GPT2
from gpt2c.serve.admission import _groups
from gpt2c.serve.limits import Limits
from gpt2c.serve.metrics import Metrics
from gpt2c.serve.models import Models, ModelSource
from gpt2c.serve.security import Access, key_digests
from gpt2c.serve.server import Address

KEYS = ("first-secret-key", "second-secret-key")


def small_model() -> GPT2:
    config = config_of(eos_token_id=7)
    return model_on("numpy", config, random_weights(config))


@pytest.fixture(scope="module")
def client(tales: GPT2) -> Client:
    return Client(
        service_of({"tales": tales, "small": small_model()}, aliases={"tales": ["gpt-2", "x/y"]})
    )


def guarded(tales: GPT2, **access: Any) -> Client:
    return Client(service_of(tales, access=Access(**access)))


# ---- models, health, version, metrics ----


def test_models_and_their_aliases_are_listed(client: Client, tales: GPT2) -> None:
    listed = client.get("/v1/models").json
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["tales", "gpt-2", "x/y", "small"]
    assert [m["root"] for m in listed["data"]] == ["tales", "tales", "tales", "small"]
    assert listed["data"][0]["max_model_len"] == tales.config.n_positions
    assert listed["data"][0]["dtype"] == "float32"
    assert client.get("/v1/models/x/y").json == listed["data"][2]
    answer = client.get("/v1/models/other")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_a_request_names_its_model(client: Client, tales: GPT2) -> None:
    for name, model in ((None, "tales"), ("gpt-2", "tales"), ("small", "small")):
        answer = client.complete(model=name, prompt=[1, 2], max_tokens=2, temperature=0).json
        assert answer["model"] == model
    answer = client.post("/v1/completions", model="gpt-4", prompt="a")
    assert (answer.status, answer.error["param"]) == (404, "model")
    assert "tales" in answer.error["message"]


def test_health_is_503_until_the_models_are_loaded_and_while_the_server_stops() -> None:
    models = Models([ModelSource("small", None)], Limits())
    client = Client(service_of(small_model()))
    client.service.models.is_ready = False
    for path in ("/health", "/v1/models", "/tokenizer_info"):
        answer = client.get(path)
        assert (answer.status, answer.error["code"]) == (503, "loading")
        assert int(answer.headers["retry-after"]) >= 1
    assert client.post("/v1/completions", prompt=[1]).status == 503
    client.service.models.is_ready = True
    assert client.get("/health").json == {"status": "ok"}
    client.service.models.is_stopping = True
    assert client.get("/health").error["code"] == "stopping"
    models.load(lambda path, **options: small_model())
    assert models.is_ready
    models.close()


def test_two_models_cannot_have_one_name() -> None:
    with pytest.raises(gpt2c.OptionError, match="two models"):
        Models([ModelSource("a", None), ModelSource("b", None, ("a",))], Limits())


def test_version(client: Client) -> None:
    assert client.get("/version").json == {
        "version": gpt2c.__version__, "arithmetic": gpt2c.ARITHMETIC,
    }  # fmt: skip


def metric(client: Client, name: str, **labels: str) -> float:
    text = client.get("/metrics").body.decode()
    shown = sorted(f'{key}="{value}"' for key, value in labels.items())
    found = re.findall(rf"^{re.escape(name)}(?:{{(.*)}})? (.*)$", text, flags=re.MULTILINE)
    values = [float(v) for given, v in found if sorted(given.split(",")) == shown]
    assert len(values) == 1, (name, labels, found)
    return values[0]


def test_metrics_count_what_runs(tales: GPT2) -> None:
    client = Client(service_of({"tales": tales}))
    name = {"model_name": "tales"}
    n_prompt = len(tales.tokenizer.encode("One two three"))
    client.complete(prompt="One two three", max_tokens=5, n=2, temperature=0)
    client.complete(prompt="One two three", max_tokens=4, temperature=0, stream=True)
    client.post("/v1/completions", prompt=3)
    assert metric(client, "vllm:prompt_tokens_total", **name) == 2 * n_prompt
    assert metric(client, "vllm:generation_tokens_total", **name) == 2 * 5 + 4
    assert metric(client, "vllm:request_success_total", finished_reason="length", **name) == 3
    assert metric(client, "vllm:num_requests_running", **name) == 0
    assert metric(client, "vllm:num_requests_waiting", **name) == 0
    # The two greedy texts of the first request are one.
    for times in ("time_to_first_token", "request_queue_time", "request_prefill_time",
                  "request_decode_time", "request_inference_time"):  # fmt: skip
        assert metric(client, f"vllm:{times}_seconds_count", **name) == 2
    assert metric(client, "vllm:inter_token_latency_seconds_count", **name) == 4 + 3
    assert metric(client, "vllm:e2e_request_latency_seconds_count", **name) == 2
    assert metric(client, "vllm:request_params_n_sum", **name) == 3
    assert metric(client, "gpt2c:errors_total", status="400") == 1
    assert 0 <= metric(client, "vllm:kv_cache_usage_perc", **name) <= 1
    assert metric(client, "gpt2c:weights_bytes", **name) == tales.n_bytes


def test_a_server_may_draft_no_tokens(tales: GPT2) -> None:
    counts, texts = {}, set()
    for draft in ("lookup", None):
        service = service_of({"tales": tales})
        service.models.get(None).draft = draft
        client = Client(service)
        prompt = "the cat and the dog and the cat and the dog and the cat and the"
        texts.add(
            client.complete(prompt=prompt, max_tokens=40, temperature=0).json["choices"][0]["text"]
        )
        counts[draft] = metric(client, "gpt2c:drafted_tokens_total", model_name="tales")
    assert counts["lookup"] > 0
    assert counts[None] == 0
    assert len(texts) == 1


def test_metrics_count_tokens_of_the_prefix_cache() -> None:
    config = config_of(n_positions=64)
    weights = random_weights(config)
    name = {"model_name": "tiny"}
    prompt = [1 + i % 30 for i in range(40)]
    for n_bytes, n_hits in ((1 << 20, 39), (0, 0)):
        model = model_on("numpy", config, weights, prefix_cache_bytes=n_bytes)
        client = Client(service_of(model))
        for stream in (False, True):
            client.complete(prompt=prompt, max_tokens=2, temperature=0, stream=stream)
        assert metric(client, "vllm:prefix_cache_queries_total", **name) == 80
        assert metric(client, "vllm:prefix_cache_hits_total", **name) == n_hits


def test_a_histogram_is_prometheus_clients() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    values = [0.0, 0.25, 0.26171875, 3.0, 600.0, 601.0]  # exact in binary
    ours = Metrics()
    ours.first_token.observe("a", *values[:4])
    ours.first_token.observe("a", *values[4:])
    registry = prometheus.CollectorRegistry()
    wanted = prometheus.Histogram(
        "vllm:time_to_first_token_seconds", "From a request to a text's first token",
        ["model_name"], buckets=ours.first_token._bounds.tolist(), registry=registry,
    )  # fmt: skip
    for value in values:
        wanted.labels("a").observe(value)
    lines = prometheus.generate_latest(registry).decode().splitlines()
    lines = [line for line in lines if "_created" not in line]  # the time of the first value
    assert set(lines) <= set(ours.text().decode().splitlines())
    assert len(lines) == 2 + 18 + 2


def test_a_request_id_is_returned(client: Client) -> None:
    answer = client.ask(
        "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "r-1"}
    )
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.json["id"] == "cmpl-r-1"
    named = client.complete(prompt="a", max_tokens=1, request_id="mine")
    assert named.json["id"] == "cmpl-mine"
    for wrong in ("a b", "x" * 101, "\x1b[31m"):
        answer = client.get("/health", headers={"X-Request-Id": wrong})
        assert answer.headers["x-request-id"] != wrong
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_chat_is_refused_with_what_to_call_instead(client: Client) -> None:
    answer = client.post("/v1/chat/completions", model="x", messages=[])
    assert answer.status == 400
    assert "/v1/completions" in answer.error["message"]


def test_unknown_paths_and_methods(client: Client) -> None:
    assert client.get("/nothing").error["code"] == "path"
    answer = client.get("/v1/completions")
    assert (answer.status, answer.error["code"]) == (405, "method")


def test_a_root_path_is_a_prefix_of_all_paths(tales: GPT2) -> None:
    client = Client(service_of(tales, root_path="/gpt", access=Access(key_digests(None, KEYS[0]))))
    assert client.get("/gpt/health").status == 200
    assert client.get("/gpt/version").status == 401
    assert client.get("/health").status in (401, 404)
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    body = {"prompt": "a", "max_tokens": 1}
    assert client.ask("POST", "/gpt/v1/completions", body, headers=headers).status == 200


# ---- tokens, scores, embeddings ----


def test_tokenize_and_detokenize(client: Client, tales: GPT2) -> None:
    text = "One<|endoftext|>\N{SNOWMAN}"
    ids = tales.tokenizer.encode(text)
    found = client.post("/tokenize", prompt=text, return_token_strs=True).json
    assert found["tokens"] == ids
    assert found["count"] == len(ids)
    assert found["max_model_len"] == tales.config.n_positions
    assert found["token_strs"] == [tales.tokenizer.decode([id]) for id in ids]
    plain = client.post("/tokenize", prompt=text, parse_special=False).json["tokens"]
    assert plain == tales.tokenizer.encode(text, special=False)
    assert client.post("/detokenize", tokens=ids).json == {"prompt": text}
    for path, fields in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": ["a"]}),
        ("/tokenize", {"model": "small", "prompt": "a"}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": "a"}),
        ("/detokenize", {}),
    ):
        assert client.post(path, fields).status == 400, (path, fields)


def test_tokenizer_info_is_what_lm_eval_asks(client: Client, tales: GPT2) -> None:
    info = client.get("/tokenizer_info").json
    assert info["eos_token"] == "<|endoftext|>"
    assert client.post("/tokenize", prompt=info["eos_token"]).json["tokens"] == [
        info["eos_token_id"]
    ]
    assert info["chat_template"] is None


def test_score_gives_the_scores_of_the_model(client: Client, tales: GPT2) -> None:
    contexts, ends = ["Once upon a", "The"], [" time", " king of"]
    wanted = tales.score(contexts, ends, top_logprobs=2)
    answer = client.post("/score", context=contexts, continuation=ends, logprobs=2).json
    for index, (found, score) in enumerate(zip(answer["data"], wanted, strict=True)):
        assert found["index"] == index
        assert found["score"] == score.total
        assert found["is_greedy"] == bool(score.is_arg_max.all())
        assert found["token_ids"] == score.ids.tolist()
        assert found["ranks"] == score.ranks.tolist()
        assert found["logprobs"]["token_logprobs"] == score.logprobs.tolist()
    one = client.post("/score", context="Once upon a", continuation=ends).json["data"]
    assert [d["score"] for d in one] == [s.total for s in tales.score("Once upon a", ends)]
    for fields in (
        {"context": "a"},
        {"context": ["a"] * 2, "continuation": ["b"] * 3},
        {"context": "a " * 400, "continuation": "b " * 400},
        {"context": "a", "continuation": []},
    ):
        assert client.post("/score", fields).status == 400


def test_embeddings_are_those_of_the_model(client: Client, tales: GPT2) -> None:
    texts = ["Once upon a time", "The king"]
    wanted = tales.embed(texts)
    answer = client.post("/v1/embeddings", input=texts, model="tales").json
    found = [d["embedding"] for d in answer["data"]]
    assert np.array_equal(np.array(found, dtype=np.float32), wanted)
    coded = client.post("/v1/embeddings", input=texts, encoding_format="base64").json["data"]
    raw = [np.frombuffer(base64.b64decode(d["embedding"]), dtype="<f4") for d in coded]
    assert np.array_equal(np.array(raw), wanted)
    assert client.post("/v1/embeddings", input="a", dimensions=3).error["param"] == "dimensions"
    assert client.post("/v1/embeddings", input=["a", ""]).status == 400


def test_special_tokens_are_text_where_the_server_says_so(tales: GPT2) -> None:
    text = "One<|endoftext|>"
    for allowed in (True, False):
        client = Client(service_of(tales, parses_special=allowed))
        n = len(tales.tokenizer.encode(text, special=allowed))
        for path, fields in (
            ("/v1/embeddings", {"input": text}),
            ("/score", {"context": [[]], "continuation": text}),
        ):
            answer = client.post(path, {**fields, "parse_special": True})
            assert answer.json["usage"]["prompt_tokens"] == n


def test_scored_tokens_are_limited(tales: GPT2) -> None:
    client = Client(service_of(tales, limits=Limits(max_scored_tokens=10)))
    for path, body in (
        ("/score", {"context": [1] * 5, "continuation": [1] * 5}),
        ("/v1/embeddings", {"input": [[1] * 5] * 2}),
        ("/v1/completions", {"prompt": [[1] * 5] * 2, "echo": True, "logprobs": 0}),
    ):
        assert client.post(path, body).status == 200
        body = {
            name: value * 2 if isinstance(value, list) else value for name, value in body.items()
        }
        answer = client.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "too_many_tokens")


SCORED = (
    ("/score", "score",
     {"context": [[i] * 400 for i in range(20)], "continuation": [[2] * 100] * 20}),
    ("/v1/embeddings", "embed", {"input": [[i] * 500 for i in range(20)]}),
    ("/v1/completions", "score",
     {"prompt": [[i] * 500 for i in range(20)], "echo": True, "logprobs": 0, "max_tokens": 0}),
)  # fmt: skip


@pytest.mark.parametrize(("path", "method", "body"), SCORED)
def test_a_client_that_leaves_ends_its_scores(
    tales: GPT2, monkeypatch: pytest.MonkeyPatch, path: str, method: str, body: dict[str, Any]
) -> None:
    client, n_calls = Client(service_of(tales)), []
    call = getattr(GPT2, method)

    def spy(self: GPT2, *arguments: Any, **options: Any) -> Any:
        n_calls.append(1)
        return call(self, *arguments, **options)

    monkeypatch.setattr(GPT2, method, spy)
    raw = json.dumps(body).encode()
    asyncio.run(ask_async(client.app, "POST", path, raw, leaves=lambda _: bool(n_calls)))
    assert len(n_calls) <= 2  # of 5 or more
    wait_until(lambda: client.service.admission.is_idle)
    assert client.post(path, body).status == 200
    assert len(n_calls) >= 6


@pytest.mark.parametrize(("path", "method", "body"), SCORED)
def test_scores_have_a_time_limit(
    tales: GPT2, monkeypatch: pytest.MonkeyPatch, path: str, method: str, body: dict[str, Any]
) -> None:
    client = Client(service_of(tales, limits=Limits(request_seconds=0.05)))
    monkeypatch.setattr(GPT2, method, lambda *_, **__: time.sleep(0.2))
    answer = client.post(path, body)
    assert (answer.status, answer.error["code"]) == (503, "request_time")
    assert "retry-after" in answer.headers
    assert client.service.admission.is_idle


def test_other_requests_go_on_while_texts_are_scored(
    tales: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of more than 4,096 characters is encoded in a thread."""
    client, may_end = Client(service_of(tales, limits=Limits(max_scoring=20))), threading.Event()
    monkeypatch.setattr(GPT2, "embed", lambda self, texts: may_end.wait() and np.zeros((1, 2)))
    embed = json.dumps({"input": [1]}).encode()
    body = {"prompt": "a" * 5000, "truncate_prompt_tokens": 5, "max_tokens": 2}

    async def all_at_once() -> Answer:
        asks = [
            asyncio.create_task(ask_async(client.app, "POST", "/v1/embeddings", embed))
            for _ in range(20)
        ]
        await asyncio.sleep(0.05)
        refused = await ask_async(client.app, "POST", "/v1/embeddings", embed)
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        try:
            return await ask_async(client.app, "POST", "/v1/completions", json.dumps(body).encode())
        finally:
            may_end.set()
            await asyncio.gather(*asks)

    assert asyncio.run(all_at_once()).status == 200


def test_requests_are_scored_in_groups() -> None:
    shared, other = [1] * 600, [2] * 600
    contexts = [shared] * 5 + [other] * 2
    ends = [[3] * 100] * 7
    assert [*_groups(contexts, ends)] == [slice(0, 5), slice(5, 7)]
    assert [*_groups(contexts, None)] == [slice(0, 6), slice(6, 7)]
    assert [*_groups([], None)] == []
    assert [*_groups([[1] * 5000, [1]], None)] == [slice(0, 1), slice(1, 2)]


# ---- who may ask ----


def test_keys_are_needed_everywhere_but_for_health(tales: GPT2) -> None:
    client = guarded(tales, key_digests=key_digests(None, ",".join(KEYS)))
    assert client.get("/health").status == 200
    for path in ("/v1/models", "/metrics", "/version", "/nothing"):
        answer = client.get(path)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for key in KEYS:
        for headers in (
            {"Authorization": f"Bearer {key}"},
            {"authorization": f"bearer  {key} "},
            {"X-Api-Key": key},
        ):
            assert client.get("/version", headers=headers).status == 200
    for wrong in (KEYS[0][:-1], KEYS[0] + "x", "", "\xff", ",".join(KEYS)):
        answer = client.get("/version", headers={"Authorization": f"Bearer {wrong}"})
        assert answer.status == 401
        assert not any(key.encode() in answer.body for key in KEYS)
    assert client.get("/version", headers={"Authorization": f"Basic {KEYS[0]}"}).status == 401


def test_each_key_has_its_own_space_of_the_prefix_cache(
    tales: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = guarded(tales, key_digests=key_digests(None, ",".join(KEYS)))
    scheduler = client.service.models.get(None).scheduler
    spaces, add = [], scheduler.add

    def spy(*arguments: Any, **options: Any) -> Any:
        spaces.append(options["cache_space"])
        return add(*arguments, **options)

    monkeypatch.setattr(scheduler, "add", spy)
    body = {"prompt": "a", "max_tokens": 1}
    for key in (KEYS[0], KEYS[1], KEYS[0]):
        headers = {"X-Api-Key": key}
        assert client.ask("POST", "/v1/completions", body, headers=headers).status == 200
    assert spaces == [1, 2, 1]


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# two keys\n\n{KEYS[0]}\n  {KEYS[1]}  \n")
    assert key_digests(str(file), None) == key_digests(None, ",".join(KEYS))
    for text, named in (
        ("", "no API key"),
        ("short\n", "line 1"),
        ("a key with spaces\n", "line 1"),
    ):
        file.write_text(text)
        with pytest.raises(gpt2c.OptionError, match=named) as caught:
            key_digests(str(file), None)
        assert not text or text.strip() not in str(caught.value)
    file.write_bytes(b"\xff" * 9)
    with pytest.raises(gpt2c.OptionError, match="UTF-8"):
        key_digests(str(file), None)
    with pytest.raises(FileNotFoundError):
        key_digests(str(tmp_path / "none"), None)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.2", 200),
        ("gpt.example.org:8000", 200),
        ("evil.example.org", 403),
        ("127.0.0.1.evil.example.org", 403),
        ("127.0.0.1@evil.example.org", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_strange_host_is_refused(tales: GPT2, host: str, status: int) -> None:
    client = guarded(tales, hosts=frozenset({"gpt.example.org"}))
    assert client.get("/health", headers={"Host": host}).status == status
    assert guarded(tales, hosts=frozenset("*")).get("/health", headers={"Host": host}).status == 200


def test_web_pages_are_refused_unless_their_origin_is_allowed(tales: GPT2) -> None:
    page = "https://page.example.org"
    client = guarded(tales)
    for origin in (page, "null", "http://127.0.0.1:8000"):
        answer = client.get("/health", headers={"Origin": origin})
        assert (answer.status, answer.error["code"]) == (403, "origin")
        assert "access-control-allow-origin" not in answer.headers
    allowed = guarded(tales, origins=frozenset({page}))
    answer = allowed.get("/health", headers={"Origin": page})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == page
    assert allowed.get("/health", headers={"Origin": "https://other.example"}).status == 403
    preflight = {"Origin": page, "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "content-type"}  # fmt: skip
    assert allowed.ask("OPTIONS", "/v1/completions", headers=preflight).status == 200
    assert client.ask("OPTIONS", "/v1/completions", headers=preflight).status == 403


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ('application/json;charset="utf-8"', 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_a_post_must_be_json(client: Client, content_type: str, status: int) -> None:
    answer = client.ask(
        "POST", "/tokenize", {"prompt": "a"}, headers={"Content-Type": content_type}
    )
    assert answer.status == status


# ---- bodies, errors, the log ----


def test_headers_are_limited(tales: GPT2) -> None:
    client = Client(service_of(tales, limits=Limits(max_header_bytes=2000)))
    assert client.get("/health", headers={"X": "a" * 1800}).status == 200
    answer = client.get("/health", headers={"X": "a" * 2000})
    assert (answer.status, answer.error["code"]) == (431, "header_size")


def test_bodies_are_limited_in_size_and_time(tales: GPT2) -> None:
    client = Client(service_of(tales, limits=Limits(max_body_bytes=100, body_seconds=0.05)))
    for body, headers in (
        (b"x" * 101, {}),
        ([b"x" * 60] * 2, {}),
        (b"{}", {"Content-Length": "101"}),
        (b"{}", {"Content-Length": "9" * 50}),
    ):
        answer = client.ask("POST", "/tokenize", body, headers=headers)
        assert (answer.status, answer.error["code"]) == (413, "body_size")
        assert answer.headers["connection"] == "close"

    async def never_ends() -> Answer:
        answer = Answer()

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            answer.status = message.get("status", answer.status)
            answer.parts.append(message.get("body", b""))

        scope = {
            "type": "http", "method": "POST", "path": "/tokenize", "query_string": b"",
            "root_path": "", "headers": [(b"host", b"localhost"),
                                         (b"content-type", b"application/json")],
        }  # fmt: skip
        await client.app(scope, receive, send)
        return answer

    answer = asyncio.run(never_ends())
    assert (answer.status, answer.error["code"]) == (408, "body_time")


def test_an_unexpected_error_is_a_500_without_its_message(
    tales: GPT2, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(service_of(tales))

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret path")

    monkeypatch.setattr(client.service.models.get(None).scheduler, "add", fail)
    for stream in (False, True):
        answer = client.post("/v1/completions", prompt="a", stream=stream)
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert b"Traceback" not in answer.body
        assert answer.error["type"] == "server_error"
    assert "secret path" in caplog.text


def test_an_error_after_the_first_event_is_an_event(
    tales: GPT2, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(service_of(tales))
    monkeypatch.setattr(client.service.metrics, "count_text", lambda *_: 1 / 0)
    answer = client.post("/v1/completions", prompt="a", stream=True, max_tokens=5)
    assert answer.status == 200
    *_, last = answer.events
    assert last["error"]["type"] == "server_error"
    assert "ZeroDivisionError" in caplog.text
    wait_until(lambda: client.service.models.get(None).scheduler.n_running == 0)


def test_a_lack_of_memory_is_a_503(tales: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(service_of(tales))

    def fail(*_: Any, **__: Any) -> Any:
        raise gpt2c.CacheMemoryError("the KV cache's limit leaves no room")

    monkeypatch.setattr(client.service.models.get(None).scheduler, "add", fail)
    answer = client.post("/v1/completions", prompt="a")
    assert (answer.status, answer.error["code"]) == (503, "out_of_memory")
    assert "retry-after" in answer.headers


HEADERS = st.sampled_from(
    ["Host", "Origin", "Content-Type", "Authorization", "X-Request-Id", "Content-Length", "Expect"]
)
PATHS = st.sampled_from(
    ["/v1/completions", "/score", "/tokenize", "/detokenize", "/v1/embeddings", "/v1/models/x",
     "/tokenizer_info", "/health", "/metrics"]
) | st.text(max_size=9).map(lambda text: "/" + text)  # fmt: skip
BODIES = st.dictionaries(
    st.sampled_from(
        ["prompt", "tokens", "input", "context", "continuation", "model", "max_tokens", "n", "stop"]
    ),
    st.none() | st.integers() | st.floats() | st.text(max_size=9)
    | st.lists(st.integers(0, 5000) | st.text(max_size=3), max_size=3)
    | st.lists(st.lists(st.integers(0, 3)), max_size=3),
    max_size=4,
).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)  # fmt: skip


@settings(max_examples=cases(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "X"]), PATHS, BODIES,
    st.dictionaries(HEADERS, st.text(st.characters(max_codepoint=255), max_size=20), max_size=3),
)  # fmt: skip
def test_any_request_gets_an_answer(
    client: Client, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    answer = client.ask(method, path, body, headers=headers)
    assert answer.status in (200, 400, 401, 403, 404, 405, 413, 415), answer.body
    if answer.status != 200:
        assert answer.error["message"].isprintable()


def test_the_log_escapes_what_clients_send(tales: GPT2, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(service_of(tales, logs_requests=True))
    caplog.set_level(logging.INFO, "gpt2c.serve.app")
    client.get("/a\n\x1b[31mb\N{SNOWMAN}", headers={"X-Request-Id": "id-1"})
    (record,) = caplog.records
    line = record.getMessage()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["path"] == "/a\n\x1b[31mb\N{SNOWMAN}"
    assert json.loads(line)["status"] == 404
    assert json.loads(line)["id"] == "id-1"


def test_a_cancelled_request_gets_a_503(tales: GPT2) -> None:
    """uvicorn cancels requests that still run when the time to drain is over."""
    client = Client(service_of(tales))

    async def cancelled() -> Answer:
        body = json.dumps({"prompt": "a", "max_tokens": 400, "seed": 1}).encode()
        task = asyncio.create_task(ask_async(client.app, "POST", "/v1/completions", body))
        await asyncio.sleep(0.02)
        task.cancel()
        return await task

    answer = asyncio.run(cancelled())
    assert (answer.status, answer.error["code"]) == (503, "stopping")


def test_a_unix_socket_is_only_for_its_user_and_group(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    bound = Address(unix_socket=path).bind()
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660
    bound.listen()
    with pytest.raises(gpt2c.OptionError, match="another server"):
        Address(unix_socket=path).bind()
    bound.close()
    Address(unix_socket=path).bind().close()  # replaces what a dead server left
