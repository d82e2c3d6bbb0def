"""The server's fields: strict JSON, types, ranges, combinations, and the page that lists them."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from conftest import ROOT, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c.generate.options import StreamOptions
from gpt2c.serve.completion_fields import FIELDS, GROUPS, REFUSED, parse_completion
from gpt2c.serve.errors import RequestError
from gpt2c.serve.fields import parse_body
from gpt2c.serve.limits import Limits, descriptions
from gpt2c.serve.metrics import Metrics
from gpt2c.serve.openapi.endpoints import ENDPOINTS

LIMITS = Limits(max_n=8, max_prompts=3, max_prompt_chars=100, max_stops=2, max_items=4)


def refused(body: Any, limits: Limits = LIMITS) -> RequestError:
    """Return the error of a body, bytes or an object."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as caught:
        parse_completion(parse_body(raw), limits)
    assert caught.value.status == 400
    json.dumps(caught.value.body, allow_nan=False).encode()
    return caught.value


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "list"),
        (b"null", "NoneType"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN"),
        (b'{"prompt": "a", "temperature": -Infinity}', "Infinity"),
        (b'{"prompt": "a", "temperature": 1e999}', "1e999"),
        (b'{"prompt": "a", "seed": 123456789012345678901}', "64-bit"),
        (b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}", "64-bit"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": ["\\ud800"]}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
    ],
)
def test_a_body_must_be_strict_json(raw: bytes, named: str) -> None:
    assert named in refused(raw).message


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": "a", "tempurature": 1}, "tempurature", "temperature"),
        ({"prompt": "a", "x\n\x1b[31m": 1}, "x\n\x1b[31m", "\\x1b"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": {}}, "prompt", "string"),
        ({"prompt": 3}, "prompt", "3"),
        ({"prompt": ["a", 1]}, "prompt", "ids and strings"),
        ({"prompt": [True]}, "prompt", "booleans"),
        ({"prompt": [[1.5]]}, "prompt", "1.5"),
        ({"prompt": ["a"] * 4}, "prompt", "at most 3"),
        ({"prompt": "a" * 101}, "prompt", "at most 100"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "only continues"),
        ({"prompt": "a", "use_beam_search": True}, "use_beam_search", "num_beams"),
        ({"prompt": "a", "n": 0}, "n", "from 1 to 8"),
        ({"prompt": "a", "n": 9}, "n", "from 1 to 8"),
        ({"prompt": "a", "n": True}, "n", "integer"),
        ({"prompt": "a", "n": 1.0}, "n", "integer"),
        ({"prompt": "a", "n": "1"}, "n", "integer"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of", "less than n"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "streamed"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "from 0"),
        ({"prompt": "a", "max_tokens": 2**31}, "max_tokens", "from 0"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "integer"),
        ({"prompt": "a", "echo": 1}, "echo", "true or false"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "from 0"),
        ({"prompt": "a", "temperature": "1"}, "temperature", "number"),
        ({"prompt": "a", "top_p": 1.1}, "top_p", "from 0 to 1"),
        ({"prompt": "a", "top_k": -2}, "top_k", "from -1"),
        ({"prompt": "a", "presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({"prompt": "a", "stop": ["a", "b", "c"]}, "stop", "at most 2"),
        ({"prompt": "a", "stop": ""}, "stop", "empty string"),
        ({"prompt": "a", "stop": [1]}, "stop", "string"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "without stream"),
        ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options", "unknown"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"prompt": "a", "logit_bias": {"1": 1, "01": 2}}, "logit_bias", "twice"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
        ({"prompt": "a", "logit_bias": {str(i): 1 for i in range(5)}}, "logit_bias", "at most 4"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias", "object"),
        ({"prompt": "a", "seed": -1}, "seed", "from 0"),
        ({"prompt": "a", "seed": [1, 2]}, "seed", "each of the 1 prompts"),
        ({"prompt": "a", "user": 3}, "user", "string"),
        ({"prompt": "a", "min_tokens": 17}, "min_tokens", "more than max_tokens"),
        ({"prompt": "a", "allowed_token_ids": []}, "allowed_token_ids", "empty"),
        ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1 or at least"),
        ({"prompt": "a", "truncation_side": "top"}, "truncation_side", "left"),
        ({"prompt": "a", "priority": -1}, "priority", "from 0"),
        ({"prompt": "a", "request_id": "a\r\nb"}, "request_id", "ASCII"),
        ({"prompt": "a", "bad_words": [""]}, "bad_words", "empty"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, named: str) -> None:
    error = refused(fields)
    assert error.param == param
    assert named in error.message
    assert error.message.isprintable()


def test_null_means_not_given() -> None:
    nothing = {field.name: None for field in FIELDS} | dict.fromkeys(REFUSED)
    assert parse_completion({**nothing, "prompt": "a"}, LIMITS) == parse_completion(
        {"prompt": "a"}, LIMITS
    )


@pytest.mark.parametrize(
    ("given_prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], []], [[1], []]),
        ("", [""]),
    ],
)
def test_prompts_have_four_shapes(given_prompt: Any, prompts: Any) -> None:
    assert parse_completion({"prompt": given_prompt}, LIMITS).prompts == prompts


def test_options_have_gpt2cs_names() -> None:
    """Every option is one of GPT2.stream's, so that none is dropped silently."""
    options = {field.option for field in FIELDS if field.option}
    assert options <= {*StreamOptions.__annotations__}
    fields = {"min_tokens": 3, "top_k": -1, "t_max_predict_ms": 1500, "dry_penalty_last_n": -1}
    request = parse_completion({"prompt": "a", **fields}, LIMITS)
    assert request.options == {
        "min_new_tokens": 3, "top_k": 0, "max_time": 1.5, "dry_range": 0,
    }  # fmt: skip


def test_one_seed_is_for_all_prompts_and_a_list_has_one_for_each() -> None:
    body = {"prompt": ["a", "b"]}
    assert parse_completion({**body, "seed": 2**64 - 1}, LIMITS).seeds == (2**64 - 1,) * 2
    assert parse_completion({**body, "seed": [3, 4]}, LIMITS).seeds == (3, 4)
    assert parse_completion(body, LIMITS).seeds is None


def check(raw: bytes) -> None:
    """Assert that a body makes a request within the limits, or a 400 that can be sent."""
    found = None
    try:
        request = parse_completion(parse_body(raw), LIMITS)
    except RequestError as error:
        found = error
    if found is None:
        assert 1 <= request.n <= request.best_of <= 8
    else:
        assert found.status == 400
        json.dumps(found.body, allow_nan=False).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([field.name for field in FIELDS]) | st.sampled_from([*REFUSED]) | st.text()


@settings(max_examples=cases(300))
@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_object_makes_a_request_or_a_400(body: dict[str, Any]) -> None:
    check(json.dumps({"prompt": "a", **body}).encode())


@settings(max_examples=cases(200))
@given(st.binary() | st.text().map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_make_an_object_or_a_400(raw: bytes) -> None:
    check(raw)


# ---- the page ----


def page() -> str:
    path = ROOT / "docs" / "server.md"
    if not path.exists():
        pytest.skip("not in a source tree")
    return path.read_text()


def test_the_page_lists_every_field() -> None:
    text = page()
    assert all(group in text for group in GROUPS)
    bodies = [endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None]
    rows = set()
    for field in (field for body in bodies for field in body.fields):
        default = "" if field.default in (None, ()) else json.dumps(field.default)
        rows.add(f"| `{field.name}` | {field.values} | {default} | {field.what} |")
    found = re.findall(r"^\| `\w+` \| .* \| .* \| .* \|$", text, flags=re.MULTILINE)
    assert set(found) == rows
    for name, reason in REFUSED.items():
        assert f"| `{name}` | {reason} |" in text


def test_the_page_lists_every_endpoint_and_metric() -> None:
    text = page()
    for endpoint in ENDPOINTS:
        assert f"`{endpoint.path.replace('{name}', 'NAME')}`" in text, endpoint.path
    metrics = Metrics()
    metrics.watch(list)
    rows = []
    for family in metrics._registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.documentation} |")
    found = re.findall(r"^\| `(?:vllm|gpt2c):\w+` \| .* \|$", text, flags=re.MULTILINE)
    assert sorted(found) == sorted(rows)


def test_the_page_lists_every_limit() -> None:
    text = page()
    for limit in descriptions():
        option = "--" + limit.name.replace("_", "-")
        assert f"| `{option}` | {limit.default:.15g} | {limit.help} |" in text, option


def test_limits_are_checked() -> None:
    for limit in descriptions():
        with pytest.raises(ValueError, match=limit.name):
            dataclasses.replace(LIMITS, **{limit.name: limit.lowest - 1})
        with pytest.raises(TypeError, match=limit.name):
            dataclasses.replace(LIMITS, **{limit.name: "1"})
