"""One text, given out as it comes: to a loop, or to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2c.engine.protocol import EngineModel
from gpt2c.schedule.batching import Text, at_once
from gpt2c.schedule.requests import Request
from gpt2c.text.tokenizer import StreamDecoder

_END = object()


@dataclass(frozen=True)
class _Tokens:
    token_bytes: Callable[[int], bytes]


class TextStream:
    """A text being generated; its pieces can be had once."""

    def __init__(
        self, engine: EngineModel, request: Request, token_bytes: Callable[[int], bytes] | None
    ) -> None:
        """With token_bytes the pieces are text, without it ids. Generation starts lazily."""
        self._engine, self._request, self._token_bytes = engine, request, token_bytes
        self._text: Text | None = None
        self._is_cancelled = False
        self._end: int | None = None

    def pieces(self) -> Iterator[Any]:
        """The new text, or ids, each piece as soon as it can be shown.

        Between two of them nothing runs, so a closed model ends the stream with ClosedError.
        """
        return self._ids() if self._token_bytes is None else self._texts(self._token_bytes)

    async def pieces_async(self) -> AsyncIterator[Any]:
        """The same, each piece awaited; the work is done in a thread."""
        pieces = self.pieces()
        loop = asyncio.get_running_loop()
        try:
            while True:
                # None is the loop's own pool of threads, which ends with it.
                work = loop.run_in_executor(None, next, pieces, _END)
                try:
                    piece = await asyncio.shield(work)
                except asyncio.CancelledError:
                    self.cancel()
                    # The thread may not be left running: it would go on beside what comes next.
                    await asyncio.wait([work])
                    raise
                if piece is _END:
                    return
                yield piece
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ends a run in another thread soon, and every later one."""
        self._is_cancelled = True
        if self._text is not None:
            self._text.cancel()

    def _ids(self) -> Iterator[int]:
        if at_once(self._engine, self._request) is not None:
            return
        with self._engine.held():
            text = self._text = Text(self._engine, self._request)
        n_seen = 0
        while text.result is None and not self._is_cancelled:
            with self._engine.held():
                text.run()
            if text.result is not None:
                self._end = text.result.end
            n_safe = text.watcher.n_safe_ids
            yield from text.watcher.ids[n_seen:n_safe]
            n_seen = n_safe

    def _texts(self, token_bytes: Callable[[int], bytes]) -> Iterator[str]:
        """The ids, decoded; of the last one no more than what comes before a stop string."""
        decoder = StreamDecoder(_Tokens(token_bytes))
        for id in self._ids():
            if piece := decoder.push(id, self._end):
                yield piece
        if piece := decoder.finish():
            yield piece
