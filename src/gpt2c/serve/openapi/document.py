"""GET /openapi.json and GET /docs: the API as programs and people read it.

Both are made from the tables that check requests, so they say what the server does. The page has
no script and fetches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

import gpt2c
from gpt2c.serve.fields import Body, Schema
from gpt2c.serve.limits import Limits
from gpt2c.serve.openapi.answers import SCHEMAS, stream_description
from gpt2c.serve.openapi.endpoints import ENDPOINTS, Endpoint

_STATUSES: Final[Mapping[int, str]] = {
    400: "the request is wrong", 401: "no valid API key", 403: "a strange Host or Origin header",
    404: "no such model or path", 408: "the body is too slow", 413: "the body is too large",
    415: "the body is not application/json", 429: "the queue is full",
    431: "the headers are too large", 500: "the server failed", 503: "the server loads, stops, has "
    "too little memory or took too long",
}  # fmt: skip
_OF_BODIES: Final = (408, 413, 415, 429)
HTML_HEADERS: Final = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_STYLE: Final = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.2em .8em "
    ".2em 0;border-bottom:1px solid #ccc}code{font-size:90%}"
)


def description(limits: Limits, root_path: str, needs_key: bool) -> dict[str, Any]:
    """Return the API as an OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        operation = _operation(endpoint, limits)
        if endpoint.path == "/health":
            operation["security"] = []
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpt2c",
            "version": gpt2c.__version__,
            "description": "Answers OpenAI's completions API with GPT-2.",
        },
        "servers": [{"url": root_path or "/"}],
        "security": [{"bearer": []}, {"header": []}] if needs_key else [],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _operation(endpoint: Endpoint, limits: Limits) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler,
        "summary": endpoint.what,
        "responses": _responses(endpoint),
    }
    parameters = [_parameter(endpoint.query, "query")] if endpoint.query else []
    if "{name}" in endpoint.path:
        parameters.append(_parameter("name", "path"))
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        content = {"application/json": {"schema": endpoint.body.schema(limits)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {}
    if endpoint.answer is not None:
        content: dict[str, Any] = {endpoint.answer: {"schema": {"type": "string"}}}
        if endpoint.answer in SCHEMAS:
            reference: Schema = {"$ref": f"#/components/schemas/{endpoint.answer}"}
            content = {"application/json": {"schema": reference}}
        if endpoint.handler == "completions":
            content["text/event-stream"] = stream_description()
        found["200"] = {"description": "the answer", "content": content}
    for status, why in _STATUSES.items():
        if status in _OF_BODIES and endpoint.method == "GET":
            continue
        found[str(status)] = {"description": why, "content": error}
    return found


def page() -> str:
    """Return the page for people, in HTML."""
    parts = [
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>gpt2c</title>',
        f"<style>{_STYLE}</style><h1>gpt2c {escape(gpt2c.__version__)}</h1>",
        '<p>This server answers OpenAI\'s completions API. <a href="openapi.json">openapi.json</a> '
        "is this page for programs.</p>",
    ]
    for endpoint in ENDPOINTS:
        parts.append(f"<h2>{endpoint.method} <code>{escape(endpoint.path)}</code></h2>")
        parts.append(f"<p>{escape(endpoint.what)}</p>")
        if endpoint.body is not None:
            parts.append(_table_of(endpoint.body))
    return "\n".join(parts)


def _table_of(body: Body) -> str:
    rows = ["<table><tr><th>field<th>values<th>default<th>what it does"]
    for field in body.fields:
        default = "" if field.default in (None, ()) else str(field.default).lower()
        cells = (f"<code>{escape(field.name)}</code>", escape(field.values), escape(default),
                 escape(field.what))  # fmt: skip
        rows.append("<tr><td>" + "<td>".join(cells))
    for name, reason in body.refused.items():
        rows.append(f"<tr><td><code>{escape(name)}</code><td><td><td>an error: {escape(reason)}")
    return "\n".join([*rows, "</table>"])
