"""Traces of clients of a server: what they ask, when, and how they behave; and checks of answers.

A trace is made from its seed. Its clients come in bursts, disconnect at every stage of a request,
read slowly, send bodies in parts and in chunks, ask several questions at once on one connection,
and send bytes that are no HTTP. Every answer that is complete must be what GPT2 gives alone in this
process, to the bit.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from http_client import (
    ClosedError,
    FindingError,
    Reply,
    ServerProcess,
    Watchdog,
    as_json,
    ask,
    check_error,
    metric_values,
    read_reply,
    request_bytes,
)
from http_inputs import VALUES, make_input
from served_oracle import prompts_of

from gpt2c import GPT2

WORDS = [
    "Once",
    " upon",
    " a time",
    " there",
    " was",
    " the king",
    "\n",
    "é",
    ".",
    "日",
    "<|endoftext|>",
]
MAX_SECONDS = 120
# What a client does; see Tracer._do.
MANNERS = {
    "plain": 50, "split body": 6, "chunked body": 6, "pipeline": 5, "slow": 6, "leave at once": 6,
    "leave soon": 7, "leave in stream": 7, "leave in body": 4, "malformed": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A request of a trace, and when it is made, in seconds since the trace began."""

    number: int
    at: float
    path: str
    body: dict[str, Any]
    manner: str

    def __repr__(self) -> str:
        body = as_json(self.body).decode()
        return f"request {self.number}: {self.manner}, POST {self.path} {body[:4000]}"


# ---- making traces ----


def make_trace(seed: int, n: int, rate: float, models: Mapping[str, GPT2]) -> list[Planned]:
    """Return n requests at about `rate` per second, in bursts and lulls."""
    trace = []
    clock = random.Random(f"{seed} times")
    at, left = 0.0, 0
    for number in range(n):
        if left == 0:
            left, pace = clock.choice(((1, 1.0), (20, 1.0), (40, 0.05), (10, 0.0), (8, 3.0)))
        at += clock.expovariate(rate) * pace
        left -= 1
        rng = random.Random(f"{seed} {number}")
        path, body = _request(rng, models)
        (manner,) = rng.choices([*MANNERS], [*MANNERS.values()])
        if manner == "leave in stream" and path == "/v1/completions":
            body |= {"stream": True, "best_of": body.get("n", 1), "max_tokens": 40}
        trace.append(Planned(number, at, path, body, manner))
    return trace


def _prompt(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.choice((0, 1, 2, 5, 9))))


def _prompts(rng: random.Random, n_vocab: int) -> Any:
    def ids() -> list[int]:
        return [rng.randrange(n_vocab) for _ in range(rng.choice((1, 2, 7)))]

    kind = rng.randrange(8)
    if kind < 5:
        return _prompt(rng)
    n = rng.choice((1, 2, 3))
    return ([_prompt(rng) for _ in range(n)], ids(), [ids() for _ in range(n)])[kind - 5]


def _request(rng: random.Random, models: Mapping[str, GPT2]) -> tuple[str, dict[str, Any]]:
    name = rng.choice([*models])
    n_vocab = models[name].config.vocab_size
    kind = rng.randrange(20)
    if kind == 0:
        body = {"model": name, "input": _prompts(rng, n_vocab)}
        return "/v1/embeddings", body | {"encoding_format": rng.choice(("float", "base64"))}
    if kind in (1, 2):
        body = {"context": _prompts(rng, n_vocab), "continuation": _prompts(rng, n_vocab)}
        return "/score", {"model": name, **body, "logprobs": rng.choice((0, 2, 5))}
    if kind == 3:
        return "/tokenize", {"model": name, "prompt": _prompt(rng)}
    body = {"model": name, "prompt": _prompts(rng, n_vocab)}
    body["max_tokens"] = rng.choice((0, 1, 3, 8, 16, 40))
    fields = sorted({*VALUES} - {"model", "max_tokens", "t_max_predict_ms", "request_id"})
    for field in rng.sample(fields, rng.choice((0, 1, 2, 3, 5, 8))):
        body[field] = VALUES[field](rng)
    if rng.random() < 0.4:
        body["stream"] = True
    if rng.random() < 0.01:
        body["prompt"] = "many words " * 300  # more than the context
    _make_valid(body, rng)
    return "/v1/completions", body


