"""OpenAI's `logprobs`: names of tokens, their places in the text, and log-probabilities.

Several tokens are parts of characters, and would all have the name U+FFFD. Each such token is named
by its bytes instead, such as "bytes:\\xe2\\x80", as OpenAI's own server did. A token without
bytes, and one whose name another token of the same position has, is named "token_id:N", as vLLM
does. So the keys of `top_logprobs` never collide.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MINUS_INFINITY: Final = -9999.0  # JSON has no infinities; vLLM writes them so


@dataclass(frozen=True)
class ScoredToken:
    """A token, and its log-probability and alternatives; None if nothing precedes it."""

    id: int
    logprob: float | None
    top: Mapping[int, float] | None


def _finite(logprob: float) -> float:
    return max(logprob, MINUS_INFINITY)


class LogprobsWriter:
    """Writes the `logprobs` of a text, in one piece or several."""

    def __init__(self, token_bytes: Callable[[int], bytes], names_are_ids: bool) -> None:
        """Begin at the text's first token."""
        self._token_bytes, self._names_are_ids = token_bytes, names_are_ids
        self.begin_part(0)

    def begin_part(self, offset: int) -> None:
        """Begin a part of the text that is decoded by itself, at this offset."""
        self._offset = offset  # the number of characters that have ended
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def name(self, id: int) -> str:
        """Return a token's name."""
        raw = b"" if self._names_are_ids else self._token_bytes(id)
        if not raw:
            return f"token_id:{id}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def write(self, tokens: Iterable[ScoredToken], end: int | None = None) -> dict[str, Any]:
        """Return the `logprobs` of further tokens. No offset is beyond `end`."""
        written: dict[str, list[Any]] = {
            "text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": [],
        }  # fmt: skip
        for token in tokens:
            offset = self._offset if end is None else min(self._offset, end)
            written["text_offset"].append(offset)
            written["tokens"].append(self.name(token.id))
            logprob = token.logprob
            written["token_logprobs"].append(None if logprob is None else _finite(logprob))
            written["top_logprobs"].append(None if logprob is None else self._top(token, logprob))
            self._offset += len(self._decoder.decode(self._token_bytes(token.id)))
        return written

    def _top(self, token: ScoredToken, own: float) -> dict[str, float]:
        """Return the most likely tokens; and the token itself, which they may lack."""
        row: dict[str, float] = {}
        for id, logprob in {**(token.top or {}), token.id: own}.items():
            name = self.name(id)
            row[name if name not in row else f"token_id:{id}"] = _finite(logprob)
        return row
