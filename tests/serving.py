"""Asks the app of a server in this process, without sockets; or runs a server in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import wait_until

from gpt2c import GPT2

for package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from gpt2c.serve.app import Service, make_app  # noqa: E402
from gpt2c.serve.limits import Limits  # noqa: E402
from gpt2c.serve.models import Models, ModelSource, ServedModel  # noqa: E402
from gpt2c.serve.security import Access  # noqa: E402
from gpt2c.serve.server import Address, Running  # noqa: E402

SECONDS = 60


@dataclass
class Answer:
    """A status, headers by lower-case names, and the parts of the body as they were sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """The data of the server-sent events; "[DONE]" must be the last."""
        assert self.headers["content-type"].startswith("text/event-stream")
        *lines, done, end = self.body.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines]


def service_of(models: Mapping[str, GPT2] | GPT2, **options: Any) -> Service:
    """Return the service of loaded models."""
    by_name = {"tiny": models} if isinstance(models, GPT2) else models
    limits = options.pop("limits", Limits())
    aliases = options.pop("aliases", {})
    registry = Models(
        [ModelSource(name, None, tuple(aliases.get(name, ()))) for name in by_name], limits
    )
    for name, model in by_name.items():
        registry.add(ServedModel(name, model, limits, aliases.get(name, ())))
    registry.is_ready = True
    return Service(registry, limits, **options)


async def ask_async(
    app: Any,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    leaves: Callable[[Answer], bool] | None = None,
) -> Answer:
    """Return the answer to a request; the client leaves once `leaves(answer)` is true."""
    answer, done = Answer(), asyncio.Event()
    parts = [body] if isinstance(body, bytes) else list(body)
    messages = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
        for i, part in enumerate(parts)
    ]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        while not (done.is_set() or (leaves is not None and leaves(answer))):
            await asyncio.sleep(0.002)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not answer.status
            answer.status = message["status"]
            answer.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            answer.parts.append(message["body"])
            if not message.get("more_body", False):
                done.set()

    given = {"host": "127.0.0.1", "content-type": "application/json"}
    given |= {name.lower(): value for name, value in (headers or {}).items()}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"},
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items() if v],
    }  # fmt: skip
    async with asyncio.timeout(SECONDS):
        await app(scope, receive, send)
    return answer


@contextmanager
def running(model: GPT2, address: Address | None = None, **limits: Any) -> Iterator[Running]:
    """Run a server in a thread."""
    access = Access(checks_host=address is None)
    service = service_of(model, limits=Limits(**limits), access=access)
    service.models.load = lambda _: None  # type: ignore[method-assign]  # it is loaded
    server = Running(service, address or Address(port=0))
    service.models.close = lambda: None  # type: ignore[method-assign]  # tests share the model
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server._server.started)
        yield server
    finally:
        server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()


def port_of(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


class Client:
    """Asks an app."""

    def __init__(self, service: Service) -> None:
        self.service, self.app = service, make_app(service)

    def ask(self, method: str, path: str, body: Any = b"", **options: Any) -> Answer:
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        return asyncio.run(ask_async(self.app, method, path, raw, **options))

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any = None, **fields: Any) -> Answer:
        return self.ask("POST", path, fields if body is None else body)

    def complete(self, **fields: Any) -> Answer:
        """Ask /v1/completions, which must succeed."""
        answer = self.post("/v1/completions", fields)
        assert answer.status == 200, answer.body
        return answer