# Fields, and those that are errors without them.
_NEEDS = {
    "dry_multiplier": {"dry_base", "dry_allowed_length", "dry_sequence_breakers",
                       "dry_penalty_last_n"},
    "xtc_probability": {"xtc_threshold"},
    "mirostat_tau": {"mirostat_eta"},
}  # fmt: skip


def _make_valid(body: dict[str, Any], rng: random.Random) -> None:
    """Change combinations that are errors."""
    n = body.get("n", 1)
    if "best_of" in body:
        body["best_of"] = n if body.get("stream") else max(body["best_of"], n)
    if "stream_options" in body:
        body["stream"] = True
        body["best_of"] = n
    for switch, others in _NEEDS.items():
        if body.keys() & others:
            body.setdefault(switch, VALUES[switch](rng))
    if "min_tokens" in body:
        body["min_tokens"] = min(body["min_tokens"], body["max_tokens"])
    if "seed" in body and rng.random() < 0.3:
        body["seed"] = [rng.randrange(2**64) for _ in prompts_of(body["prompt"])]


# ---- the clients ----

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# Errors that a request may meet because of others, or of the time.
TEMPORARY = {"queue_full", "out_of_memory", "connections", "header_time", "body_time", "stopping"}


def _error_code(reply: Reply) -> str | None:
    """Return the code of an answer's error, or of the error that ended a stream."""
    if reply.status != 200:
        return check_error(reply)["code"] or "error"
    if reply.is_stream and (events := reply.events()) and "error" in events[-1]:
        code: str = events[-1]["error"]["code"]
        return code
    return None


