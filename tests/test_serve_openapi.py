"""GET /openapi.json and /docs: they say what the server accepts and answers.

tools/ci/serve_clients.sh runs these tests with jsonschema and openapi-spec-validator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from conftest import cases, config_of, model_on, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Client, service_of

from gpt2c import GPT2
from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits
from gpt2c.serve.openapi.endpoints import ENDPOINTS, Endpoint
from gpt2c.serve.security import Access, key_digests

LIMITS = Limits(max_n=8, max_prompts=3, max_prompt_chars=20, max_stops=2, max_items=4)
BODIES = [endpoint for endpoint in ENDPOINTS if endpoint.body is not None]


@pytest.fixture(scope="module")
def client(tales: GPT2) -> Client:
    return Client(service_of({"tales": tales}, aliases={"tales": ["gpt-2"]}))


@pytest.fixture(scope="module")
def document(client: Client) -> Any:
    return client.get("/openapi.json").json


def all_of(value: Any) -> Iterator[Any]:
    """Yield a JSON value and all values in it."""
    yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from all_of(inner)


def test_every_endpoint_and_field_is_described(document: Any) -> None:
    assert document["openapi"].startswith("3.1.")
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert operations.keys() == {(e.method, e.path) for e in ENDPOINTS}
    ids = [operation["operationId"] for operation in operations.values()]
    assert len({*ids}) == len(ids)
    for endpoint in BODIES:
        content = operations[endpoint.method, endpoint.path]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        names = {*(f.name for f in endpoint.body.fields), *endpoint.body.refused}
        assert schema["properties"].keys() == names
        assert all(property["description"] for property in schema["properties"].values())
    references = {v["$ref"] for v in all_of(document) if isinstance(v, dict) and "$ref" in v}
    prefix = "#/components/schemas/"
    used = {reference.removeprefix(prefix) for reference in references}
    assert used == document["components"]["schemas"].keys()


def test_every_endpoint_answers(client: Client) -> None:
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{name}", "tales")
        status = client.ask(endpoint.method, path, b"{}").status
        assert status == (200 if endpoint.method == "GET" else 400), path


def test_the_document_is_valid(document: Any) -> None:
    validator = pytest.importorskip(
        "openapi_spec_validator", reason="tools/ci/serve_clients.sh has openapi-spec-validator"
    )
    validator.validate(document)


def test_the_document_says_where_the_server_is_and_what_it_needs(tales: GPT2) -> None:
    access = Access(key_digests(None, "secret-key"))
    client = Client(service_of(tales, root_path="/gpt", access=access))
    assert client.get("/gpt/openapi.json").status == 401
    headers = {"X-Api-Key": "secret-key"}
    document = client.get("/gpt/openapi.json", headers=headers).json
    assert document["servers"] == [{"url": "/gpt"}]
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/completions"]["post"]


def test_the_page_lists_every_field_and_fetches_nothing(client: Client) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    text = answer.body.decode()
    for forbidden in ("<script", "<link", "<img", "src=", "http:", "https:", "url("):
        assert forbidden not in text
    for endpoint in ENDPOINTS:
        assert f"<code>{endpoint.path}</code>" in text
        assert endpoint.what in unescape(text)
        for field in () if endpoint.body is None else endpoint.body.fields:
            assert f"<code>{field.name}</code><td>" in text
            assert field.what in unescape(text)


# ---- schemas accept what the server accepts ----


def is_valid(value: Any, schema: Any) -> bool:
    jsonschema = pytest.importorskip(
        "jsonschema", reason="tools/ci/serve_clients.sh has jsonschema"
    )
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def numbers_near(schema: Any) -> set[Any]:
    """Return the bounds of all numbers, lengths and counts of a schema, and what is beyond."""
    found = set()
    for value in all_of(schema):
        if isinstance(value, dict):
            found |= {v for v in value.values() if isinstance(v, int | float)}
    return {n + d for n in found if not isinstance(n, bool) for d in (-1, 0, 1, 0.5)}


def values_for(schema: Any) -> st.SearchStrategy[Any]:
    numbers = st.sampled_from(sorted(numbers_near(schema))) if numbers_near(schema) else st.none()
    texts = st.sampled_from(["", "a", "a b", "left", "float", "1", "x" * 20, "x" * 21, "r-1"])
    large = st.sampled_from([2**31 - 1, 2**31, 2**64 - 1, 2**64, 101, 1e7])
    small = st.integers(-2, 9) | st.floats(-2, 2)
    leaves = st.none() | st.booleans() | numbers | large | small | texts
    lists = st.lists(leaves, max_size=5) | st.lists(st.lists(st.integers(-1, 9), max_size=2))
    keys = st.sampled_from(["1", "22", "x", "include_usage", "", "12345678901"])
    uniform = st.lists(st.integers(0, 9), max_size=5) | st.lists(texts, max_size=5)
    return leaves | lists | uniform | st.dictionaries(keys, leaves, max_size=5)


def has_whole_float(value: Any) -> bool:
    """JSON schema takes 1.0 as an integer, and the server does not."""
    return any(isinstance(v, float) and v == int(v) for v in all_of(value))


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [(endpoint, field.name) for endpoint in BODIES for field in endpoint.body.fields],
    ids=lambda value: value if isinstance(value, str) else value.handler,
)
@settings(max_examples=cases(25))
@given(data=st.data())
def test_schemas_accept_what_the_server_accepts(
    data: st.DataObject, endpoint: Endpoint, name: str
) -> None:
    schema = endpoint.body.schema(LIMITS)["properties"][name]
    value = data.draw(values_for(schema))
    needed = [1] if endpoint.handler == "detokenize" else "a"
    needed = {**dict.fromkeys(endpoint.body.required, needed), name: value}
    error = None
    try:
        endpoint.body.check(needed, LIMITS)
    except RequestError as caught:
        error = caught
    if not has_whole_float(value):
        assert is_valid(value, schema) == (error is None)
    assert error is None or error.param == name


def test_the_schema_of_a_body_has_its_required_and_refused_fields() -> None:
    (completion,) = [e.body for e in BODIES if e.handler == "completions"]
    schema = completion.schema(LIMITS)
    assert is_valid({"prompt": "a", "n": 8, "suffix": None}, schema)
    for wrong in (
        {},
        {"prompt": "a", "n": 9},
        {"prompt": "a", "x": 1},
        {"prompt": "a", "suffix": "b"},
    ):
        assert not is_valid(wrong, schema)


def test_answers_are_as_described(client: Client, document: Any) -> None:
    body = {"prompt": "a", "max_tokens": 2, "logprobs": 2, "echo": True}
    small = config_of(eos_token_id=7)
    ids = Client(service_of(model_on("numpy", small, random_weights(small))))
    stream = client.complete(**body, stream=True, stream_options={"include_usage": True})
    answers = [
        *(("Completion", event) for event in stream.events),
        ("Completion", client.complete(**body, seed=1).json),
        ("Completion", client.complete(prompt="a", temperature=0, return_token_ids=True).json),
        ("Completion", ids.complete(prompt=[1], temperature=0).json),
        ("Embeddings", client.post("/v1/embeddings", input="a").json),
        ("Embeddings", client.post("/v1/embeddings", input="a", encoding_format="base64").json),
        ("Scores", client.post("/score", context="a", continuation=" b", logprobs=2).json),
        ("Tokens", client.post("/tokenize", prompt="a", return_token_strs=True).json),
        ("Tokens", client.post("/tokenize", prompt="a").json),
        ("Text", client.post("/detokenize", tokens=[1]).json),
        ("TokenizerInfo", client.get("/tokenizer_info").json),
        ("Models", client.get("/v1/models").json),
        ("Model", client.get("/v1/models/gpt-2").json),
        ("Health", client.get("/health").json),
        ("Version", client.get("/version").json),
        ("Error", client.get("/nothing").json),
        ("Error", client.post("/v1/completions", n=0).json),
    ]
    for name, answer in answers:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        assert is_valid(answer, schema), (name, json.dumps(answer)[:300])
        assert not is_valid({**answer, "more": 1}, schema)
