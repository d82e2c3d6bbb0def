"""Streaming: one sequence, yielded piece by piece, with or without asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2c.engine.protocol import EngineModel
from gpt2c.schedule.continuation import Continuation, immediate_result
from gpt2c.schedule.dispatcher import Dispatcher
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.schedule.requests import Request
from gpt2c.text.tokenizer import StreamDecoder


@dataclass(frozen=True)
class _TokenDecoder:
    """The part of a tokenizer that StreamDecoder uses."""

    token_bytes: Callable[[int], bytes]


class Pieces:
    """The new tokens of a continuation and their texts, each as soon as it is safe to show.

    A token is safe to show when no part of its text can belong to a stop string.
    """

    def __init__(
        self, continuation: Continuation, token_bytes: Callable[[int], bytes] | None
    ) -> None:
        """Begin at the first token. If token_bytes is None, the texts are empty."""
        self._continuation = continuation
        self._decoder = None if token_bytes is None else StreamDecoder(_TokenDecoder(token_bytes))
        self._n_taken = 0

    def take(self) -> Iterator[tuple[int, str]]:
        """Yield the ids that became safe since the last call, each with the text that it completes.

        The text of the last id is cut where a stop string begins.
        """
        result, watcher = self._continuation.result, self._continuation.watcher
        end = None if result is None else result.end
        for id in watcher.ids[self._n_taken : watcher.n_safe_ids]:
            self._n_taken += 1
            yield id, "" if self._decoder is None else self._decoder.push(id, end)

    def rest(self) -> str:
        """Return U+FFFD if the finished text breaks off inside a character, else ""."""
        return "" if self._decoder is None else self._decoder.finish()


class TextStream:
    """A sequence that is generated while its pieces are read. The pieces can be read only once."""

    def __init__(
        self,
        engine: EngineModel,
        prefixes: PrefixCache,
        dispatcher: Dispatcher,
        request: Request,
        token_bytes: Callable[[int], bytes] | None,
    ) -> None:
        """Make a stream of texts, or of ids if token_bytes is None. Generation starts lazily."""
        self._engine, self._prefixes, self._dispatcher = engine, prefixes, dispatcher
        self._request, self._token_bytes = request, token_bytes

    def pieces(self) -> Iterator[Any]:
        """Yield pieces of the new text, or new ids, each as soon as it is safe to show.

        Nothing runs between two pieces. If the model is closed meanwhile, the next piece raises
        ClosedError.
        """
        if immediate_result(self._engine, self._request) is not None:
            return
        continuation, pieces = self._begin()
        while continuation.result is None:
            with self._engine.held():
                continuation.step()
            yield from self._new_pieces(continuation, pieces)

    async def pieces_async(self) -> AsyncIterator[Any]:
        """Yield the same pieces without blocking the event loop.

        The model's dispatcher runs the steps, those of all streams together. Stop strings, the
        callback, the logits_processor and decoding run in the event loop's thread.
        """
        if immediate_result(self._engine, self._request) is not None:
            return
        continuation, pieces = self._begin()
        with self._dispatcher.stream():
            while continuation.result is None:
                await self._step_async(continuation)
                for piece in self._new_pieces(continuation, pieces):
                    yield piece

    def _begin(self) -> tuple[Continuation, Pieces]:
        with self._engine.held():
            prefix = self._prefixes.copy_longest(self._request.ids)
            continuation = Continuation(self._engine, self._prefixes, self._request, prefix)
        return continuation, Pieces(continuation, self._token_bytes)

    def _new_pieces(self, continuation: Continuation, pieces: Pieces) -> Iterator[Any]:
        for id, text in pieces.take():
            if self._token_bytes is None:
                yield id
            elif text:
                yield text
        if continuation.result is not None and (rest := pieces.rest()):
            yield rest

    async def _step_async(self, continuation: Continuation) -> None:
        process = self._request.logits_processor
        if process is None:
            await self._dispatcher.step(self._engine, continuation.job)
        else:
            import asyncio  # here, because only event loops need it

            # The dispatcher cannot return logits, so a thread of the loop's executor gets them.
            self._engine.check_open()
            feeding = asyncio.get_running_loop().run_in_executor(None, continuation.job.next_logits)
            try:
                logits = await asyncio.shield(feeding)
            except asyncio.CancelledError:
                await asyncio.wait([feeding])  # so that no thread feeds the job afterwards
                raise
            continuation.process(process, logits)
        continuation.collect()
