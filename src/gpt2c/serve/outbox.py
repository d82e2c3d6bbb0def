"""Sending the parts of all streams together, past the layers between the app and a connection.

A server with 32 streams sends as many parts after each step of the engine. While it sends, and
while a client wakes for each part, they take the CPUs from the engine. So this is the shortest way.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

PART_WRITER: Final = "gpt2c.part_writer"  # an extension of the ASGI scope
# A stream's parts that wait to be sent have fewer bytes than this, so that the limits of the
# transport's buffer hold.
_MAX_BYTES: Final = 16384


class Outbox:
    """Parts of streams that are sent together, after the tasks that one step has woken.

    So a client is woken once for what a step brings it, and one that reads many streams is not
    woken for each.
    """

    def __init__(self) -> None:
        """Begin without parts."""
        self._parts: dict[asyncio.WriteTransport, list[bytes]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, to: asyncio.WriteTransport, part: bytes) -> None:
        """Send a part soon."""
        if not self._parts:
            loop.call_soon(self._send_all)
        self._parts.setdefault(to, []).append(part)

    def send(self, to: asyncio.WriteTransport) -> None:
        """Send the parts of a connection now."""
        parts = self._parts.pop(to, None)
        if parts is not None and not to.is_closing():
            to.write(b"".join(parts))

    def _send_all(self) -> None:
        for to in list(self._parts):
            self.send(to)


class PartWriter:
    """Writes parts of a chunked answer, without the layers between the app and its connection."""

    def __init__(self, protocol: H11Protocol, outbox: Outbox) -> None:
        """Write the answer to the protocol's current request."""
        self._cycle, self._flow, self._loop = protocol.cycle, protocol.flow, protocol.loop
        self._transport, self._outbox = protocol.transport, outbox
        self._n_bytes = 0  # that were written since the last `send`

    def write(self, part: bytes) -> bool:
        """Send a part soon. Return False, and do nothing, if the app must send it itself.

        The app then waits, if the client reads too slowly, or learns that it has left.
        """
        if self._flow.write_paused or self._cycle.disconnected:
            return False
        self._outbox.add(self._loop, self._transport, b"%x\r\n%b\r\n" % (len(part), part))
        self._n_bytes += len(part)
        if self._n_bytes > _MAX_BYTES:
            self.send()
        return True

    def send(self) -> None:
        """Send now what was written."""
        self._n_bytes = 0
        self._outbox.send(self._transport)
