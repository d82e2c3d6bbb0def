"""Compares the answers of a server with what GPT2 gives alone in this process, to the bit."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from http_client import FindingError, Reply
from served_oracle import Expected, check_fit, encoded, prompts_of

import gpt2c
from gpt2c import GPT2


def check_answer(model: GPT2, path: str, body: Mapping[str, Any], reply: Reply) -> None:
    """Compare an answer with what the model gives alone. Raises FindingError."""
    try:
        if path == "/v1/completions":
            wanted = _check_stream if body.get("stream") and reply.is_stream else _check_whole
            wanted(model, body, reply)
            return
        make = {"/score": _score, "/v1/embeddings": _embeddings, "/tokenize": _tokens}[path]
        expected = make(model, body)
        _same("the answer", reply.json(), {**reply.json(), **expected})
    except gpt2c.Error as error:
        if reply.status != 400:
            raise FindingError(f"alone: {error}; the server: {reply}") from None


def _seeds(choices: list[Any], body: Mapping[str, Any]) -> list[int | None]:
    """Return the seeds that an answer reports, one per prompt."""
    n = body.get("n", 1)
    seeds = [choice["seed"] for choice in sorted(choices, key=lambda choice: choice["index"])][::n]
    given = body.get("seed")
    if given is not None and body.get("temperature", 1):
        given = given if isinstance(given, list) else [given] * len(seeds)
        _same("the seeds", seeds, given)
    return seeds


def _same(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise FindingError(f"{what}: found {str(found)[:3000]}, wanted {str(wanted)[:3000]}")


def _check_whole(model: GPT2, body: Mapping[str, Any], reply: Reply) -> None:
    if reply.status != 200:
        _check_failed(model, body, [1] * len(prompts_of(body["prompt"])), str(reply.json()))
        return
    answer = reply.json()
    expected = Expected(model, body, _seeds(answer["choices"], body))
    for found, wanted in zip(answer["choices"], expected.choices, strict=True):
        _same("a choice", found, wanted)
    _same("the usage", answer["usage"], expected.usage)
    _same("the rest", (answer["object"], answer["model"]), ("text_completion", body["model"]))


def _check_failed(
    model: GPT2, body: Mapping[str, Any], seeds: list[int | None], message: str
) -> None:
    """Check that a request that failed does so alone, too."""
    try:
        Expected(model, body, seeds)
    except gpt2c.Error:
        return
    # Whether the options leave a token may depend on the seed, which an error does not report.
    if "leave no token" not in message:
        raise FindingError(f"alone it is no error; the server: {message}")


def _check_stream(model: GPT2, body: Mapping[str, Any], reply: Reply) -> None:
    events = reply.events()
    if "error" in events[-1]:
        _check_failed(model, body, [1] * len(prompts_of(body["prompt"])), str(events[-1]))
        return
    usage = None
    if body.get("stream_options", {}).get("include_usage"):
        last = events.pop()
        _same("the choices beside the usage", last["choices"], [])
        usage = last["usage"]
    joined: dict[int, dict[str, Any]] = {}
    for event in events:
        if "error" in event:
            raise FindingError(f"the stream has an error: {event}")
        (part,) = event["choices"]
        whole = joined.setdefault(part["index"], {"text": "", "logprobs": None, "token_ids": []})
        _join(whole, part)
    choices = [joined[index] for index in sorted(joined)]
    expected = Expected(model, body, _seeds(choices, body))
    _same("the number of choices", len(choices), len(expected.choices))
    for found, wanted in zip(choices, expected.choices, strict=True):
        wanted = {**wanted}
        wanted.pop("prompt_token_ids", None)
        if not body.get("return_token_ids"):
            found.pop("token_ids")
        if found["logprobs"] is not None:  # offsets within characters differ: see docs/server.md
            offsets = found["logprobs"].pop("text_offset")
            wanted["logprobs"] = {**wanted["logprobs"]}
            wanted["logprobs"].pop("text_offset")
            if offsets != sorted(offsets) or (offsets and offsets[-1] > len(found["text"])):
                raise FindingError(f"offsets {offsets} in a text of {len(found['text'])}")
        _same("a choice of a stream", found, wanted)
    if usage is not None:
        _same("the usage", usage, expected.usage)


def _join(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a part of a choice to the choice."""
    if whole.get("finish_reason") is not None:
        raise FindingError(f"a choice goes on after its end: {part}")
    whole |= {name: part[name] for name in ("index", "finish_reason", "seed")}
    whole["text"] += part["text"]
    whole["token_ids"] += part.get("token_ids", [])
    if part["logprobs"] is not None:
        before = whole["logprobs"] or {name: [] for name in part["logprobs"]}
        whole["logprobs"] = {name: before[name] + part["logprobs"][name] for name in before}


def _score(model: GPT2, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what /score must answer, in part."""
    before = [encoded(model, given, False) for given in prompts_of(body["context"])]
    after = [encoded(model, given, False) for given in prompts_of(body["continuation"])]
    check_fit(model, [*before, *after])
    if len(before) != len(after) and 1 not in (len(before), len(after)):
        raise gpt2c.OptionError("unequal numbers")
    n = max(len(before), len(after))
    before, after = before * (n // len(before)), after * (n // len(after))
    check_fit(model, [context + end for context, end in zip(before, after, strict=True)])
    data = []
    for index, (context, end) in enumerate(zip(before, after, strict=True)):
        (alone,) = model.score([context], [end], top_logprobs=body["logprobs"])
        writer = Expected.__new__(Expected)
        writer.model, writer.body = model, {}
        tokens = [
            (id, logprob, {i: p for i, p in zip(ids, top, strict=True) if i >= 0})
            for id, logprob, ids, top in zip(
                alone.ids.tolist(), alone.logprobs.tolist(), alone.top_ids.tolist(),
                alone.top_logprobs.tolist(), strict=True,
            )
        ]  # fmt: skip
        data.append(
            {
                "object": "score", "index": index, "score": alone.total,
                "is_greedy": bool(alone.is_arg_max.all()), "token_ids": alone.ids.tolist(),
                "ranks": alone.ranks.tolist(),
                "logprobs": writer._logprobs(tokens, 0, 10**9),
            }
        )  # fmt: skip
    n_tokens = sum(map(len, before)) + sum(map(len, after))
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "model": body["model"], "data": data, "usage": usage}


def _embeddings(model: GPT2, body: Mapping[str, Any]) -> dict[str, Any]:
    texts = [encoded(model, given, False) for given in prompts_of(body["input"])]
    if not all(texts):
        raise gpt2c.OptionError("an empty text")
    data = []
    for index, ids in enumerate(texts):
        vector = model.embed([ids])[0]
        shown: Any = vector.tolist()
        if body["encoding_format"] == "base64":
            shown = base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    n = sum(map(len, texts))
    return {"object": "list", "data": data, "usage": {"prompt_tokens": n, "total_tokens": n}}


def _tokens(model: GPT2, body: Mapping[str, Any]) -> dict[str, Any]:
    ids = model.tokenizer.encode(body["prompt"])
    return {"tokens": ids, "count": len(ids), "token_strs": None}
