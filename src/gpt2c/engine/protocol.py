"""What both engines take and give, besides ids and logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

NO_IDS: Final[NDArray[np.int32]] = np.empty(0, dtype=np.int32)
_NO_VALUES: Final[NDArray[np.float32]] = np.empty(0, dtype=np.float32)

# What an engine says of a token, and of the likeliest ids in its place; gpt2c.h has the same.
SCORE_TYPE: Final = np.dtype(
    [("log_prob", np.float32), ("entropy", np.float32), ("rank", np.int32)]
)
TOP_TYPE: Final = np.dtype([("log_prob", np.float32), ("id", np.int32)])
Scores: TypeAlias = tuple[NDArray[np.void], NDArray[np.void]]  # [n], [n, n_top]

# Where a forward call can be looked at, in gpt2c.h's order: in each block, and in the model.
BLOCK_POINTS: Final = (
    "resid_pre", "ln_1", "q", "k", "v", "scores", "probs", "attn_out", "resid_mid", "ln_2",
    "mlp_pre", "mlp_act", "mlp_out", "resid_post",
)  # fmt: skip
MODEL_POINTS: Final = ("embed", "ln_f", "logits")
# Gets a point, its block (0 for those of the model), and its rows, which it may change in place:
# [n, width]; of scores and probs [n_head * n, n]; of logits those that were asked for.
Show: TypeAlias = Callable[[str, int, NDArray[Any]], None]


@dataclass(frozen=True, eq=False)
class Stage:
    """One change of the logits; what the numbers mean is the stage's own affair."""

    name: str
    value: float = 0.0
    other: float = 0.0
    count: int = 0
    span: int = 0
    ids: NDArray[np.int32] = field(default_factory=lambda: NO_IDS)
    values: NDArray[np.float32] = field(default_factory=lambda: _NO_VALUES)


@dataclass(frozen=True, eq=False)
class Drafts:
    """What guesses a text's next tokens: see gpt2c.generate.drafting."""

    lookup: bool = False  # what followed the last tokens before
    packing: bool = False  # the model's own weights in 4 bits
    model: Any = None  # another engine model of the same vocabulary
    n_tokens: int = 0  # so many at a time; 0: as many as pay


@dataclass(frozen=True, eq=False)
class Plan:
    """The stages that every choice of a text goes through, and whether it is then drawn."""

    stages: tuple[Stage, ...] = ()
    draws: bool = False

    def after(self, n_new: int) -> Plan:
        """The plan of what is left of a text when n_new of its tokens are there."""
        return self._with_fewest(lambda fewest: max(fewest - n_new, 0))

    def with_fewest(self, n_new: int) -> Plan:
        """The same plan with a min of n_new new tokens, if it has the stage for that."""
        return self._with_fewest(lambda _: n_new)

    def _with_fewest(self, change: Callable[[int], int]) -> Plan:
        if not any(stage.name == "min_new_tokens" for stage in self.stages):
            return self
        stages = (
            replace(stage, count=change(stage.count)) if stage.name == "min_new_tokens" else stage
            for stage in self.stages
        )
        return Plan(tuple(stages), self.draws)


def unpack_words(packed: NDArray[np.int32]) -> list[list[int]]:
    """The words of a "bad_words" stage."""
    words, at = [], 0
    while at < len(packed):
        words.append(packed[at + 1 : at + 1 + packed[at]].tolist())
        at += 1 + int(packed[at])
    return words


MOST_LOGPROBS: Final = 128
