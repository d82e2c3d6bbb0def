"""Streaming: one sequence, yielded piece by piece, with or without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2c.engine.protocol import EngineModel
from gpt2c.schedule.batching import Continuation, immediate_result
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.schedule.requests import Request
from gpt2c.text.tokenizer import StreamDecoder

_END = object()


@dataclass(frozen=True)
class _Tokens:
    """The part of a tokenizer that StreamDecoder uses."""

    token_bytes: Callable[[int], bytes]


class TextStream:
    """A sequence that is generated while its pieces are read. The pieces can be read only once."""

    def __init__(
        self,
        engine: EngineModel,
        prefixes: PrefixCache,
        request: Request,
        token_bytes: Callable[[int], bytes] | None,
    ) -> None:
        """Make a stream of texts, or of ids if token_bytes is None. Generation starts lazily."""
        self._engine, self._prefixes = engine, prefixes
        self._request, self._token_bytes = request, token_bytes
        self._continuation: Continuation | None = None
        self._is_cancelled = False
        self._end: int | None = None

    def pieces(self) -> Iterator[Any]:
        """Yield pieces of the new text, or new ids, each as soon as it is safe to show.

        Nothing runs between two pieces. If the model is closed meanwhile, the next piece raises
        ClosedError.
        """
        return self._ids() if self._token_bytes is None else self._texts(self._token_bytes)

    async def pieces_async(self) -> AsyncIterator[Any]:
        """Yield the same pieces without blocking the event loop: a thread does the work."""
        pieces = self.pieces()
        loop = asyncio.get_running_loop()
        try:
            while True:
                # None selects the event loop's default thread pool, which ends with the loop.
                work = loop.run_in_executor(None, next, pieces, _END)
                try:
                    piece = await asyncio.shield(work)
                except asyncio.CancelledError:
                    self.cancel()
                    # Wait for the thread, which would otherwise still run during the caller's next
                    # work.
                    await asyncio.wait([work])
                    raise
                if piece is _END:
                    return
                yield piece
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the stream; a step in another thread returns soon."""
        self._is_cancelled = True
        if self._continuation is not None:
            self._continuation.cancel()

    def _ids(self) -> Iterator[int]:
        if immediate_result(self._engine, self._request) is not None:
            return
        with self._engine.held():
            prefix = self._prefixes.take(self._request.ids)
            running = Continuation(self._engine, self._prefixes, self._request, prefix)
            self._continuation = running
        n_yielded = 0
        while running.result is None and not self._is_cancelled:
            with self._engine.held():
                running.step()
            if running.result is not None:
                self._end = running.result.end
            n_safe = running.watcher.n_safe_ids
            yield from running.watcher.ids[n_yielded:n_safe]
            n_yielded = n_safe

    def _texts(self, token_bytes: Callable[[int], bytes]) -> Iterator[str]:
        """Decode the ids; cut the bytes of the last id where a stop string begins."""
        decoder = StreamDecoder(_Tokens(token_bytes))
        for id in self._ids():
            if piece := decoder.push(id, self._end):
                yield piece
        if piece := decoder.finish():
            yield piece
