"""The ASGI app: the routes of the server, and the guard that every request passes first."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import gpt2c
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.serve import metrics as metrics_module
from gpt2c.serve import scoring, tokenizing
from gpt2c.serve.admission import Admission
from gpt2c.serve.completion_fields import CompletionRequest, parse_completion, request_id
from gpt2c.serve.completions import Run, complete, new_id
from gpt2c.serve.errors import RequestError, as_request_error
from gpt2c.serve.fields import parse_body
from gpt2c.serve.http import (
    ClientGoneError,
    EventStream,
    error_response,
    json_response,
    raw_json_response,
    read_body,
    unless_gone,
)
from gpt2c.serve.limits import Limits
from gpt2c.serve.metrics import Metrics
from gpt2c.serve.models import Models
from gpt2c.serve.openapi import document
from gpt2c.serve.openapi.endpoints import ENDPOINTS
from gpt2c.serve.security import Access
from gpt2c.serve.streaming import stream

_log: Final = logging.getLogger(__name__)
_LONG_BODY: Final = 1 << 16  # bytes; longer bodies are parsed in a thread


@dataclass
class Service:
    """What the endpoints share."""

    models: Models
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    metrics: Metrics = field(default_factory=Metrics)
    parses_special: bool = True  # whether names of special tokens in texts may become ids
    seed: int | None = None  # of requests without a seed; None: random ones
    logs_requests: bool = False
    root_path: str = ""

    def __post_init__(self) -> None:
        """Prepare the counts of what runs."""
        self.admission = Admission(self.limits)
        self.metrics.watch(lambda: self.models.served)

    def failed(self, error: Exception) -> RequestError:
        """Return the answer for an error; count it, and log it if it is the server's fault."""
        answer = as_request_error(error)
        self.metrics.count_error(answer.status)
        if answer.status == 500:
            _log.error("a request failed", exc_info=error)
        return answer

    def close(self) -> None:
        """Cancel all requests, and free the models."""
        self.admission.close()
        self.models.close()


class Endpoints:
    """The endpoints: from a request to its answer."""

    def __init__(self, service: Service) -> None:
        """Serve the models of a service."""
        self._service = service

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route(
                endpoint.path.replace("{name}", "{name:path}"),
                getattr(self, endpoint.handler),
                methods=[endpoint.method],
            )
            for endpoint in ENDPOINTS
        ]

    async def _body(self, request: Request) -> dict[str, Any]:
        service = self._service
        raw = await read_body(request.receive, request.headers, service.limits)
        if len(raw) > _LONG_BODY:
            return await service.admission.in_thread(lambda: parse_body(raw))
        return parse_body(raw)

    async def _answer(self, request: Request, work: Coroutine[Any, Any, bytes]) -> Response:
        return raw_json_response(await unless_gone(request.receive, work))

    # ---- completions ----

    async def completions(self, request: Request) -> Any:
        """Continue prompts."""
        body = await self._body(request)
        service = self._service
        parsed = parse_completion(body, service.limits)
        served = service.models.get(parsed.model)
        run = Run(
            self._with_defaults(parsed), served, service.admission, service.metrics,
            new_id(parsed.request_id or request.scope["state"]["request_id"]),
            cache_space=request.scope["state"]["key"],
        )  # fmt: skip
        return await unless_gone(request.receive, self._run(run))

    def _with_defaults(self, parsed: CompletionRequest) -> CompletionRequest:
        """Apply the server's options: special tokens as text, and a fixed seed."""
        service = self._service
        special = service.parses_special and parsed.parses_special is not False
        seeds = parsed.seeds
        if seeds is None and service.seed is not None:
            seeds = (service.seed,) * len(parsed.prompts)
        return replace(parsed, parses_special=special, seeds=seeds)

    async def _run(self, run: Run) -> Any:
        request, metrics, name = run.request, run.metrics, run.served.name
        await run.prepare()
        n_prompt = sum(map(len, run.prompts))
        if request.stream:
            events = stream(run)
            first = await anext(events)
            metrics.count_request(name, n_prompt, request.n, request.max_tokens)
            return EventStream(first, events, self._service.failed)
        answer = await complete(run)
        metrics.count_request(name, n_prompt, request.n, request.max_tokens)
        metrics.latency.observe(name, time.monotonic() - run.began)
        return raw_json_response(answer)

    async def chat(self, request: Request) -> Any:
        """Refuse a chat: GPT-2 has no format of turns."""
        raise RequestError(
            400, "GPT-2 was not trained on chats and has no format for turns, and this server runs "
            "no chat templates, which are programs; write the text to continue yourself and send "
            "it as the prompt of POST /v1/completions", code="no_chat",
        )  # fmt: skip

    # ---- scores, embeddings, tokens ----

    async def score(self, request: Request) -> Any:
        """Score continuations."""
        body, s = await self._body(request), self._service
        work = scoring.score(s.models, s.admission, body, s.limits, s.parses_special)
        return await self._answer(request, work)

    async def embeddings(self, request: Request) -> Any:
        """Embed texts."""
        body, s = await self._body(request), self._service
        work = scoring.embeddings(s.models, s.admission, body, s.limits, s.parses_special)
        return await self._answer(request, work)

    async def tokenize(self, request: Request) -> Any:
        """Encode a text."""
        body, s = await self._body(request), self._service
        return json_response(
            await s.admission.in_thread(
                lambda: tokenizing.tokenize(s.models, body, s.limits, s.parses_special)
            )
        )

    async def detokenize(self, request: Request) -> Any:
        """Decode ids."""
        body, s = await self._body(request), self._service
        work = s.admission.in_thread(lambda: tokenizing.detokenize(s.models, body, s.limits))
        return json_response(await work)

    async def tokenizer_info(self, request: Request) -> Any:
        """Describe a model's tokenizer."""
        served = self._service.models.get(request.query_params.get("model"))
        return json_response(tokenizing.tokenizer_info(served))

    # ---- the server ----

    async def list_models(self, request: Request) -> Any:
        """List the models and their aliases."""
        models = self._service.models
        models.get(None)  # raises while they load
        data = [self._describe(name) for s in models.served for name in (s.name, *s.aliases)]
        return json_response({"object": "list", "data": data})

    async def one_model(self, request: Request) -> Any:
        """Describe one model."""
        name = request.path_params["name"]
        self._service.models.get(name)
        return json_response(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        served = self._service.models.get(name)
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "gpt2c",
            "root": served.name,
            "parent": None if name == served.name else served.name,
            "max_model_len": served.n_positions,
            "dtype": served.model.dtype,
        }

    async def health(self, request: Request) -> Any:
        """Say whether requests are answered."""
        self._service.models.get(None)
        return json_response({"status": "ok"})

    async def show_metrics(self, request: Request) -> Any:
        """Return the metrics."""
        text = self._service.metrics.text()
        return Response(text, headers={"content-type": metrics_module.CONTENT_TYPE})

    async def version(self, request: Request) -> Any:
        """Return gpt2c's version, and that of its arithmetic."""
        return json_response({"version": gpt2c.__version__, "arithmetic": gpt2c.ARITHMETIC})

    async def openapi(self, request: Request) -> Any:
        """Describe the API for programs."""
        s = self._service
        found = document.description(s.limits, s.root_path, bool(s.access.key_digests))
        return json_response(found)

    async def docs(self, request: Request) -> Any:
        """Describe the API for people."""
        return Response(document.page(), headers=document.HTML_HEADERS)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(404, "there is no such path; docs/server.md lists them", code="path")


