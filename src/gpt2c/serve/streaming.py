"""Streams of completions: server-sent events, in an order that depends on the request alone.

The choices of a request take turns: each sends its next token, then the next choice does. So a
stream has the same events whenever it is repeated, whatever else runs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from json.encoder import encode_basestring
from typing import Any

from gpt2c.generate.options import Completion
from gpt2c.scheduler import Token
from gpt2c.serve.completions import Run, Text, end_token, finish_reason, n_tokens
from gpt2c.serve.http import DONE, event
from gpt2c.serve.tokens import LogprobsWriter, ScoredToken


class _Choice:
    """A choice of a stream: its events, and what was sent so far."""

    def __init__(self, run: Run, text: Text) -> None:
        self.run, self.text = run, text
        self.events = text.events(run.seeds[text.prompt])
        self.length = 0  # of the text that was sent
        self.writer: LogprobsWriter | None = None
        if run.request.logprobs is not None:
            self.writer = run.writer()
        self.completion: Completion | None = None
        # Whether the event of a token differs from others only in its text.
        self._has_only_text = (
            self.writer is None and run.served.has_text and not run.request.returns_ids
        )
        self._frame: tuple[bytes, bytes] | None = None  # what surrounds the text of an event

    def chunk(
        self, text: str, tokens: list[ScoredToken], ids: list[int], reason: str | None = None
    ) -> dict[str, Any]:
        """Return the choice in an event."""
        self.length += len(text)
        choice: dict[str, Any] = {
            "index": self.text.index,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
            "seed": self.run.seeds[self.text.prompt],
        }
        if self.writer is not None:
            # A token whose character has not ended yet begins at the end of what was sent.
            choice["logprobs"] = self.writer.write(tokens)
        if self.run.request.returns_ids or not self.run.served.has_text:
            choice["token_ids"] = ids
        return choice

    def _event_of(self, text: str, head: dict[str, Any]) -> bytes:
        """Return the event of a token that differs from others only in its text."""
        if self._frame is None:
            # A quotation mark inside a string has a backslash, so this finds the text's place.
            before, empty, after = event({**head, "choices": [self.chunk("", [], [])]}).rpartition(
                b'"text":""'
            )
            self._frame = before + empty[:-2], after
        before, after = self._frame
        self.length += len(text)
        return before + encode_basestring(text).encode() + after

    def echo(self) -> dict[str, Any]:
        """Return the choice in the event that has the prompt."""
        scores = self.run.prompt_scores[self.text.prompt] if self.writer is not None else []
        text = self.run.prompt_text(self.text.prompt)
        choice = self.chunk(text, scores, [])
        if self.writer is not None:
            self.writer.begin_part(len(text))
        return choice

    async def next(self, head: dict[str, Any]) -> bytes | None:
        """Wait for the next event; return it as it is sent, None if there is nothing to send."""
        found = await anext(self.events)
        if isinstance(found, Token):
            if self._has_only_text:
                return self._event_of(found.text, head) if found.text else None
            tokens = []
            if found.logprob is not None:
                tokens.append(ScoredToken(found.id, found.logprob, found.top_logprobs))
            choice = self.chunk(found.text or "", tokens, [found.id])
            return event({**head, "choices": [choice]})
        self.completion = found.completion
        reason = finish_reason(self.run, found.completion)
        self.run.metrics.count_text(self.run.served.name, reason, found.completion)
        tokens = end_token(found.completion) if self.writer is not None else []
        choice = self.chunk(found.text or "", tokens, [], reason)
        return event({**head, "choices": [choice]})


async def stream(run: Run) -> AsyncIterator[bytes]:
    """Yield the events of a request that was prepared. Raises the errors of its texts."""
    head = run.head()
    if run.request.include_usage:
        head["usage"] = None
    with run.running():
        await run.score_prompts()
        choices = [_Choice(run, text) for text in run.texts]
        if run.request.echo:
            for choice in choices:
                yield event({**head, "choices": [choice.echo()]})
        active = choices
        while active:
            for choice in active:
                if (found := await choice.next(head)) is not None:
                    yield found
            active = [choice for choice in active if choice.completion is None]
    run.metrics.latency.observe(run.served.name, time.monotonic() - run.began)
    if run.request.include_usage:
        n_new = sum(n_tokens(c.completion) for c in choices if c.completion is not None)
        yield event({**head, "choices": [], "usage": run.usage(n_new)})
    yield DONE
