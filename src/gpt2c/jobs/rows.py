"""A row that a job reads, and what the job writes for it. Both are plain data, which pickles."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt2c.tables import Cell


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row of a job's inputs.

    number
        The row's place among the rows of all inputs, bad ones included, from 0.
    place
        Where it stands, for messages: "prompts.jsonl, line 7".
    cells
        The cells by column; none if the row could not be read.
    error
        Why the row could not be read; None for a good row.
    """

    number: int
    place: str
    cells: dict[str, Cell]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a job found for a row.

    number, place
        As of the JobRow.
    rows
        The rows to write: one, or several for a row with several texts or words. None for a bad
        row, and for a text without words.
    error
        Why the row is bad; None for a good row.
    tokens, new_tokens
        The number of tokens that were read, and that were generated.
    id
        The cell of the column that the option id_column names.
    """

    number: int
    place: str
    rows: list[dict[str, Cell]] = field(default_factory=list)
    error: str | None = None
    tokens: int = 0
    new_tokens: int = 0
    id: Cell = None
