"""Sending the parts of streams together."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from gpt2c.serve.outbox import Outbox, PartWriter


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)


def writer_of(outbox: Outbox, transport: Transport, **state: bool) -> PartWriter:
    protocol: Any = SimpleNamespace(
        transport=transport, loop=asyncio.get_running_loop(),
        cycle=SimpleNamespace(disconnected=state.get("disconnected", False)),
        flow=SimpleNamespace(write_paused=state.get("paused", False)),
    )  # fmt: skip
    return PartWriter(protocol, outbox)


def test_parts_of_a_connection_are_sent_together_and_in_order() -> None:
    async def test() -> None:
        outbox, transports = Outbox(), [Transport(), Transport()]
        writers = [writer_of(outbox, transport) for transport in transports]
        for part in (b"a", b"0123456789abcdef"):
            assert all(writer.write(part) for writer in writers)
        assert not transports[0].written
        await asyncio.sleep(0)
        chunks = b"1\r\na\r\n10\r\n0123456789abcdef\r\n"
        assert [transport.written for transport in transports] == [[chunks], [chunks]]
        writers[0].write(b"b")
        writers[0].send()
        assert transports[0].written[1:] == [b"1\r\nb\r\n"]
        await asyncio.sleep(0)
        assert len(transports[0].written) == 2

    asyncio.run(test())


def test_parts_do_not_pile_up() -> None:
    async def test() -> None:
        outbox, transport = Outbox(), Transport()
        writer = writer_of(outbox, transport)
        for _ in range(100):
            writer.write(bytes(1000))
        sizes = [len(written) for written in transport.written]
        assert sum(sizes) > 100 * 1000 - 20_000
        assert max(sizes) < 20_000

    asyncio.run(test())


@pytest.mark.parametrize("state", ["paused", "disconnected"])
def test_a_client_that_does_not_read_is_left_to_uvicorn(state: str) -> None:
    async def test() -> None:
        transport = Transport()
        assert not writer_of(Outbox(), transport, **{state: True}).write(b"a")
        await asyncio.sleep(0)
        assert not transport.written

    asyncio.run(test())
