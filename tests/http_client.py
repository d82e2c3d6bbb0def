"""A plain HTTP client on raw sockets, and ``gpt2c serve`` in a process of its own.

For the fuzzer of the HTTP border and the traces: they send bytes that no well-behaved client would
send, and check every byte that comes back.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

_MAX_HEAD = 1 << 16
_START_SECONDS = 120


class FindingError(Exception):
    """The server did what it must not do."""


class CutError(FindingError):
    """The server closed the connection within an answer."""


class ResetError(FindingError):
    """The connection was reset within an answer."""


class ClosedError(Exception):
    """The server closed the connection before an answer began."""


@dataclass
class Reply:
    """An answer: its status, headers by lower-case names, and body."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    informational: int = 0  # how many answers 100 came before it
    parts: list[bytes] = field(default_factory=list)  # the chunks of a chunked body

    @property
    def closes(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def json(self) -> Any:
        """Return the body's JSON, which must be strict."""
        return strict_json(self.body)

    def events(self) -> list[Any]:
        """Return the data of the server-sent events; the last must be [DONE]."""
        *lines, end = self.body.decode().split("\n\n")
        if end or not lines or lines[-1] != "data: [DONE]":
            raise FindingError(f"a stream ends with {self.body[-200:]!r}")
        if not all(line.startswith("data: ") for line in lines):
            raise FindingError(f"a stream has other lines than data: {self.body[:400]!r}")
        return [strict_json(line.removeprefix("data: ").encode()) for line in lines[:-1]]


def strict_json(raw: bytes) -> Any:
    """Parse JSON without NaN or infinities."""

    def refuse(name: str) -> NoReturn:
        raise FindingError(f"an answer has {name}, which is not JSON")

    try:
        return json.loads(raw, parse_constant=refuse)
    except ValueError as error:
        raise FindingError(f"an answer is not JSON ({error}): {raw[:400]!r}") from None


async def read_reply(reader: asyncio.StreamReader, has_body: bool = True) -> Reply:
    """Read one answer.

    Raises ClosedError at the end of the connection; CutError or ResetError within an answer.
    `has_body` is False for the answer to HEAD.
    """
    informational = 0
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if getattr(error, "partial", b""):
                message = f"an answer's head is cut: {error.partial[:200]!r}"  # type: ignore[union-attr]
                raise FindingError(message) from None
            raise ClosedError from None
        reply = _head(head)
        if reply.status != 100:
            break
        informational += 1
    reply.informational = informational
    if not has_body:
        return reply
    try:
        if reply.headers.get("transfer-encoding") == "chunked":
            await _read_chunks(reader, reply)
        elif (length := reply.headers.get("content-length")) is not None:
            reply.body = await reader.readexactly(int(length))
        else:
            reply.body = await reader.read()  # the answer to an HTTP/1.0 request may have no length
    except asyncio.IncompleteReadError as error:
        reply.body += error.partial
        raise CutError(f"an answer is cut: {reply}") from None
    except ConnectionError:
        raise ResetError(f"the connection was reset within an answer: {reply}") from None
    return reply


def _head(head: bytes) -> Reply:
    lines = head.decode("latin-1").split("\r\n")
    found = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) [A-Za-z ]*", lines[0])
    if found is None:
        raise FindingError(f"an answer begins with {lines[0]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z-]+", name) or name.lower() in headers:
            raise FindingError(f"an answer has the header {line!r}")
        headers[name.lower()] = value.strip()
    return Reply(int(found[1]), headers)


async def _read_chunks(reader: asyncio.StreamReader, reply: Reply) -> None:
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        part = await reader.readexactly(size + 2)
        if not part.endswith(b"\r\n"):
            raise FindingError(f"a chunk ends with {part[-20:]!r}")
        if not size:
            return
        reply.parts.append(part[:-2])
        reply.body += part[:-2]


