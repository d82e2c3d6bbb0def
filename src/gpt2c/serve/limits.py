"""The limits of the server. Each is an option of ``gpt2c serve``, with this default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final, NamedTuple

_INT32_MAX: Final = 2**31 - 1
_MAX_SECONDS: Final = 1e9


def _limit(default: float, help: str, lowest: float = 1) -> float:
    found: float = field(default=default, metadata={"help": help, "lowest": lowest})
    return found


def _count(default: int, help: str, lowest: int = 1) -> int:
    found: int = field(default=default, metadata={"help": help, "lowest": lowest})
    return found


@dataclass(frozen=True)
class Limits:
    """The limits, checked. Raises OptionError or OptionTypeError for a wrong one."""

    max_body_bytes: int = _count(8 * 2**20, "the max size of a request's body")
    max_header_bytes: int = _count(32 * 2**10, "the max size of a request's headers", 1024)
    max_prompts: int = _count(1024, "the max number of prompts or texts in a request")
    max_prompt_chars: int = _count(2**18, "the max number of characters of a prompt or text")
    max_n: int = _count(128, "the max of n and best_of")
    max_tokens: int = _count(_INT32_MAX, "the max of max_tokens; the context limits it too", 0)
    max_logprobs: int = _count(20, "the max of logprobs and top_logprobs, at most 128", 0)
    max_stops: int = _count(16, "the max number of stop strings")
    max_items: int = _count(1024, "the max number of ids or words in logit_bias and other lists")
    max_running: int = _count(256, "the max number of sequences that run together")
    max_queued: int = _count(1024, "the max number of sequences that wait to run", 0)
    max_scoring: int = _count(64, "the max number of requests that score or embed texts")
    max_scored_tokens: int = _count(
        2**17, "the max number of tokens that a request scores or embeds"
    )
    max_connections: int = _count(1024, "the max number of open connections")
    header_seconds: float = _limit(10, "how long a client may take to send headers", 0.01)
    body_seconds: float = _limit(30, "how long a client may take to send a body", 0.01)
    request_seconds: float = _limit(600, "how long a request may run, queueing included", 0.01)
    write_seconds: float = _limit(60, "how long a client may leave a full buffer unread", 0.01)
    idle_seconds: float = _limit(30, "how long a connection stays open without a request", 0.01)
    drain_seconds: float = _limit(30, "how long running requests may go on after SIGTERM", 0)

    def __post_init__(self) -> None:
        """Check every limit."""
        # Here, because the parser of the command line has the limits, and must not need NumPy.
        from gpt2c.checks.options import integer, number

        for limit in descriptions():
            value = getattr(self, limit.name)
            if limit.is_count:
                highest = 128 if limit.name == "max_logprobs" else _INT32_MAX
                integer(limit.name, value, int(limit.lowest), highest)
            else:
                number(limit.name, value, limit.lowest, _MAX_SECONDS)


class Description(NamedTuple):
    """One limit: its name, default, least value, and what it limits."""

    name: str
    default: float
    lowest: float
    help: str

    @property
    def is_count(self) -> bool:
        """Whether it is an integer rather than a number of seconds."""
        return not self.name.endswith("_seconds")


def descriptions() -> list[Description]:
    """Return a description of each limit, in order."""
    defaults: dict[str, float] = {f.name: f.default for f in fields(Limits)}  # type: ignore[misc]
    return [
        Description(f.name, defaults[f.name], f.metadata["lowest"], f.metadata["help"])
        for f in fields(Limits)
    ]
