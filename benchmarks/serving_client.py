"""The clients of serving.py: raw sockets in one process, which takes little time from the server.

Reads lines of JSON that name a measurement of MEASUREMENTS and its arguments; the answer is a line
of JSON. Requests are bytes before the clock starts, and streams are parsed after it has stopped.
"""

from __future__ import annotations

import gc
import json
import os
import random
import selectors
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

LAST_CHUNK = b"\r\n0\r\n\r\n"  # of a chunked body, after the end of the one before
DONE = b"[DONE]"
PROMPT_LENGTHS = [4, 48]  # the least and the most tokens of a prompt
TEXT_LENGTHS = [32, 96]
SHORT_PROMPT = 12  # tokens of a newcomer's prompt
LONG_PROMPT = 1000  # tokens of the prompts that keep arriving


class Stream:
    """One request: when it was sent, and what came back at which time."""

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.parts: list[tuple[float, bytes]] = []
        self._tail = b""

    def add(self, at: float, part: bytes) -> None:
        """Keep what came at a time."""
        self.parts.append((at, part))
        self._tail = (self._tail + part)[-len(LAST_CHUNK) :]

    @property
    def is_over(self) -> bool:
        """Whether the last chunk has come."""
        return self._tail == LAST_CHUNK

    def token_times(self, is_whole: bool = True) -> list[float]:
        """Return when each token came; raise ValueError if the stream is not whole."""
        times: list[float] = []
        rest = b""
        is_done = False
        for at, part in self.parts:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(DONE, 6):
                    is_done = True
                elif is_token(json.loads(line[6:])):
                    times.append(at)
        if is_whole and not is_done:
            raise ValueError(f"no stream: {b''.join(part for _, part in self.parts)[:500]!r}")
        return times


def is_token(event: dict[str, Any]) -> bool:
    """Whether an event of a stream has a token. The event with the finish reason has none."""
    return any(choice["finish_reason"] is None for choice in event["choices"])


