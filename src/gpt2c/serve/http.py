"""Bodies, answers and clients that leave: the parts of HTTP that every endpoint uses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpt2c.serve.errors import RequestError
from gpt2c.serve.limits import Limits
from gpt2c.serve.outbox import PART_WRITER, PartWriter

_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
DONE: Final = b"data: [DONE]\n\n"

_T = TypeVar("_T")


class ClientGoneError(Exception):
    """The client has closed its connection, so nobody reads the answer."""


def encoded(value: Any) -> bytes:
    """Return JSON as bytes. It has no NaN: a ValueError here is a mistake of the caller."""
    return _JSON.encode(value).encode()


def encoded_with_list(fields: Mapping[str, Any], name: str, items: Iterable[Any]) -> bytes:
    """Return the JSON of an object that has `fields`, and a list of items by this name.

    Python's encoder holds the GIL, so a long list is encoded item by item.
    """
    head = encoded(fields)[:-1]
    return b"".join([head, b",", encoded(name), b":[", b",".join(map(encoded, items)), b"]}"])


def event(value: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer of JSON."""
    return raw_json_response(encoded(value), status, headers)


def raw_json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer of JSON that is encoded."""
    return Response(body, status, dict(headers or {}), "application/json")


def error_response(error: RequestError) -> Response:
    """Return the answer for an error."""
    return json_response(error.body, error.status, error.headers)


async def read_body(receive: Receive, headers: Mapping[str, str], limits: Limits) -> bytes:
    """Read a body. Raises RequestError, 413 or 408, or ClientGoneError."""
    limit = limits.max_body_bytes
    too_large = RequestError(
        413, f"the body is larger than {limit} bytes, the limit of this server", code="body_size"
    )
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise RequestError(
            408, f"the body did not arrive within {limits.body_seconds:g} seconds", code="body_time"
        ) from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of `work`; cancel it and raise ClientGoneError if the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        leaving.cancel()
        for task in (working, leaving):
            with suppress(BaseException):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """An answer of server-sent events.

    Its first event exists already, so an error before it has a status of its own. A later error is
    an event, after which the stream ends.
    """

    def __init__(
        self, first: bytes, rest: AsyncIterator[bytes], failed: Callable[[Exception], RequestError]
    ) -> None:
        """`failed` returns what an error is in an event."""
        self._first, self._rest, self._failed = first, rest, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the client leaves."""
        writer = scope.get("extensions", {}).get(PART_WRITER)
        await unless_gone(receive, self._send_all(_Parts(send, writer)))

    async def _send_all(self, parts: _Parts) -> None:
        await parts.begin()
        async with aclosing(self._rest) as rest:  # type: ignore[type-var]
            await parts.send(self._first)
            try:
                async for part in rest:
                    if not parts.write(part):
                        await parts.send(part)
            except Exception as error:
                await parts.send(event(self._failed(error).body) + DONE)
        await parts.end()


class _Parts:
    """The parts of an answer, which go to its connection or, without a writer, through ASGI."""

    def __init__(self, send: Send, writer: PartWriter | None) -> None:
        self._send, self._writer = send, writer

    def begin(self) -> Awaitable[None]:
        return self._send(
            {"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS}
        )

    def write(self, part: bytes) -> bool:
        """Send a part soon; return False, and do nothing, if `send` must do it."""
        return self._writer is not None and self._writer.write(part)

    def send(self, part: bytes, is_last: bool = False) -> Awaitable[None]:
        """Send a part after those that were written."""
        if self._writer is not None:
            self._writer.send()
        return self._send({"type": "http.response.body", "body": part, "more_body": not is_last})

    def end(self) -> Awaitable[None]:
        return self.send(b"", is_last=True)
