"""What a job does with each row, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gpt2c.checks.names import choice
from gpt2c.checks.options import INT64_MAX, integer

KINDS: Final = ("generate", "score", "surprisal", "embed")

# The value of an option, as JSON holds it.
OptionValue: TypeAlias = "str | int | float | bool | list[OptionValue] | None"


@dataclass(frozen=True)
class Task:
    """What to do with each row.

    kind
        "generate", "score", "surprisal" or "embed".
    column
        The column of the prompts or texts: texts, or lists of token ids.
    options
        Keyword arguments of GPT2.complete, GPT2.score, gpt2c.surprisal or GPT2.embed. Three more
        change what is written: `with_ids` of generate and `with_tokens` of score add lists of
        tokens, and `whole` of surprisal writes a row for each text instead of each word.
    template
        A Template that makes the prompt or text; then `column` is not read.
    context_column
        The column of a context for each text, of surprisal.
    keep
        The columns to carry along into the results; None for all.
    id_column
        The column that names a row; None to add the column "row", the row's number from 1.
    seed
        The job's seed, from which each row's seed is derived (generate).
    """

    kind: str
    column: str = "text"
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    template: str | None = None
    context_column: str | None = None
    keep: tuple[str, ...] | None = None
    id_column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises OptionError or OptionTypeError."""
        choice("kind", self.kind, KINDS)
        integer("seed", self.seed, 0, INT64_MAX)


def row_seed(seed: int, number: int) -> int:
    """Return the seed of the row with this number, from 0 to 2**63 - 1.

    It depends on the job's seed and the row alone, so neither the other rows, their order nor
    restarts change a text.
    """
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
