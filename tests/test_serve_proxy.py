"""Two servers behind nginx, with the configuration of docs/examples/nginx.conf.

tools/ci/serve_clients.sh installs nginx.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, wait_until
from serving import SECONDS
from test_serve_sockets import started

from gpt2c import GPT2

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
EXAMPLE = ROOT / "docs" / "examples" / "nginx.conf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif(not EXAMPLE.exists(), reason="not in a source tree"),
]
PROMPT = "Once upon a time there was a king"
MAIN = """daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
{example}
}}
"""


class Servers:
    """Two processes that serve, and the port of the proxy before them."""

    def __init__(self, start: Callable[..., Any], folder: Path) -> None:
        self.processes, self.ports = zip(*(started(start) for _ in range(2)), strict=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        text = EXAMPLE.read_text()
        for given, used in (
            ("listen 80;", f"listen 127.0.0.1:{self.port};"),
            ("127.0.0.1:8001", f"127.0.0.1:{self.ports[0]}"),
            ("127.0.0.1:8002", f"127.0.0.1:{self.ports[1]}"),
        ):
            assert text.count(given) == 1
            text = text.replace(given, used)
        config = folder / "nginx.conf"
        config.write_text(MAIN.format(folder=folder, example=text))
        start([NGINX, "-p", str(folder), "-c", str(config)], stderr=subprocess.PIPE)
        wait_until(self._is_up)

    def _is_up(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def n_texts(self, which: int) -> float:
        """Return how many texts a server has finished."""
        _, raw = ask(self.ports[which], "GET", "/metrics")
        counts = (line for line in raw.decode().splitlines() if "request_success_total{" in line)
        return sum(float(line.rpartition(" ")[2]) for line in counts)

    def n_running(self, which: int) -> float:
        _, raw = ask(self.ports[which], "GET", "/metrics")
        lines = raw.decode().splitlines()
        (line,) = [line for line in lines if line.startswith("vllm:num_requests_running{")]
        return float(line.rpartition(" ")[2])


@pytest.fixture
def servers(start: Callable[..., Any], tmp_path: Path) -> Servers:
    return Servers(start, tmp_path)


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    raw = None if body is None else json.dumps(body).encode()
    with closing(HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request(method, path, raw, {"Content-Type": "application/json"})
        with closing(connection.getresponse()) as answer:
            return answer.status, answer.read()


def without_id(raw: bytes) -> bytes:
    """Return an answer, or the events of one, without what differs each time."""
    first = raw.removeprefix(b"data: ").split(b"\n\n")[0]
    value = json.loads(first)
    for name in ("id", "created"):
        if name in value:
            raw = raw.replace(json.dumps(value[name]).encode(), b"")
    return raw


BODY = {"prompt": PROMPT, "max_tokens": 12, "seed": 5}
REQUESTS = [
    ("POST", "/v1/completions", BODY),
    ("POST", "/v1/completions", {**BODY, "logprobs": 3, "echo": True, "n": 2, "best_of": 3}),
    ("POST", "/v1/completions", {**BODY, "stream": True, "n": 2}),
    ("POST", "/v1/completions", {**BODY, "prompt": [PROMPT, "The"], "temperature": 0}),
    ("POST", "/v1/completions", {**BODY, "n": 0}),
    ("POST", "/v1/embeddings", {"input": [PROMPT]}),
    ("POST", "/score", {"context": PROMPT, "continuation": [" who", " and"], "logprobs": 1}),
    ("POST", "/tokenize", {"prompt": PROMPT}),
    ("GET", "/tokenizer_info", None),
    ("GET", "/nothing", None),
]


def test_both_servers_give_the_bytes_of_each(servers: Servers) -> None:
    for method, path, body in REQUESTS:
        status, raw = ask(servers.ports[0], method, path, body)
        wanted = status, without_id(raw)
        for port in (servers.ports[1], *[servers.port] * 4):
            status, raw = ask(port, method, path, body)
            assert (status, without_id(raw)) == wanted
    direct = 2 + 6 + 2 + 2  # texts of the requests above, before best_of
    n_texts = [servers.n_texts(which) for which in range(2)]
    assert all(n > direct for n in n_texts), n_texts  # the proxy used both


def test_a_stream_is_not_buffered_and_a_client_that_leaves_ends_it(servers: Servers) -> None:
    with socket.create_connection(("127.0.0.1", servers.port), SECONDS) as connection:
        body = json.dumps({"prompt": "a", "max_tokens": 500, "n": 64, "stream": True, "seed": 1})
        connection.sendall(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        received = b""
        while b"data: {" not in received:
            received += connection.recv(4096)
        assert sum(servers.n_running(which) for which in range(2)) > 0
        assert b"[DONE]" not in received
    wait_until(lambda: not any(servers.n_running(which) for which in range(2)))
    assert sum(servers.n_texts(which) for which in range(2)) == 0


def test_a_server_that_dies_loses_only_its_streams(servers: Servers, tales: GPT2) -> None:
    bodies = [
        {"prompt": f"{PROMPT} {i}", "max_tokens": 150, "seed": i, "stream": i % 2 == 0}
        for i in range(16)
    ]

    def text_of(body: dict[str, Any]) -> str | None:
        try:
            status, raw = ask(servers.port, "POST", "/v1/completions", body)
        except (HTTPException, OSError):
            return None
        assert status == 200, raw
        if not body["stream"]:
            return json.loads(raw)["choices"][0]["text"]
        if not raw.endswith(b"data: [DONE]\n\n"):
            return None
        events = [json.loads(e.removeprefix(b"data: ")) for e in raw.split(b"\n\n")[:-2]]
        return "".join(event["choices"][0]["text"] for event in events)

    with ThreadPoolExecutor(len(bodies)) as pool:
        texts = [pool.submit(text_of, body) for body in bodies]
        wait_until(lambda: servers.n_running(0) > 0 and servers.n_running(1) > 0)
        os.kill(servers.processes[0].pid, signal.SIGKILL)
    found = [future.result() for future in texts]
    wanted = [
        tales.complete(body["prompt"], max_new_tokens=150, temperature=1.0, seed=body["seed"]).text
        for body in bodies
    ]
    for body, text, expected in zip(bodies, found, wanted, strict=True):
        assert text == expected or (text is None and body["stream"])
    assert sum(text is None for text in found) <= len(bodies) // 2
    for _ in range(4):
        assert text_of(bodies[0]) == wanted[0]
