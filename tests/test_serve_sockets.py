"""The server on real sockets: connections, signals, the command, and real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from conftest import BACKENDS, config_of, model_on, random_weights, wait_until
from serving import SECONDS, Client, port_of, running, service_of

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.serve.server import Address, Running

COMMAND = [sys.executable, "-m", "gpt2c", "serve", "--port", "0"]


def slow_model() -> GPT2:
    """A model that takes seconds for a text of 4,000 tokens."""
    config = config_of(n_positions=4096, n_embd=128, n_head=2, n_layer=8)
    return model_on(BACKENDS[-1], config, random_weights(config))


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), SECONDS)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def post(path: str, body: dict[str, Any]) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def is_healthy(server: Running) -> bool:
    connection = HTTPConnection("127.0.0.1", port_of(server), timeout=SECONDS)
    connection.request("GET", "/health")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def n_running(server: Running) -> int:
    return server._service.models.get(None).scheduler.n_running


# ---- connections ----


def test_one_connection_may_ask_several_times(tales: GPT2) -> None:
    wanted = tales.complete("Once upon a time", max_new_tokens=5)
    with running(tales) as server:
        connection = HTTPConnection("127.0.0.1", port_of(server), timeout=SECONDS)
        for _ in range(3):
            body = {"prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.getheader("Server") is None
            assert json.loads(answer.read())["choices"][0]["text"] == wanted.text
        connection.close()


def test_tokens_do_not_wait_for_acknowledgements(tales: GPT2) -> None:
    with running(tales) as server, connect(server):
        connections = server._server.server_state.connections
        wait_until(lambda: bool(connections))
        (accepted,) = connections
        found = accepted.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("options", [{}, {"n": 3, "temperature": 1}, {"logprobs": 2}])
def test_a_stream_has_the_same_events_on_a_socket(
    tales: GPT2, version: str, options: dict[str, Any]
) -> None:
    body = {"prompt": "Once upon", "max_tokens": 20, "temperature": 0, "seed": 5, **options}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    wanted = Client(service_of({"tiny": tales})).complete(**body).events
    with running(tales) as server, connect(server) as connection:
        request = post("/v1/completions", body).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
        connection.sendall(request.replace(b"Host", b"Connection: close\r\nHost"))
        head, _, answer = read_all(connection).partition(b"\r\n\r\n")
    if version == "1.1":
        assert b"transfer-encoding: chunked" in head.lower()
        answer = b"".join(chunks(answer))
    *events, done, end = answer.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    changes = {"id": 0, "created": 0}
    found = [json.loads(event.removeprefix(b"data: ")) | changes for event in events]
    assert found == [event | changes for event in wanted]


def chunks(body: bytes) -> Iterator[bytes]:
    """Yield the chunks of a chunked body, which must be whole."""
    while True:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        assert body[n : n + 2] == b"\r\n"
        yield body[:n]
        body = body[n + 2 :]
        if not n:
            break
    assert not body


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
)
def test_malformed_bytes_get_a_4xx_and_the_server_goes_on(tales: GPT2, sent: bytes) -> None:
    with running(tales) as server:
        with connect(server) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = read_all(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1.1 4\d\d ", head)
        assert {*json.loads(body)["error"]} == {"message", "type", "param", "code"}
        assert is_healthy(server)


def test_headers_that_are_too_large_are_a_431(tales: GPT2) -> None:
    with running(tales, max_header_bytes=2000) as server, connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 9000)
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_goes_wrong_after_its_answer_ends_the_connection(
    tales: GPT2, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tales) as server:
        with connect(server) as connection:
            connection.sendall(
                b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: application/json\r\n\r\n"
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 404 ")
            connection.sendall(b"zz\r\n")
            assert b"HTTP/1.1" not in read_all(connection)
        assert is_healthy(server)
    assert [record.name for record in caplog.records if record.exc_info] == []


def test_a_client_that_sends_no_headers_is_cut_off(tales: GPT2) -> None:
    with running(tales, header_seconds=0.2) as server:
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
            with connect(server) as connection:
                connection.sendall(sent)
                assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        # Also after a first request on the same connection.
        with connect(server) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            connection.sendall(b"GET /hea")
            assert b"HTTP/1.1 408 " in read_all(connection)
        # A request that takes longer than its headers may take is not cut off.
        with connect(server) as connection:
            connection.sendall(
                post("/v1/completions", {"prompt": "a", "max_tokens": 500, "temperature": 0})
            )
            assert connection.recv(20).startswith(b"HTTP/1.1 200")
        assert is_healthy(server)


def test_too_many_connections_are_refused(tales: GPT2) -> None:
    with running(tales, max_connections=2) as server:
        first, second = connect(server), connect(server)
        wait_until(lambda: len(server._server.server_state.connections) == 2)
        with connect(server) as third:
            answer = read_all(third)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer
        first.close()
        second.close()
        wait_until(lambda: not server._server.server_state.connections)
        assert is_healthy(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_its_request(stream: bool) -> None:
    with running(slow_model()) as server:
        with connect(server) as connection:
            body = {"prompt": [1], "max_tokens": 4000, "stream": stream, "seed": 1}
            connection.sendall(post("/v1/completions", body))
            if stream:
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
            wait_until(lambda: n_running(server) == 1)
        began = time.monotonic()
        wait_until(lambda: n_running(server) == 0)
        assert time.monotonic() - began < 2  # the text would take longer
        wait_until(lambda: server._service.models.get(None).model.kv_cache_bytes == 0)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """Its answer is larger than all buffers between it and the server."""
    with running(slow_model(), write_seconds=0.3) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port_of(server)))
        body = {"prompt": [1], "max_tokens": 4000, "stream": True, "n": 40, "logprobs": 20}
        connection.sendall(post("/v1/completions", body))
        wait_until(lambda: n_running(server) == 40)
        wait_until(lambda: n_running(server) == 0)
        wait_until(lambda: not server._server.server_state.connections)
        assert is_healthy(server)
        assert b"[DONE]" not in read_all(connection)
        connection.close()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_socket(tales: GPT2, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with running(tales, Address(unix_socket=path)), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
    assert not os.path.exists(path)


# ---- the command ----


def started(start: Callable[..., Any], *options: str, **environment: str) -> tuple[Any, int]:
    """Start the command; return its process and port once the models are loaded."""
    process = start(
        [*COMMAND, *options], stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    line = process.stderr.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    assert found, line
    assert process.stderr.readline() == "gpt2c: ready\n"
    return process, int(found[1])


def ask(port: int, body: dict[str, Any], **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    sent = {"Content-Type": "application/json", **headers}
    connection.request("POST", "/v1/completions", json.dumps(body), sent)
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM here")


@needs_signals
def test_sigterm_lets_requests_finish(start: Callable[..., Any], tales: GPT2) -> None:
    process, port = started(start, "--alias", "a=tales", "--dtype", "tales=float32")
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        body = {"prompt": "a", "max_tokens": 480, "seed": 1, "stream": True, "model": "a", "n": 8}
        connection.sendall(post("/v1/completions", body))
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        process.send_signal(signal.SIGTERM)
        assert b"data: [DONE]" in read_all(connection)
    assert process.wait(SECONDS) == 0


@needs_signals
def test_a_second_sigterm_ends_the_process_at_once(start: Callable[..., Any]) -> None:
    process, port = started(start)
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        body = {"prompt": "a", "max_tokens": 480, "seed": 1, "stream": True, "n": 128}
        connection.sendall(post("/v1/completions", body))
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(SECONDS) == 1
        assert time.monotonic() - began < 10
        assert b"data: [DONE]" not in read_all(connection)


def test_keys_and_models_of_the_command(start: Callable[..., Any], tales: GPT2) -> None:
    tales_path = str(Path(tales.tokenizer.source).parent)
    _, port = started(
        start, "--model", f"big={tales_path}", "--model", f"small={tales_path}",
        "--dtype", "small=int8", "--alias", "x=small", "--draft", "none",
        GPT2C_API_KEY="secret-key-1",
    )  # fmt: skip
    body = {"model": "x", "prompt": "Once", "max_tokens": 3, "temperature": 0}
    assert ask(port, body)[0] == 401
    status, answer = ask(port, body, Authorization="Bearer secret-key-1")
    assert (status, answer["model"]) == (200, "small")
    assert answer["system_fingerprint"].endswith("int8")
    status, answer = ask(port, {**body, "model": "big"}, Authorization="Bearer secret-key-1")
    assert answer["choices"][0]["text"] == tales.complete("Once", max_new_tokens=3).text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "/no/such/file"], "/no/such/file"),
        (["--model", "a=x", "--model", "a=y"], "two models"),
        (["--dtype", "b=int8"], "names no model"),
        (["--alias", "b"], "names no model"),
        (["--port", "70000"], "65535"),
        (["--seed", "-1"], "seed"),
        (["--root-path", "gpt"], "root-path"),
        (["--max-n", "0"], "max_n"),
        (["--api-key-file", "/no/such/file"], "/no/such/file"),
    ],
)
def test_a_wrong_option_is_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert main(["serve", "--port", "0", *options]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("gpt2c: ")
    assert named in last
