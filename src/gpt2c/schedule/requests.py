"""What the running batch takes and gives: requests and results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import Drafts, Plan, Scores
from gpt2c.schedule.stops import Stops

# (the prompt's and the new ids, logits [n_vocab]) -> logits [n_vocab]
LogitsProcessor: TypeAlias = Callable[[list[int], NDArray[np.float32]], Any]


@dataclass(frozen=True)
class Request:
    """One text to be generated, ready for the engine."""

    index: int  # of its prompt
    is_text: bool  # rather than ids
    is_empty: bool  # ids are then what the model starts a text from
    ids: NDArray[np.int32]
    max_new_tokens: int
    plan: Plan
    seed: int | None
    sample: int
    stop_ids: NDArray[np.int32]
    stops: Stops = field(default_factory=Stops)
    n_top: int | None = None  # alternatives of scored tokens; None: no scores
    scores_prompt: bool = False
    slides: bool = False
    logits_processor: LogitsProcessor | None = None
    drafts: Drafts | None = None
    n_best: int = 1  # of a beam search's texts
    pad_id: int | None = None  # what transformers' groups of beams go on with when they are done


@dataclass(frozen=True)
class Result:
    """A text that is complete."""

    ids: list[int]
    finish_reason: str
    end: int | None = None  # in bytes, where the text ends before its ids do
    scores: Scores | None = None
    prompt_scores: Scores | None = None
    draft_counts: tuple[int, int, int] = (0, 0, 0)  # passes, drafted, accepted
    sequence_score: float | None = None  # of a beam
    end_id: int | None = None
