"""Sends mutated HTTP requests to a server: a fuzz of its HTTP border.

A finding is an input that is not answered or closed in time, an answer that is not HTTP, JSON or
OpenAI's error, a status that is not documented, and a traceback, a growth of memory or the end of
the server's process. http_inputs.py makes the inputs.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from http_client import (
    ClosedError,
    CutError,
    FindingError,
    Reply,
    ResetError,
    ServerProcess,
    Watchdog,
    check_error,
    read_reply,
)
from http_inputs import KEY, Input, make_input
from serving import service_of

from gpt2c import GPT2
from gpt2c.serve.app import make_app
from gpt2c.serve.limits import Limits
from gpt2c.serve.security import Access, digest

# Small limits, so that inputs reach them.
LIMITS = {
    "--max-body-bytes": 40_000, "--max-header-bytes": 4096, "--max-prompts": 16,
    "--max-prompt-chars": 8000, "--max-n": 6, "--max-logprobs": 8, "--max-stops": 4,
    "--max-items": 64, "--max-running": 16, "--max-queued": 48, "--max-scoring": 8,
    "--header-seconds": 0.5, "--body-seconds": 0.5, "--request-seconds": 20, "--idle-seconds": 1,
    "--write-seconds": 5,
}  # fmt: skip
PREFIX_CACHE_BYTES = 1 << 20  # so that it is soon full
MAX_SECONDS = 30  # for an answer; a machine that runs other programs may take some of it
STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 503}
_CODES_503 = {"out_of_memory", "queue_time", "stopping", "loading", "connections"}
N_CONNECTIONS = 24


@contextmanager
def app_of(model: str) -> Iterator[Any]:
    """Return the app of the server to fuzz, in this process."""
    limits = Limits(**{name[2:].replace("-", "_"): value for name, value in LIMITS.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = GPT2.from_pretrained(model, threads=1, prefix_cache_bytes=PREFIX_CACHE_BYTES)
    access = Access(key_digests=(digest(KEY),))
    service = service_of({"tiny": loaded}, aliases={"tiny": ["t"]}, limits=limits, access=access)
    try:
        yield make_app(service)
    finally:
        service.close()


def server_options(model: str) -> list[str]:
    """Return the options of the server to fuzz; its environment needs GPT2C_API_KEY=KEY."""
    limits = [part for name, value in LIMITS.items() for part in (name, f"{value:g}")]
    return ["--model", f"tiny={model}", "--alias", "t=tiny", "--threads", "1", *limits,
            "--prefix-cache-bytes", str(PREFIX_CACHE_BYTES)]  # fmt: skip


# ---- sending ----


def check_reply(reply: Reply, has_body: bool = True) -> str:
    """Return the kind of an answer. Raises FindingError if it is not a proper one."""
    if reply.status not in STATUSES:
        raise FindingError(f"the status is {reply.status}: {reply}")
    if not has_body:
        return f"{reply.status} to HEAD"
    if reply.status != 200:
        code = check_error(reply)["code"]
        if reply.status == 503 and code not in _CODES_503:
            raise FindingError(f"the error is {code}: {reply}")
        return f"{reply.status} {code}" if code else str(reply.status)
    if reply.is_stream:
        reply.events()
        return "200 stream"
    if reply.headers.get("content-type") == "application/json":
        reply.json()
    return "200"


async def ask_app(app: Any, method: str, path: str, body: bytes) -> Reply:
    """Ask an app in this process."""
    done = asyncio.Event()
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    reply = Reply(0, {})

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            reply.body += message["body"]
            if not message.get("more_body", False):
                done.set()

    headers = {"host": "localhost", "content-type": "application/json",
               "content-length": str(len(body)), "authorization": f"Bearer {KEY}"}  # fmt: skip
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "root_path": "",
        "http_version": "1.1", "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    return reply


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Fuzzer:
    """Sends inputs over several connections at once, or to an app in this process."""

    def __init__(self, server: ServerProcess, app: Any, seed: int, numbers: Iterable[int]) -> None:
        self.server, self.app, self.seed = server, app, seed
        self.counts: Counter[str] = Counter()
        self._numbers = iter(numbers)
        self._watchdog = Watchdog(MAX_SECONDS)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watchdog.run())
            workers = [group.create_task(self._work()) for _ in range(N_CONNECTIONS)]
            await asyncio.wait(workers)
            watching.cancel()

    async def _work(self) -> None:
        connection: Connection | None = None
        for number in self._numbers:
            given = make_input(self.seed, number)
            is_inside = self.app is not None and given.framed is not None and number % 10 > 0
            what = f"seed {self.seed}, input {number}"
            self._watchdog.begin(what)
            try:
                if is_inside:
                    kind = check_reply(await ask_app(self.app, *given.framed))  # type: ignore[misc]
                elif given.framed is not None:
                    connection, kind = await self._framed(given, connection)
                else:
                    kind = await self._unframed(given)
                self._watchdog.end(what)
            except (FindingError, ConnectionError) as error:
                raise self._finding(number, given, f"{type(error).__name__}: {error}") from None
            self.counts[f"{'app' if is_inside else 'socket'}, {given.level}: {kind}"] += 1
        if connection is not None:
            connection[1].close()

    def _finding(self, number: int, given: Input, what: str) -> FindingError:
        sent = b"".join(given.parts)
        return FindingError(
            f"seed {self.seed}, input {number} ({given}): {what}; sent {sent[:3000]!r}"
        )

    async def _framed(
        self, given: Input, connection: Connection | None, n_tries: int = 0
    ) -> tuple[Connection | None, str]:
        """Send an input over a connection that is used again, or over a new one.

        The server may have closed the connection, because it was idle or because this process was
        stopped between connecting and sending; so there are further tries.
        """
        reader, writer = connection or await self._connect()
        try:
            writer.write(given.parts[0])
            reply = await read_reply(reader)
        except (ClosedError, ConnectionError):
            writer.close()
            if n_tries == 5:
                raise FindingError("closed without an answer") from None
            return await self._framed(given, None, n_tries + 1)
        kind = check_reply(reply)
        if reply.closes:
            with suppress(ConnectionError):  # the server had not read all
                if await reader.read(1):
                    raise FindingError("there is more after the answer")
            writer.close()
            return None, kind
        return (reader, writer), kind

    async def _unframed(self, given: Input) -> str:
        """Send an input over a connection of its own, and read until its end."""
        reader, writer = await self._connect()
        kinds: list[str] = []
        try:
            for part in given.parts:
                writer.write(part)
                await writer.drain()
            if given.end == "leave":
                return "left"
            if given.end == "half-close":
                writer.write_eof()
            while True:
                has_body = not given.is_head or bool(kinds)
                reply = await read_reply(reader, has_body)
                kinds.append(check_reply(reply, has_body))
                if not has_body and reply.closes:  # an answer to what was not read has a body
                    await reader.read()
        except ClosedError:
            pass
        except CutError:
            if given.end != "half-close":  # which the server takes for a client that has left
                raise
            kinds.append("cut")
        except ResetError:
            if len(given.parts) == 1:  # else bytes came that the server did not want after a close
                raise
            kinds.append("reset")
        except ConnectionError:  # it was closed while bytes were on their way
            kinds.append("reset")
        finally:
            writer.close()
        return kinds[0] if kinds else "closed"

    async def _connect(self) -> Connection:
        return await asyncio.open_unix_connection(self.server.socket, limit=1 << 20)


async def fuzz(server: ServerProcess, app: Any, seed: int, numbers: Iterable[int]) -> Counter[str]:
    """Send inputs of a seed; return how many of each level had each answer.

    Nine tenths of the inputs whose framing is valid go to `app`, if there is one, and the rest to
    the server. Raises FindingError, whose message has the number of the input.
    """
    fuzzer = _Fuzzer(server, app, seed, numbers)
    try:
        await fuzzer.run()
    except* FindingError as group:
        try:
            server.check_alive()
        except FindingError as dead:
            raise FindingError(f"{group.exceptions[0]}; {dead}") from None
        raise group.exceptions[0] from None
    server.check_alive()
    return fuzzer.counts


def is_flat(megabytes: list[float], most: float) -> bool:
    """Whether a series of memory sizes has stopped to grow: its second quarter against its last."""
    n = len(megabytes) // 4
    if n < 1:
        return True
    second, last = sorted(megabytes[n : 2 * n])[n // 2], sorted(megabytes[-n:])[n // 2]
    return last - second <= most or math.isnan(last)
