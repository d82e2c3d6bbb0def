"""What an engine is: the Protocols that both engines meet, and the plain types that they share.

The compiled engine (``_engine``) and NumPy's (``numpy_engine``) are interchangeable to all callers,
which know these types alone. Constants that C has too are compared with C's by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

MAX_ROWS: Final = 256  # tokens that one forward call takes, of all its sequences
PAGE_POSITIONS: Final = 64  # positions in a page of the KV cache
MOST_LOGPROBS: Final = 128  # alternatives of a score

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
    model: EngineModel | None = None  # a draft model, of the same vocabulary
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


class EngineSequence(Protocol):
    """Tokens that were fed, and their keys and values.

    One call uses a sequence at a time; a second one raises OptionError.
    """

    @property
    def length(self) -> int:
        """The number of tokens that were fed."""

    def feed(self, ids: NDArray[np.int32], n_logits: int) -> NDArray[np.float32]:
        """Feed ids int32 [n]; return float32 [n_logits, n_vocab], the logits after the last ones.

        n_logits is 0, 1 or n. An error leaves the sequence as it was.
        Raises OptionError, ContextError, CacheMemoryError or ClosedError.
        """

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises OptionError if there are fewer."""

    def copy(self) -> EngineSequence:
        """Return a sequence of the same tokens; pages are shared until one of the two writes."""


class EngineJob(Protocol):
    """One sequence being continued by EngineModel.run."""

    @property
    def sequence(self) -> EngineSequence:
        """What was fed so far."""

    @property
    def n_tokens(self) -> int:
        """The number of new tokens."""

    @property
    def draft_counts(self) -> tuple[int, int, int]:
        """Forward calls after the prompt's, drafted tokens, and how many of them were accepted."""

    @property
    def finish_reason(self) -> str | None:
        """ "length", "stop", "context", "nan", "nothing" (no id is left), or None: it goes on."""

    @property
    def end_id(self) -> int | None:
        """The token that ended the sequence, which is not among new_ids; None without one."""

    def cancel(self) -> None:
        """Make a `run` of this job in another thread return soon."""

    def prefill(self, n: int) -> None:
        """Feed the prompt's first n ids, fewer than all, unless that was done."""

    def new_ids(self, begin: int = 0) -> list[int]:
        """Return the new tokens without the first `begin`."""

    def scores(self) -> Scores:
        """Return the scores of the new tokens. Raises OptionError for a job without n_top."""

    def next_logits(self) -> NDArray[np.float32]:
        """Feed what is next; return float32 [n_vocab], the logits of the token to choose."""

    def advance(self, logits: NDArray[np.float32], own: NDArray[np.float32]) -> None:
        """Choose the next token from logits [n_vocab]; `own` are the model's, for its score."""


@runtime_checkable
class EngineModel(Protocol):
    """A model's weights on an engine: immutable once loaded, shared by every call.

    Every call raises ClosedError after `close`, but in a block of `held`.
    """

    @property
    def isa(self) -> str:
        """The compiled engine's instruction set, or "numpy"."""

    @property
    def dtype(self) -> str:
        """ "float32", "int8", "int4" or "float64"."""

    @property
    def n_vocab(self) -> int:
        """The number of token ids."""

    @property
    def n_positions(self) -> int:
        """The length of the context."""

    @property
    def n_threads(self) -> int:
        """The most threads that one call runs on."""

    @property
    def n_bytes(self) -> int:
        """Memory of the weights, those of drafts included."""

    @property
    def draft_bytes(self) -> int:
        """Memory of the weights that drafts are made with; 0 before any were."""

    def load(self, name: str, rows: NDArray[np.float32], begin: int) -> None:
        """Store rows [begin, begin + len(rows)) of a tensor; a vector is one row."""

    def read(self, name: str, rows: NDArray[np.float32], begin: int) -> None:
        """Fill rows with those of a tensor that begin at `begin`."""

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a matrix as the engine has packed them, valid until `close`.

        Raises OptionError where the tensor is not packed.
        """

    def stream_rate(self) -> float:
        """Measure the bytes a second at which this model's threads read its weights."""

    def multiply_add_rate(self) -> float:
        """Measure the float operations a second of this model's threads (an FMA is two)."""

    def sequence(self) -> EngineSequence:
        """Return an empty sequence."""

    def job(
        self,
        ids: NDArray[np.int32],
        max_new_tokens: int,
        plan: Plan,
        seed: int,
        sample: int,
        stop_ids: NDArray[np.int32],
        n_top: int | None = None,
        sequence: EngineSequence | None = None,
        drafts: Drafts | None = None,
    ) -> EngineJob:
        """Return a job that continues ids int32 [n].

        The job takes over `sequence`, which holds the first of ids. With n_top new tokens are
        scored, each with n_top alternatives. Raises OptionError for what cannot be run.
        """

    def run(self, jobs: list[EngineJob], max_steps: int) -> None:
        """Advance the jobs together, until one of them ends or each has max_steps more tokens."""

    def score(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
    ) -> Scores:
        """Feed each sequence its ids, and score the last len(targets) tokens that follow them.

        ids and targets are int32 [n_i] and [m_i], m_i <= n_i. The scores are those of all targets
        in order.
        """

    def top_log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_top: int
    ) -> NDArray[np.void]:
        """Feed each sequence its ids; return TOP_TYPE [n, n_top], the likeliest ids that follow.

        The likeliest comes first, and the lower id of ties. Past the vocabulary's end the id is
        -1. Where a logit is NaN, all log-probabilities of the row are.
        """

    def log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        """Feed each sequence its ids; return float32 [n, n_vocab], log-probabilities that follow.

        They have the bits of `score` and `top_log_probs`.
        """

    def apply_stages(
        self,
        plan: Plan,
        logits: NDArray[np.float32],
        ids: NDArray[np.int32],
        new_ids: NDArray[np.int32],
        seed: int = 0,
        sample: int = 0,
    ) -> NDArray[np.float32]:
        """Return logits [n_vocab] after the plan's stages, -infinity for removed ids.

        ids and new_ids, int32 [n] each, are the prompt and the new tokens that precede the choice.
        """

    def forward(
        self,
        ids: NDArray[np.int32],
        shown: Collection[tuple[str, int]],
        logit_rows: NDArray[np.bool_],
        show: Show,
    ) -> NDArray[np.float32]:
        """Feed a whole sequence, and call `show` at each (point, block) of `shown`.

        The block is 0 for the points of the model. Returns the logits float32 [n, n_vocab] of the
        rows where logit_rows [n_ids] is true.
        """

    def held(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps the weights, even if the model is closed meanwhile.

        Blocks of one thread may be nested.
        """

    def check_open(self) -> None:
        """Raise ClosedError after `close`."""

    def close(self) -> None:
        """Free the weights once running calls are done."""
