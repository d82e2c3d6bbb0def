"""The types that a batch takes and returns: requests and results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import DraftSettings, Plan, Scores
from gpt2c.schedule.stops import Stops

# (ids of the prompt and the new tokens, logits [n_vocab]) -> logits [n_vocab]
LogitsProcessor: TypeAlias = Callable[[list[int], NDArray[np.float32]], Any]


@dataclass(frozen=True)
class Request:
    """One sequence to generate, or one beam search, with checked options."""

    index: int  # the prompt's index, for messages and the callback
    is_text: bool  # whether the prompt is a text; otherwise it is ids
    is_empty: bool  # whether the prompt is empty; ids then hold the start token
    ids: NDArray[np.int32]
    max_new_tokens: int
    plan: Plan
    seed: int | None
    sample: int
    stop_ids: NDArray[np.int32]
    stops: Stops = field(default_factory=Stops)
    n_top: int | None = None  # alternatives per scored token; None: no scores
    scores_prompt: bool = False
    overflow: str = "stop"  # what happens when the context is full
    logits_processor: LogitsProcessor | None = None
    drafts: DraftSettings | None = None
    n_best: int = 1  # the number of results of a beam search
    cache_space: int = 0  # the space of the prefix cache whose texts it shares
    pad_id: int | None = None  # a finished group of beams counts as choosing this id


def n_kept(overflow: str, n_positions: int) -> int:
    """Return the number of last tokens with which a full context goes on; 0 if the text ends."""
    if overflow == "slide":
        return max(n_positions // 2, 1)
    return n_positions if overflow == "crop" else 0


@dataclass(frozen=True)
class Result:
    """A finished sequence."""

    ids: list[int]
    finish_reason: str
    end: int | None = None  # where a stop string begins, in bytes of the ids' text
    scores: Scores | None = None
    prompt_scores: Scores | None = None
    draft_counts: tuple[int, int, int] = (0, 0, 0)  # passes, drafted, accepted
    sequence_score: float | None = None  # the score of a beam search
    end_id: int | None = None  # the token that ended the sequence
    end_scores: Scores | None = None  # of end_id