class Tracer:
    """Plays a trace against a server; keeps the answers that are to be compared."""

    def __init__(self, server: ServerProcess, seed: int, headers: Mapping[str, str]) -> None:
        self.server, self.seed, self.headers = server, seed, headers
        self.counts: Counter[str] = Counter()
        self.replies: list[tuple[Planned, Reply]] = []
        self.watchdog = Watchdog(MAX_SECONDS)
        self._idle: list[Connection] = []

    async def play(self, trace: list[Planned]) -> None:
        """Make all requests of a trace at their times; raise FindingError for a wrong answer."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self.watchdog.run())
                tasks = []
                for planned in trace:
                    await asyncio.sleep(max(begin + planned.at - loop.time(), 0))
                    tasks.append(group.create_task(self.make(planned)))
                if tasks:
                    await asyncio.wait(tasks)
                watching.cancel()
        except* FindingError as group_error:
            raise group_error.exceptions[0] from None
        finally:
            self.close()

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle = []

    async def make(self, planned: Planned) -> None:
        """Make one request."""
        name = f"seed {self.seed}, {planned!r}"
        self.watchdog.begin(name)
        try:
            found = await self._do(planned)
        except (FindingError, ConnectionError, ClosedError) as error:
            raise FindingError(f"{name}: {type(error).__name__}: {error}") from None
        finally:
            self.watchdog.end(name)
        if isinstance(found, str):
            self.counts[f"{planned.manner}: {found}"] += 1
            return
        for reply in found:
            code = _error_code(reply)
            self.counts[f"{planned.manner}: {reply.status} {code or ''}".rstrip()] += 1
            if code in TEMPORARY:
                continue
            self.replies.append((planned, reply))

    async def _do(self, planned: Planned) -> list[Reply] | str:
        """Behave as planned; return the answers, or a word if there are none."""
        rng = random.Random(f"{self.seed} {planned.number} behaviour")
        raw = as_json(planned.body)
        if planned.manner in ("plain", "pipeline"):
            return await self._on_kept(planned, raw)
        reader, writer = await asyncio.open_unix_connection(self.server.socket, limit=1 << 22)
        try:
            return await self._on_new(planned, rng, raw, reader, writer)
        except ConnectionError:
            if planned.manner.startswith("leave") or planned.manner == "malformed":
                return "reset"
            raise
        finally:
            writer.close()

    async def _on_kept(self, planned: Planned, raw: bytes) -> list[Reply]:
        """Ask over a connection that is kept, or over a new one."""
        n = 3 if planned.manner == "pipeline" else 1
        sent = request_bytes("POST", planned.path, raw, self.headers) * n
        while True:
            is_kept = bool(self._idle)
            if is_kept:
                reader, writer = self._idle.pop()
            else:
                reader, writer = await asyncio.open_unix_connection(
                    self.server.socket, limit=1 << 22
                )
            try:
                writer.write(sent)
                replies = [await read_reply(reader) for _ in range(n)]
            except (ClosedError, ConnectionError):
                writer.close()
                if is_kept:  # the server closed it before it saw the request
                    continue
                raise
            if replies[-1].closes:
                writer.close()
            else:
                self._idle.append((reader, writer))
            return replies

    async def _on_new(
        self, planned: Planned, rng: random.Random, raw: bytes,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> list[Reply] | str:  # fmt: skip
        manner = planned.manner
        whole = request_bytes("POST", planned.path, raw, self.headers)
        if manner == "malformed":
            given = make_input(self.seed, rng.randrange(10**9))
            writer.write(b"".join(given.parts))
            await writer.drain()
            writer.write_eof()
            await reader.read()
            return "closed"
        if manner == "leave in body":
            writer.write(whole[: rng.randrange(len(whole))])
            await writer.drain()
            await asyncio.sleep(rng.choice((0, 0.01, 0.2)))
            return "left"
        if manner == "split body":
            for begin in range(0, len(whole), step := max(len(whole) // 5, 1)):
                writer.write(whole[begin : begin + step])
                await asyncio.sleep(0.005)
        elif manner == "chunked body":
            headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
            head = request_bytes("PUT", planned.path, b"", {**self.headers, **headers})
            half = len(raw) // 2
            parts = [
                b"%x\r\n%s\r\n" % (len(part), part) for part in (raw[:half], raw[half:]) if part
            ]
            writer.write(b"POST" + head[3:] + b"".join(parts) + b"0\r\n\r\n")
        else:
            writer.write(whole)
        await writer.drain()
        if manner == "leave at once":
            return "left"
        if manner == "leave soon":
            await asyncio.sleep(rng.choice((0.001, 0.01, 0.1)))
            return "left"
        if manner == "leave in stream":
            await reader.read(rng.choice((1, 200, 1500)))
            return "left"
        if manner == "slow":
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(rng.choice((0.1, 0.5, 2)))
            writer.transport.resume_reading()  # type: ignore[attr-defined]
        return [await read_reply(reader)]


# ---- the server after a trace ----


async def check_idle(server: ServerProcess, headers: Mapping[str, str], most_kept: int) -> None:
    """Wait until nothing runs or waits, and the KV caches hold at most what the prefix caches may.

    Raises FindingError if that does not happen within a minute.
    """
    for _ in range(600):
        reply = await ask(server.socket, "GET", "/metrics", headers=headers)
        values = metric_values(reply.body.decode())
        busy = {name: value for name, value in values.items() if value and name.startswith(_BUSY)}
        busy |= {name: v for name, v in values.items() if name.startswith(_CACHE) and v > most_kept}
        if not busy:
            return
        await asyncio.sleep(0.1)
    raise FindingError(f"no client is left, but after a minute there is {busy}")


_BUSY = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
_CACHE = "gpt2c:kv_cache_bytes{"
