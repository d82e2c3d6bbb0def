"""Streams of completions: server-sent events, in an order that depends on the request alone.

The choices of a request take turns: each sends its next token, then the next choice does. So a
stream has the same events whenever it is repeated, whatever else runs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
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
        self.events = aiter(text.events(run.seeds[text.prompt]))
        self.length = 0  # of the text that was sent
        self.writer: LogprobsWriter | None = None
        if run.request.logprobs is not None:
            self.writer = run.writer()
        self.completion: Completion | None = None

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

    def echo(self) -> dict[str, Any]:
        """Return the choice in the event that has the prompt."""
        scores = self.run.prompt_scores[self.text.prompt] if self.writer is not None else []
        text = self.run.prompt_text(self.text.prompt)
        choice = self.chunk(text, scores, [])
        if self.writer is not None:
            self.writer.begin_part(len(text))
        return choice

    async def next(self) -> dict[str, Any] | None:
        """Wait for the next event; return the choice in it, None if there is nothing to send."""
        found = await anext(self.events)
        if isinstance(found, Token):
            tokens = []
            if found.logprob is not None:
                tokens.append(ScoredToken(found.id, found.logprob, found.top_logprobs))
            is_silent = not (found.text or tokens) and self.run.served.has_text
            if is_silent and not self.run.request.returns_ids:
                return None
            return self.chunk(found.text or "", tokens, [found.id])
        self.completion = found.completion
        reason = finish_reason(self.run, found.completion)
        self.run.metrics.count_text(self.run.served.name, reason, found.completion)
        tokens = end_token(found.completion) if self.writer is not None else []
        return self.chunk(found.text or "", tokens, [], reason)


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
                if (found := await choice.next()) is not None:
                    yield event({**head, "choices": [found]})
            active = [choice for choice in active if choice.completion is None]
    run.metrics.latency.observe(run.served.name, time.monotonic() - run.began)
    if run.request.include_usage:
        n_new = sum(n_tokens(c.completion) for c in choices if c.completion is not None)
        yield event({**head, "choices": [], "usage": run.usage(n_new)})
    yield DONE
