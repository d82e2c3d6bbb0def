"""Measures the example web apps: 32 clients at once, next to one call with all their prompts.

    python benchmarks/web_apps.py [--checkpoint FOLDER] [--dtype int8] [--clients 32] [--repeats 3]

Runs docs/examples/flask_app.py and fastapi_app.py in servers of their own, with the checkpoint as
their model. Prints the rate of the simultaneous clients as a share of that of one call of
`generate`, and as a multiple of the rate of clients that come one after another. All ways get the
same prompts, by turns; each turn has new ones. The ratios are medians over the turns. If a client
gets another text than the one call, the script exits with status 1.

Needs Flask, and FastAPI with uvicorn. Without one of them it measures the other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from separate_calls import make_checkpoint

import gpt2c

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
APPS = {"flask": ("flask",), "fastapi": ("fastapi", "uvicorn")}  # and the packages of each
PATHS = {"flask": "/complete", "fastapi": "/stream"}
TEMPERATURE = 0.8  # as the apps have it
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    options = arguments()
    make_checkpoint(options.checkpoint)
    if options.serve is not None:
        serve(options.serve, options)
        return
    servers: dict[str, Server] = {}
    try:
        for app, packages in APPS.items():
            if missing := [name for name in packages if find_spec(name) is None]:
                print(f"{app}: not measured: pip install {' '.join(missing)}")
            else:
                servers[app] = Server(app, options)
        measure(servers, options)
    finally:
        for server in servers.values():
            server.close()


# ---- a server's process ----


def serve(app: str, options: argparse.Namespace) -> None:
    """Run an example app, with the checkpoint as its model."""
    sys.path.insert(0, str(EXAMPLES))
    module = importlib.import_module(f"{app}_app")
    module.model = load(options)
    if app == "flask":
        module.app.run(port=options.port)
    else:
        module.uvicorn.run(module.app, port=options.port, log_level="error")


def load(options: argparse.Namespace) -> gpt2c.GPT2:
    """Return the model, which does not remember the prompts that it has seen."""
    return gpt2c.GPT2.from_pretrained(
        options.checkpoint, dtype=options.dtype, threads=options.threads, prefix_cache_bytes=0
    )


class Server:
    """A process that serves an example app."""

    def __init__(self, app: str, options: argparse.Namespace) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        self._app, self._log = app, tempfile.TemporaryFile()  # noqa: SIM115
        given = {
            "serve": app, "port": self._port, "checkpoint": options.checkpoint,
            "dtype": options.dtype, "threads": options.threads,
        }  # fmt: skip
        command = [sys.executable, __file__]
        command += [f"--{name}={value}" for name, value in given.items()]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        while not self._is_up():
            time.sleep(0.1)
            if self._process.poll() is not None:
                raise SystemExit(f"the server of {app} ended: {self._output()}")

    def _is_up(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def text(self, prompt: str, seed: int, tokens: int) -> str:
        """Return the answer to one request."""
        query = urlencode({"prompt": prompt, "max_new_tokens": tokens, "seed": seed})
        connection = HTTPConnection("127.0.0.1", self._port)
        connection.request("GET", f"{PATHS[self._app]}?{query}")
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        if response.status != 200:
            raise SystemExit(f"{self._app} answered {response.status}: {body} {self._output()}")
        return str(json.loads(body)["text"]) if self._app == "flask" else body

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


# ---- the measurement ----


def at_once(server: Server, prompts: list[str], tokens: int) -> tuple[list[str], float]:
    """Return the answers to simultaneous clients, and the seconds until the last answer."""
    barrier = threading.Barrier(len(prompts) + 1)

    def ask(seed: int) -> str:
        barrier.wait()
        return server.text(prompts[seed], seed, tokens)

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = [pool.submit(ask, seed) for seed in range(len(prompts))]
        barrier.wait()
        begin = time.perf_counter()
        return [answer.result() for answer in answers], time.perf_counter() - begin


def in_turn(server: Server, prompts: list[str], tokens: int) -> tuple[list[str], float]:
    """Return the answers to clients that come one after another, and the seconds."""
    begin = time.perf_counter()
    texts = [server.text(prompt, seed, tokens) for seed, prompt in enumerate(prompts)]
    return texts, time.perf_counter() - begin


def one_call(model: gpt2c.GPT2, prompts: list[str], tokens: int) -> tuple[list[Any], float]:
    """Return the completions of one call, and the seconds."""
    begin = time.perf_counter()
    done = model.complete(
        prompts, max_new_tokens=tokens, temperature=TEMPERATURE, seed=[*range(len(prompts))],
        batch_size=len(prompts),
    )  # fmt: skip
    return done, time.perf_counter() - begin


def make_prompts(turn: int, n: int) -> list[str]:
    """Return prompts of ragged lengths, which share no prefix."""
    rng = random.Random(turn)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 7))) for _ in range(20 * n)]
    return [" ".join(words[20 * i : 20 * i + rng.randint(2, 20)]) for i in range(n)]


def measure(servers: dict[str, Server], options: argparse.Namespace) -> None:
    """Measure all ways by turns, and print the ratios."""
    model = load(options)
    rates: dict[str, list[float]] = {}
    for turn in range(-1, options.repeats):  # the first turn, -1, is a warm-up
        prompts = make_prompts(turn, options.clients)
        done, seconds = one_call(model, prompts, options.tokens)
        n_tokens = sum(len(completion.ids) for completion in done)
        found = {"one call": seconds}
        for app, server in servers.items():
            for way, ask in (("at once", at_once), ("in turn", in_turn)):
                texts, found[f"{app} {way}"] = ask(server, prompts, options.tokens)
                if texts != [completion.text for completion in done]:
                    raise SystemExit(f"{app}, {way}: a text differs from that of the one call")
        for name, seconds in found.items():
            if turn >= 0:
                rates.setdefault(name, []).append(n_tokens / seconds)
    print(f"{options.clients} clients, {options.checkpoint.name} {options.dtype}, "
          f"{options.tokens} tokens each; all texts are those of one call")  # fmt: skip
    for app in servers:
        for name in ("one call", f"{app} in turn"):
            a, b = rates[f"{app} at once"], rates[name]
            ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
            medians = f"{statistics.median(a):,.0f} / {statistics.median(b):,.0f} tok/s"
            print(f"{app} at once / {name}: {medians} = {ratio:.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    folder = Path(tempfile.gettempdir()) / "gpt2c-benchmarks" / "124M"
    add = parser.add_argument
    add("--checkpoint", type=Path, default=folder,
        help="default: random weights with the shapes of 124M")  # fmt: skip
    add("--dtype", default="int8")
    add("--clients", type=int, default=32)
    add("--tokens", type=int, default=48, help="of each text")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2, help="of the engine")
    add("--serve", choices=[*APPS], help=argparse.SUPPRESS)
    add("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