class Guard:
    """Checks who asks, gives every request an id, and turns every error into OpenAI's JSON."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Guard an app."""
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        id = _id_of(headers)
        scope["state"] = {**scope.get("state", {}), "request_id": id}
        scope["app"] = self  # so that a wrong method is an exception
        answer = _Answer(send, id)
        began = time.monotonic()
        try:
            await self._handle(scope, receive, answer, headers)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            error = RequestError(503, "the server is stopping", code="stopping")
            if not answer.status:
                await error_response(self._service.failed(error))(scope, receive, answer)
        finally:
            if self._service.logs_requests:
                _log_request(scope, answer, id, time.monotonic() - began)

    async def _handle(
        self, scope: Scope, receive: Receive, answer: _Answer, headers: Mapping[str, str]
    ) -> None:
        path = scope["path"].removeprefix(self._service.root_path)
        size = len(scope["path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        try:
            if (limit := self._service.limits.max_header_bytes) < size:
                message = f"the headers are larger than {limit} bytes, the limit of this server"
                raise RequestError(431, message, code="header_size")
            number = self._service.access.check(scope["method"], path, headers)
            scope["state"]["key"] = number
            await self._app(scope, receive, answer)
        except ClientGoneError:
            self._service.metrics.disconnects.inc()
        except HTTPException as error:
            message = f"{scope['method']} is not allowed here"
            refused = RequestError(error.status_code, message, code="method")
            await error_response(self._service.failed(refused))(scope, receive, answer)
        except Exception as error:
            found = self._service.failed(error)
            if not answer.status:
                await error_response(found)(scope, receive, answer)


class _Answer:
    """Passes an answer on, with the request's id in its headers; keeps its status."""

    def __init__(self, send: Send, id: str) -> None:
        self._send, self._id = send, id
        self.status = 0  # until the answer begins

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self._id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)


def _id_of(headers: Mapping[str, str]) -> str:
    """Return the client's id of the request if it is a proper one, else a new one."""
    try:
        return request_id("X-Request-Id", headers.get("x-request-id"))
    except (OptionError, OptionTypeError):
        return uuid.uuid4().hex


def _log_request(scope: Scope, answer: _Answer, id: str, seconds: float) -> None:
    """Log a request as one line of JSON, which escapes what the client chose."""
    line = {
        "method": scope["method"][:16], "path": scope["path"][:200], "status": answer.status,
        "ms": round(1000 * seconds, 1), "id": id,
    }  # fmt: skip
    _log.info("%s", json.dumps(line))


def make_app(service: Service) -> ASGIApp:
    """Return the app of a service."""
    routes = Endpoints(service).routes()
    if service.root_path:
        routes = [Mount(service.root_path, routes=routes)]
    app: ASGIApp = Guard(Router(routes=routes, redirect_slashes=False, default=_not_found), service)
    if service.access.origins:
        app = CORSMiddleware(
            app, allow_origins=sorted(service.access.origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Api-Key", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )  # fmt: skip
    return app