@dataclass(frozen=True)
class Server:
    """Where a server listens, and what its requests have besides the prompt and max_tokens."""

    port: int
    fields: dict[str, Any]
    keeps_connections: bool  # whether a connection stays open after a stream

    def requests(
        self, rng: random.Random, n_vocab: int, n_prompt: list[int], n_new: list[int]
    ) -> Iterator[bytes]:
        """Yield requests with random prompts; the numbers of tokens are from a least to a most."""
        while True:
            prompt = random_ids(rng, rng.randint(*n_prompt), n_vocab)
            yield self.request(prompt, rng.randint(*n_new), rng.randrange(2**31))

    def request(self, prompt: list[int], n_new: int, seed: int) -> bytes:
        """Return a whole HTTP request for a stream of n_new tokens."""
        fields = {"prompt": prompt, "max_tokens": n_new, "stream": True, "seed": seed}
        body = json.dumps({**fields, **self.fields}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Client:
    """A connection, which sends one request after another."""

    def __init__(self, server: Server, requests: Iterator[bytes], repeats: bool = False) -> None:
        self.server = server
        self.connect()
        self.streams: list[Stream] = []
        self.repeats = repeats  # whether the end of a request begins the next
        self._requests = requests

    def connect(self) -> None:
        """Make a new connection."""
        self.socket = socket.create_connection(("127.0.0.1", self.server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self) -> None:
        """Send the next request."""
        request = next(self._requests)
        self.streams.append(Stream(time.perf_counter()))
        self.socket.sendall(request)

    @property
    def is_idle(self) -> bool:
        """Whether no request runs, so that only the end of the connection can come."""
        return not self.streams or self.streams[-1].is_over

    def receive(self) -> bool:
        """Receive what is there; return whether the request has ended."""
        part = self.socket.recv(1 << 16)
        stream = self.streams[-1]
        stream.add(time.perf_counter(), part)
        if not part:
            raise ValueError(f"the server closed a connection: {stream.parts[-3:]}")
        return stream.is_over


class Loop:
    """Reads the answers of clients."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._clients: list[Client] = []
        self._n_active = 0

    def add(self, *clients: Client) -> None:
        """Read the answers of these clients from now on."""
        for client in clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)
            self._clients.append(client)

    def ask(self, *clients: Client) -> None:
        """Send a request of each client."""
        for client in clients:
            self._send(client)
            self._n_active += 1

    def _send(self, client: Client) -> None:
        if client.streams and not client.server.keeps_connections:
            self._selector.unregister(client.socket)
            client.socket.close()
            client.connect()
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        client.send()

    def run(self, until: float | None = None, end_of: Client | None = None) -> None:
        """Run until a time, the end of a client's request, or until nothing runs."""
        while self._n_active:
            left = None if until is None else max(until - time.perf_counter(), 0)
            has_ended = False
            for key, _ in self._selector.select(left):
                client: Client = key.data
                if client.is_idle or not client.receive():
                    continue
                if client.repeats:
                    self._send(client)
                else:
                    self._n_active -= 1
                has_ended |= client is end_of
            if has_ended or (until is not None and time.perf_counter() >= until):
                return

    def close(self) -> None:
        """Close all connections."""
        self._selector.close()
        for client in self._clients:
            client.socket.close()


def random_ids(rng: random.Random, n: int, n_vocab: int) -> list[int]:
    """Return random ids without the last one, which may be the EOS token."""
    return [rng.randrange(n_vocab - 1) for _ in range(n)]


def quantile(values: list[float], share: float) -> float:
    """Return the quantile of the values at `share`, from 0 to 1."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Return the times between two tokens of a stream, in seconds, from begin to end."""
    return [b - a for a, b in pairwise(times) if begin <= a and b <= end]


# ---- measurements ----


def measure_load(
    server: Server, seed: str, n_vocab: int, clients: int, seconds: float
) -> dict[str, float]:
    """Let clients send one request after another; return rates and times in seconds.

    Prompts have 4 to 48 tokens, and texts 32 to 96.
    """
    n_ready = 8 + int(60 * seconds / clients**0.5)  # more than a client will need
    loop, everyone = Loop(), []
    for i in range(clients):
        rng = random.Random(f"{seed} {i}")
        source = server.requests(rng, n_vocab, PROMPT_LENGTHS, TEXT_LENGTHS)
        everyone.append(Client(server, iter([*islice(source, n_ready)]), repeats=True))
    loop.add(*everyone)
    loop.ask(*everyone)
    # The clock starts when some texts have ended, because all of them begin at once.
    while sum(len(client.streams) - 1 for client in everyone) < clients / 4:
        loop.run(until=time.perf_counter() + 0.05)
    cpu, begin = time.process_time(), time.perf_counter()
    loop.run(until=begin + seconds)
    cpu, end = time.process_time() - cpu, time.perf_counter()
    for client in everyone:  # the server must be idle before the next measurement
        client.repeats = False
    loop.run()
    loop.close()
    streams = [stream for client in everyone for stream in client.streams]
    found = [(stream.begin, stream.token_times()) for stream in streams]
    between = [gap for _, times in found for gap in gaps(times, begin, end)]
    first = [times[0] - sent for sent, times in found if begin <= times[0] <= end]
    return {
        "rate": sum(begin < at <= end for _, times in found for at in times) / (end - begin),
        "first p50": quantile(first, 0.5), "first p99": quantile(first, 0.99),
        "between p50": quantile(between, 0.5), "between p99": quantile(between, 0.99),
        "client": cpu / (end - begin),
    }  # fmt: skip


def measure_burst(
    server: Server, prompts: list[list[int]], seeds: list[int], n_new: int
) -> dict[str, float]:
    """Let a client for each prompt send one request, all at once; return the tokens per second."""
    everyone = [
        Client(server, iter([server.request(prompt, n_new, seed)]))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    loop = Loop()
    loop.add(*everyone)
    cpu, begin = time.process_time(), time.perf_counter()
    loop.ask(*everyone)
    loop.run()
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - begin
    loop.close()
    n_tokens = [len(client.streams[0].token_times()) for client in everyone]
    if any(n != n_new for n in n_tokens):
        raise ValueError(f"expected {n_new} tokens in each stream, got {n_tokens}")
    return {"rate": sum(n_tokens) / seconds, "client": cpu / seconds}


def measure_newcomers(
    server: Server, seed: int, n_vocab: int, clients: int, seconds: float
) -> dict[str, float]:
    """Return times in seconds: between two tokens of clients that run, and of those that come.

    First newcomers with short prompts come; then prompts of 1,000 tokens keep arriving.
    """
    rng = random.Random(seed)
    loop = Loop()
    short = Client(server, server.requests(rng, n_vocab, [SHORT_PROMPT] * 2, [1, 1]))
    long = Client(server, server.requests(rng, n_vocab, [LONG_PROMPT] * 2, [1, 1]), repeats=True)
    running = [
        Client(server, server.requests(rng, n_vocab, [8, 8], [1000, 1000])) for _ in range(clients)
    ]
    loop.add(short, long, *running)
    for _ in range(9):
        loop.ask(short)
        loop.run(end_of=short)
    alone = first_token_times(short)
    short.streams.clear()
    loop.ask(*running)
    loop.run(until=time.perf_counter() + 0.5)  # the prompts
    begin = time.perf_counter()
    loop.run(until=begin + seconds)
    quiet_end = time.perf_counter()
    for _ in range(25):
        loop.run(until=time.perf_counter() + rng.uniform(0.02, 0.06))
        loop.ask(short)
        loop.run(end_of=short)
    busy_begin = time.perf_counter()
    loop.ask(long)
    loop.run(until=busy_begin + seconds)
    busy_end = time.perf_counter()
    n_arrived = len(long.streams)
    loop.close()
    came = first_token_times(short)
    found = [client.streams[0].token_times(is_whole=False) for client in running]
    if any(times[-1] < busy_end - 0.5 for times in found):
        raise ValueError("a text ended before the measurement: lower --seconds")
    quiet = [gap for times in found for gap in gaps(times, begin, quiet_end)]
    busy = [gap for times in found for gap in gaps(times, busy_begin, busy_end)]
    return {
        "quiet p50": quantile(quiet, 0.5), "quiet p99": quantile(quiet, 0.99),
        "busy p50": quantile(busy, 0.5), "busy p99": quantile(busy, 0.99),
        "alone": quantile(alone, 0.5), "newcomer p50": quantile(came, 0.5),
        "newcomer max": max(came), "arrivals": n_arrived / (busy_end - busy_begin),
    }  # fmt: skip


def measure_build() -> str:
    return "raw sockets"


def first_token_times(client: Client) -> list[float]:
    """Return the seconds from each request of a client to its first token."""
    return [stream.token_times()[0] - stream.begin for stream in client.streams]


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "build": measure_build,
    "load": measure_load,
    "burst": measure_burst,
    "newcomers": measure_newcomers,
}


def main() -> None:
    # The pipe is for answers only.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    gc.disable()  # a collection would delay a time stamp
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            if "server" in arguments:
                arguments["server"] = Server(**arguments["server"])
            answer: dict[str, Any] = {"value": MEASUREMENTS[name](**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=pipe)
        gc.collect()


if __name__ == "__main__":
    main()
