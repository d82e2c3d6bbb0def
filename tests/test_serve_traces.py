"""Short traces of clients, and a short fuzz of the HTTP border; tools/soak/ has the long ones."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import (
    BACKENDS,
    ISAS,
    TALES,
    config_of,
    model_on,
    random_weights,
    wait_until,
)

pytest.importorskip("resource")  # the fuzzers need Unix

from http_client import FindingError, Reply, as_json, request_bytes, server_process
from http_fuzzing import app_of, check_reply, fuzz, server_options
from http_inputs import KEY, LEVELS, make_input
from model_folders import folder_of
from served_answers import check_answer
from served_traces import MANNERS, Tracer, check_idle, make_trace
from test_serve_sockets import running

from gpt2c import GPT2
from gpt2c.serve.server import Address

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the memory of servers is read from /proc"
)
SOAK = Path(__file__).parents[1] / "tools" / "soak"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(folder_of(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def models(tiny: str) -> dict[str, GPT2]:
    names = {"tiny": tiny, **({"tales": TALES} if ISAS else {})}
    return {name: GPT2.from_pretrained(path, prefix_cache_bytes=0) for name, path in names.items()}


# ---- traces ----


def test_a_trace_has_the_answers_of_complete_alone(tiny: str, models: dict[str, GPT2]) -> None:
    paths = {"tiny": tiny, "tales": str(TALES)}
    options = [part for name in models for part in ("--model", f"{name}={paths[name]}")]
    trace = make_trace(5, 150, 60, models)
    assert {planned.manner for planned in trace} == {*MANNERS}
    with server_process(*options, "--prefix-cache-bytes", "200000") as server:
        tracer = Tracer(server, 5, {})

        async def play() -> None:
            await server.wait_until_ready()
            await tracer.play(trace)
            await check_idle(server, {}, 200_000)

        asyncio.run(play())
        server.check_alive()
        assert server.stop() == 0
    for planned, reply in tracer.replies:
        check_answer(models[planned.body["model"]], planned.path, planned.body, reply)
    assert len(tracer.replies) > 90


def test_a_trace_is_made_from_its_seed(models: dict[str, GPT2]) -> None:
    assert make_trace(3, 40, 20, models) == make_trace(3, 40, 20, models)
    assert make_trace(3, 40, 20, models) != make_trace(4, 40, 20, models)


def test_another_answer_is_a_finding(models: dict[str, GPT2]) -> None:
    """The check of answers sees one character and one bit."""
    model = models["tiny"]
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 4, "temperature": 0, "logprobs": 1}
    alone = model.complete("ab", max_new_tokens=4, logprobs=1)
    assert alone.logprobs is not None
    assert alone.text is not None
    choice = {
        "index": 0, "text": alone.text, "finish_reason": alone.finish_reason, "seed": None,
        "logprobs": {"tokens": [], "token_logprobs": alone.logprobs, "top_logprobs": [],
                     "text_offset": []},
    }  # fmt: skip
    for change in ({"text": alone.text + "!"}, {"seed": 1}, {"finish_reason": "time"}, {}):
        answer = {"object": "text_completion", "model": "tiny", "choices": [{**choice, **change}]}
        with pytest.raises(FindingError, match="a choice"):
            check_answer(model, "/v1/completions", body, Reply(200, {}, as_json(answer)))


def test_the_buffer_of_a_client_that_does_not_read_is_bounded(tmp_path: Path) -> None:
    """It is at most asyncio's 64 KiB, the outbox's 16 KiB and one event; the stream has over 1 MB.

    An event here has 21 tokens of at most 100 bytes.
    """
    path = str(tmp_path / "socket")
    config = config_of(n_positions=300)
    model = model_on(BACKENDS[-1], config, random_weights(config))
    with (
        running(model, Address(unix_socket=path)) as server,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.connect(path)
        body = {"prompt": [1], "max_tokens": 280, "stream": True, "n": 6, "logprobs": 20}
        connection.sendall(request_bytes("POST", "/v1/completions", as_json(body)))
        connections = server._server.server_state.connections
        wait_until(lambda: any(c.flow.write_paused for c in connections))
        (stream,) = connections
        scheduler = server._service.models.get(None).scheduler
        wait_until(lambda: scheduler.n_running == 0)  # all tokens are there
        assert 0 < stream.transport.get_write_buffer_size() < 65536 + 16384 + 2500
        answer = b""
        while b"data: [DONE]" not in answer[-100:]:
            answer += connection.recv(1 << 16)
        assert len(answer) > 1_000_000


# ---- the fuzz ----


def test_mutated_requests_get_proper_answers(tiny: str) -> None:
    with (
        server_process(*server_options(tiny), GPT2C_API_KEY=KEY) as server,
        app_of(tiny) as app,
    ):

        async def run() -> Any:
            await server.wait_until_ready()
            return await fuzz(server, app, 7, range(1500))

        counts = asyncio.run(run())
        assert server.stop() == 0
    levels = {name.partition(", ")[2].partition(":")[0] for name in counts}
    assert levels == {*LEVELS}
    assert 0.05 < sum(n for name, n in counts.items() if ": 200" in name) / 1500 < 0.5
    assert len(counts) > 60


def test_an_input_is_made_from_its_seed_and_number() -> None:
    assert make_input(1, 5) == make_input(1, 5)
    assert make_input(1, 5) != make_input(2, 5)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, {"content-type": "application/json"}, b"{}"),
        Reply(400, {"content-type": "text/plain"}, b"no"),
        Reply(400, {"content-type": "application/json"}, b'{"error":"no"}'),
        Reply(200, {"content-type": "application/json"}, b'{"a":NaN}'),
        Reply(200, {"content-type": "text/event-stream"}, b"data: 1\n\n"),
    ],
)
def test_an_improper_answer_is_a_finding(reply: Reply) -> None:
    with pytest.raises(FindingError):
        check_reply(reply)


def test_a_server_that_never_answers_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("http_fuzzing.MAX_SECONDS", 1)

    async def never(*_: object) -> None:
        await asyncio.sleep(1000)

    server: Any = SimpleNamespace(check_alive=lambda: None)
    (number, *_) = (i for i in range(1, 10) if make_input(7, i).framed is not None)
    with pytest.raises(FindingError, match=f"no end after 1 seconds of seed 7, input {number}"):
        asyncio.run(fuzz(server, never, 7, [number]))


# ---- the scripts ----


@pytest.mark.slow
@pytest.mark.skipif(not ISAS, reason="the engine is not compiled")
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("serve_traces", ["--requests", "100"]),
        ("serve_fuzz", ["--requests", "300"]),
        ("serve_failures", ["--seconds", "0.1"]),
    ],
)
def test_a_soak_script_prints_its_seed_and_result_last(script: str, options: list[str]) -> None:
    command = [sys.executable, str(SOAK / f"{script}.py"), "--seed", "3", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{script}: seed 3, ")
    assert last.endswith(": nothing found")