def request_bytes(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a valid request."""
    given = {"Host": "localhost", **(headers or {})}
    if method == "POST":
        given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **given}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def as_json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


async def ask(
    path: str, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Ask once, over a new connection to a Unix socket."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        raw = as_json(body) if body is not None else b""
        writer.write(request_bytes(method, url, raw, headers))
        return await read_reply(reader)
    finally:
        writer.close()


def check_error(reply: Reply) -> dict[str, Any]:
    """Return OpenAI's error of an answer. Raises FindingError if it is none."""
    if reply.headers.get("content-type") != "application/json":
        raise FindingError(f"an error is not JSON: {reply}")
    value = reply.json()
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict) or {*error} != {"message", "type", "param", "code"}:
        raise FindingError(f"an error is not OpenAI's: {reply}")
    if not error["message"] or "Traceback" in error["message"] or '", line ' in error["message"]:
        raise FindingError(f"an error's message is {error['message']!r}")
    if (reply.status in (429, 503)) != ("retry-after" in reply.headers):
        raise FindingError(f"Retry-After is wrong: {reply}")
    found: dict[str, Any] = error
    return found


def resident_megabytes(process: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watchdog:
    """Finds what takes too long, by counting the seconds in which this process ran.

    So a machine that pauses all processes for minutes is no finding.
    """

    def __init__(self, seconds: int) -> None:
        self._limit, self._now = seconds, 0
        self._begun: dict[object, int] = {}

    def begin(self, what: object) -> None:
        self._begun[what] = self._now

    def end(self, what: object) -> None:
        self._begun.pop(what, None)

    async def run(self) -> None:
        """Raise FindingError once something has taken too long."""
        while True:
            await asyncio.sleep(1)
            self._now += 1
            for what, begun in self._begun.items():
                if self._now - begun > self._limit:
                    raise FindingError(f"no end after {self._limit} seconds of {what}")


class ServerProcess:
    """``gpt2c serve`` on a Unix socket, in a process of its own."""

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] | None = None):
        self.socket = str(folder / "socket")
        self.log = folder / "log"
        command = [sys.executable, "-m", "gpt2c", "serve", "--unix-socket", self.socket, *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # One heap for all threads. Several heaps would keep growing for an hour.
                env={**os.environ, "MALLOC_ARENA_MAX": "1", **(environment or {})},
            )  # fmt: skip

    async def wait_until_ready(self) -> None:
        for _ in range(_START_SECONDS * 20):
            if self.process.poll() is not None:
                raise FindingError(f"the server ended: {self.log.read_text()[-2000:]}")
            try:
                if (await ask(self.socket, "GET", "/health")).status == 200:
                    return
            except (OSError, ClosedError):
                pass
            await asyncio.sleep(0.05)
        raise FindingError(f"the server is not ready after {_START_SECONDS} seconds")

    def resident_megabytes(self) -> float:
        return resident_megabytes(self.process.pid)

    def n_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check_alive(self) -> None:
        """Raise FindingError if the process has ended, or has logged a traceback."""
        text = self.log.read_text(errors="replace")
        at = text.find("Traceback")
        if at >= 0:
            raise FindingError(
                f"the server logged a traceback: {text[max(at - 300, 0) : at + 4000]}"
            )
        if (status := self.process.poll()) is not None:
            raise FindingError(f"the server ended with status {status}: {text[-2000:]}")

    def stop(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; return the exit status. Raises FindingError after a minute."""
        for _ in range(600):  # in slices, as a machine may pause all processes for minutes
            if (status := self.process.poll()) is not None:
                return status
            time.sleep(0.1)
        raise FindingError("the server does not end within a minute")


@contextmanager
def server_process(*options: str, **environment: str) -> Iterator[ServerProcess]:
    """Start a server; kill it at the end."""
    with tempfile.TemporaryDirectory(prefix="gpt2c-serve-") as folder:
        server = ServerProcess(Path(folder), *options, environment=environment)
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()


def metric_values(text: str) -> dict[str, float]:
    """Return the metrics of an answer of /metrics by name and labels."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
