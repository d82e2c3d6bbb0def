"""Connections with limits that uvicorn itself does not have.

uvicorn waits without end for headers that never come and for a client that does not read, and
accepts any number of connections. Its answer to bytes that are not HTTP is plain text.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2c.serve.errors import RequestError
from gpt2c.serve.http import encoded
from gpt2c.serve.limits import Limits
from gpt2c.serve.outbox import PART_WRITER, Outbox, PartWriter

_REASONS: Final = {
    400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}  # fmt: skip


def header_size_error(limits: Limits) -> RequestError:
    """Return the error of headers that are too large."""
    message = (
        f"the headers are larger than {limits.max_header_bytes} bytes, the limit of this server"
    )
    return RequestError(431, message, code="header_size")


def raw_answer(error: RequestError) -> bytes:
    """Return a whole answer for a client whose request was not read."""
    body = encoded(error.body)
    lines = [
        f"HTTP/1.1 {error.status} {_REASONS[error.status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {v}" for name, v in error.headers.items() if name != "Connection"),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with these limits.

    A request of HTTP/1.1 has a PartWriter in the extensions of its ASGI scope.
    """
    outbox = Outbox()

    class LimitedProtocol(H11Protocol):
        """Closes a connection that is one too many, or whose client is too slow."""

        _headers_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                error = RequestError(503, "too many connections; retry later", code="connections")
                transport.write(raw_answer(error))
                transport.close()
                return
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            before = self.cycle
            if self._headers_timer is None and (before is None or before.response_complete):
                self._await_headers()
            super().data_received(data)
            if self.cycle is not before:
                self._stop_headers_timer()
                if self.scope["http_version"] == "1.1" and self.scope["method"] != "HEAD":
                    extensions: dict[str, Any] = {PART_WRITER: PartWriter(self, outbox)}
                    self.scope["extensions"] = extensions

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_headers_timer()
            self.resume_writing()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:
                self._stop_headers_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def send_400_response(self, msg: str) -> None:
            """Refuse what is not HTTP; the exception that says why is being handled.

            The rest of a request may be wrong after its answer has begun; then nothing can be said.
            """
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                reason = sys.exc_info()[1]
                if getattr(reason, "error_status_hint", 400) == 431:
                    found = header_size_error(limits)
                else:
                    message = "the request is not valid HTTP/1.1"
                    found = RequestError(400, message, code="invalid_http")
                self.transport.write(raw_answer(found))
            self.transport.close()

        def _await_headers(self) -> None:
            self._headers_timer = self.loop.call_later(limits.header_seconds, self._refuse_headers)

        def _stop_headers_timer(self) -> None:
            if self._headers_timer is not None:
                self._headers_timer.cancel()
                self._headers_timer = None

        def _refuse_headers(self) -> None:
            self._headers_timer = None
            if not self.transport.is_closing():
                message = f"no request came within {limits.header_seconds:g} seconds"
                self.transport.write(raw_answer(RequestError(408, message, code="header_time")))
                self.transport.close()

    return LimitedProtocol
