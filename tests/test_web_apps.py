"""The example web apps: real servers, many clients at once, and answers as from the model alone."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import ROOT, wait_until

N_CLIENTS = 32
SECONDS = 60
WORDS = ["king", "daughter", "fox", "mill", "forest", "tailor", "bread", "night"]
# The parameters of each client's request.
REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": f"Once upon a time the {WORDS[i % 8]} of the {WORDS[i // 8]}",
        "max_new_tokens": 8 + i,
        "seed": i,
    }
    for i in range(N_CLIENTS)
]


@dataclass
class Server:
    """An app that a server runs on a port of this machine."""

    app: Any  # the module
    port: int
    path: str
    text_of: Callable[[str], str]  # the completion that the body of a response has

    @contextmanager
    def response(self, method: str, given: dict[str, Any]) -> Iterator[Any]:
        query, connection = urlencode(given), HTTPConnection("127.0.0.1", self.port, SECONDS)
        try:
            if method == "GET":
                connection.request("GET", f"{self.path}?{query}")
            else:
                form = {"Content-Type": "application/x-www-form-urlencoded"}
                connection.request(method, self.path, query, form)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, method: str = "GET", **given: Any) -> tuple[int, str]:
        """Return the status and the body of a response."""
        with self.response(method, given) as response:
            return response.status, response.read().decode()

    def text(self, method: str = "GET", **given: Any) -> str:
        """Return the completion."""
        status, body = self.ask(method, **given)
        assert status == 200, body
        return self.text_of(body)

    def text_alone(self, prompt: str, max_new_tokens: int, seed: int) -> str:
        """Return the completion that the model gives without a server."""
        options = {"max_new_tokens": max_new_tokens, "temperature": 0.8, "seed": seed}
        text = self.app.model.complete(prompt, **options).text
        assert isinstance(text, str)
        return text


def import_app(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    return importlib.import_module(name)


@pytest.fixture
def flask_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("flask", reason="Flask is not installed")
    from werkzeug.serving import make_server

    module = import_app("flask_app", monkeypatch)
    # app.run() makes such a server.
    server = make_server("127.0.0.1", 0, module.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Server(module, server.server_port, "/complete", lambda body: json.loads(body)["text"])
    server.shutdown()
    server.server_close()
    thread.join(SECONDS)


@pytest.fixture
def fastapi_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    module = import_app("fastapi_app", monkeypatch)
    config = uvicorn.Config(module.app, host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield Server(module, server.servers[0].sockets[0].getsockname()[1], "/stream", str)
    server.should_exit = True
    thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.fixture(params=["flask", "fastapi"])
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


def test_each_of_32_clients_gets_the_text_of_the_model_alone(server: Server) -> None:
    barrier = threading.Barrier(N_CLIENTS)

    def ask(given: dict[str, Any]) -> str:
        barrier.wait(SECONDS)
        return server.text(**given)

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        texts = [*pool.map(ask, REQUESTS)]
    assert texts == [server.text_alone(**given) for given in REQUESTS]
    assert len({*texts}) > N_CLIENTS // 2


def test_flask_takes_a_posted_form(flask_server: Server) -> None:
    assert flask_server.text("POST", **REQUESTS[3]) == flask_server.text_alone(**REQUESTS[3])


def test_a_wrong_request_gets_an_error_and_the_next_one_a_text(server: Server) -> None:
    for given, named in (
        ({"prompt": "Once", "max_new_tokens": -1}, "max_new_tokens"),
        ({"prompt": "Once " * 600}, "tokens"),
    ):
        status, body = server.ask(**given)
        assert status == 400
        assert named in json.loads(body)["error"]
    assert server.ask()[0] in (400, 422)  # without a prompt
    assert server.text(**REQUESTS[0]) == server.text_alone(**REQUESTS[0])


def test_a_stream_comes_in_pieces_and_ends_when_its_client_leaves(
    fastapi_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fastapi_server.app.model
    given = {**REQUESTS[0], "max_new_tokens": 300}
    pieces: list[str] = []
    has_ended = threading.Event()

    class Slow:
        """The model, whose stream takes seconds, so that its client leaves before its end."""

        async def stream_async(self, prompt: str, **options: Any) -> AsyncIterator[str]:
            try:
                async for piece in model.stream_async(prompt, **options):
                    pieces.append(piece)
                    yield piece
                    await asyncio.sleep(0.02)
            finally:
                has_ended.set()

    whole = fastapi_server.text_alone(**given)
    monkeypatch.setattr(fastapi_server.app, "model", Slow())
    with fastapi_server.response("GET", given) as response:
        first = response.read1()
    assert has_ended.wait(SECONDS)
    assert 0 < len(first) < len(whole.encode())
    assert whole.encode().startswith(first)
    assert whole.startswith("".join(pieces))
    assert len("".join(pieces)) < len(whole)
