"""The engine interface: Protocols that both engines implement, and the plain types they share.

Callers use these types alone, so the compiled engine (``_engine``) and NumPy's (``numpy_engine``)
are interchangeable. tests/test_shared_constants.py compares the constants with C's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from io import FileIO
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpt2c.errors import OptionError, OptionTypeError

MAX_ROWS: Final = 256  # the max number of tokens in one forward call, over all its sequences
PAGE_POSITIONS: Final = 64  # positions in a page of the KV cache
MAX_LOGPROBS: Final = 128  # the max number of alternatives per score

ALLOWED_IDS: Final = "allowed_ids"  # the only stage that is not an option of users

NO_IDS: Final[NDArray[np.int32]] = np.empty(0, dtype=np.int32)
_NO_VALUES: Final[NDArray[np.float32]] = np.empty(0, dtype=np.float32)

# The score of a token, and one of the likeliest ids at its position; gpt2c.h has the same structs.
# log_prob and entropy are in nats; the most likely id has rank 1.
SCORE_TYPE: Final = np.dtype(
    [("log_prob", np.float32), ("entropy", np.float32), ("rank", np.int32)]
)
TOP_TYPE: Final = np.dtype([("log_prob", np.float32), ("id", np.int32)])
Scores: TypeAlias = tuple[NDArray[np.void], NDArray[np.void]]  # [n], [n, n_top]

# Scores, and the values of a Measures, float32 [n, n_values].
MeasuredScores: TypeAlias = tuple[NDArray[np.void], NDArray[np.void], NDArray[np.float32]]

# The ids that a token may have: bool [n_vocab], or a packed bitmask, uint32 or int32
# [ceil(n_vocab / 32)], in which id's bit is 1 << id % 32 of word id // 32.
AllowedIds: TypeAlias = NDArray[np.bool_] | NDArray[np.uint32] | NDArray[np.int32]

# The points of a forward call where activations can be captured or edited, in gpt2c.h's order: in
# each block, and outside the blocks.
BLOCK_POINTS: Final = (
    "resid_pre", "ln_1", "q", "k", "v", "scores", "probs", "attn_out", "resid_mid", "ln_2",
    "mlp_pre", "mlp_act", "mlp_out", "resid_post",
)  # fmt: skip
MODEL_POINTS: Final = ("embed", "ln_f", "logits")
# A callback that takes a point, its block (0 outside the blocks) and its rows. The callback may
# edit the rows in place. Scores and probs are [n_head * n, n]; logits are only the wanted rows;
# other points are [n, width].
OnActivation: TypeAlias = Callable[[str, int, NDArray[Any]], None]


@dataclass(frozen=True, eq=False)
class Stage:
    """One sampler stage, which changes the logits.

    GPT2C_PENALTIES and GPT2C_FILTERS in gpt2c.h say which fields a stage uses, and for what.
    """

    name: str
    value: float = 0.0
    other: float = 0.0
    count: int = 0
    span: int = 0
    ids: NDArray[np.int32] = field(default_factory=lambda: NO_IDS)
    values: NDArray[np.float32] = field(default_factory=lambda: _NO_VALUES)


@dataclass(frozen=True, eq=False)
class DraftSettings:
    """How speculative decoding drafts tokens: see gpt2c.generate.drafting."""

    lookup: bool = False  # copy the tokens that followed an earlier occurrence of the last tokens
    packing: bool = False  # use the model's own weights in 4 bits
    model: EngineModel | None = None  # use a draft model, which has the same vocabulary
    n_tokens: int = 0  # tokens drafted at a time; 0: as many as should save time


@dataclass(frozen=True, eq=False)
class Plan:
    """The sampler stages of a sequence. `draws` is True to sample tokens, False for the argmax."""

    stages: tuple[Stage, ...] = ()
    draws: bool = False

    def after(self, n_new: int) -> Plan:
        """Return the plan for the rest of a sequence that already has n_new new tokens."""
        return self._change_min(lambda count: max(count - n_new, 0))

    def with_min_new_tokens(self, n_new: int) -> Plan:
        """Return the plan with the count n_new in its min_new_tokens stage, if it has one."""
        return self._change_min(lambda _: n_new)

    def with_allowed_ids(self, mask: AllowedIds) -> Plan:
        """Return the plan with a mask that no other stage can override; it replaces an earlier one.

        An EOS token can end the sequence only if the mask allows it. The mask is copied. Raises
        OptionTypeError or OptionError for another dtype or shape. An engine raises OptionError if
        the mask has the wrong length for its vocabulary, or allows none of the vocabulary's ids.
        """
        # The mask comes first, whatever the sampler_order, so that filters see only allowed ids.
        # Among the penalties its position does not matter: a banned id stays banned.
        masked = Stage(ALLOWED_IDS, ids=_packed(mask))
        return Plan((masked, *(s for s in self.stages if s.name != ALLOWED_IDS)), self.draws)

    def _change_min(self, change: Callable[[int], int]) -> Plan:
        if not any(stage.name == "min_new_tokens" for stage in self.stages):
            return self
        stages = (
            replace(stage, count=change(stage.count)) if stage.name == "min_new_tokens" else stage
            for stage in self.stages
        )
        return Plan(tuple(stages), self.draws)


def unpack_words(packed: NDArray[np.int32]) -> list[list[int]]:
    """Return the words of a "bad_words" stage, which packs each word as its length and its ids."""
    words, at = [], 0
    while at < len(packed):
        words.append(packed[at + 1 : at + 1 + packed[at]].tolist())
        at += 1 + int(packed[at])
    return words


def _packed(mask: AllowedIds) -> NDArray[np.int32]:
    """Return a copy of the mask as packed words, int32 [ceil(n_vocab / 32)]."""
    given: NDArray[Any] = np.asarray(mask)
    if given.dtype not in (np.bool_, np.uint32, np.int32):
        raise OptionTypeError(
            f"the mask of allowed ids has the dtype {given.dtype}; it must be bool [n_vocab], or "
            "uint32 or int32 [ceil(n_vocab / 32)]"
        )
    if given.ndim != 1:
        raise OptionError(
            f"the mask of allowed ids has the shape {list(given.shape)}; it must have one dimension"
        )
    if given.dtype != np.bool_:
        return np.array(given).view(np.int32)
    padded = np.zeros(-(-len(given) // 32) * 32, dtype=np.bool_)
    padded[: len(given)] = given
    return np.packbits(padded, bitorder="little").view("<i4").astype(np.int32)


def unpack_allowed_ids(words: NDArray[np.int32], n_vocab: int) -> NDArray[np.bool_]:
    """Return the mask of an "allowed_ids" stage as bool [n_vocab].

    Raises OptionError if the number of words is wrong or no id is allowed.
    """
    n = -(-n_vocab // 32)
    if len(words) != n:
        raise OptionError(
            f"allowed_ids has {len(words)} words of 32 bits; {n_vocab} ids take {n} words"
        )
    octets = words.astype("<i4").view(np.uint8)
    mask = np.unpackbits(octets, count=n_vocab, bitorder="little").astype(np.bool_)
    if not mask.any():
        raise OptionError(
            f"allowed_ids leaves no token: set the bit of at least one id from 0 to {n_vocab - 1}"
        )
    return mask


class EngineSequence(Protocol):
    """The tokens that were fed, and their keys and values in the KV cache.

    Only one call may use a sequence at a time; a second call raises OptionError.
    """

    @property
    def length(self) -> int:
        """The number of fed tokens."""

    def feed(self, ids: NDArray[np.int32], n_logits: int) -> NDArray[np.float32]:
        """Feed ids int32 [n]; return the logits after the last n_logits (0, 1 or n) ids.

        The logits are float32 [n_logits, n_vocab]. An error leaves the sequence as it was.
        Raises OptionError, ContextError, CacheMemoryError or ClosedError.
        """

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises OptionError if there are fewer."""

    def copy(self) -> EngineSequence:
        """Return a copy, which shares each page of the cache until either sequence writes to it."""


class EngineJob(Protocol):
    """One sequence being continued by EngineModel.run."""

    @property
    def sequence(self) -> EngineSequence:
        """The sequence of the tokens that were fed so far."""

    @property
    def n_tokens(self) -> int:
        """The number of new tokens.

        While a thread runs the job, other threads may read this and `new_ids`, and nothing else.
        """

    @property
    def draft_counts(self) -> tuple[int, int, int]:
        """The numbers of forward calls that chose tokens, of drafted and of accepted tokens."""

    @property
    def finish_reason(self) -> str | None:
        """None while running; then "length", "stop", "context", "nan" or "nothing" (no id left)."""

    @property
    def end_id(self) -> int | None:
        """The EOS or other stop id that ended the sequence, or None; `new_ids` leaves it out."""

    def cancel(self) -> None:
        """Make a `run` of this job in another thread return soon; the job cannot run again."""

    def set_allowed_ids(self, mask: AllowedIds) -> None:
        """Restrict the next tokens to these ids, in place of an earlier mask.

        See Plan.with_allowed_ids. Call it between two calls of `run`. The compiled engine raises
        OptionError if another thread is running the job, which then keeps its mask.

        A step with drafts may choose several tokens, all under the same mask. So a job whose mask
        changes after each token must be made without drafts.
        """

    def prefill(self, n: int) -> None:
        """Feed the first n ids of the prompt, except those that were fed before.

        n must be less than the prompt's length. Raises ClosedError. Raises CacheMemoryError at
        once if the KV cache is full, because resting jobs of the same call may hold its pages.
        """

    def raise_failure(self) -> None:
        """Raise the error of the job's last step, if it failed; the job can be run again.

        `run` raises it itself; this is for jobs from EngineSharedWaiter.wait. Raises
        CacheMemoryError.
        """

    def new_ids(self, begin: int = 0) -> list[int]:
        """Return the new tokens, beginning at index `begin`."""

    def scores(self) -> Scores:
        """Return the scores of the new tokens. Raises OptionError for a job without n_top."""

    def end_scores(self) -> Scores | None:
        """Return the scores of end_id; None without it, or for a job without n_top."""

    def next_logits(self) -> NDArray[np.float32]:
        """Feed the rest of the prompt, or the last token.

        Returns the next token's logits, float32 [n_vocab]. Raises CacheMemoryError or ClosedError.
        """

    def advance(self, logits: NDArray[np.float32], raw_logits: NDArray[np.float32]) -> None:
        """Choose the next token from `logits`, and score it from the model's `raw_logits`.

        Both are float32 [n_vocab].
        """


@dataclass(frozen=True, eq=False)
class Measures:
    """What to measure of the distribution p at each scored position, beside its token's score.

    second_moment
        Whether to measure the sum of p * (log p)^2.
    orders
        The orders of Renyi entropies, log(sum of p^order) / (1 - order): above 0, other than 1,
        and maybe infinite (-log of the largest p).
    sets
        float32 [n_sets, n_vocab]: 0 for the ids of a set and -infinity for others. The log of the
        sum of p over each set is measured.
    other
        A model q of the same vocabulary on the same engine, or None. The cross-entropy, minus the
        sum of p * log q, and log q of the target are measured.

    A position's n_values values are in this order, in nats. All are NaN if a logit is NaN.
    """

    second_moment: bool = False
    orders: tuple[float, ...] = ()
    sets: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    other: EngineModel | None = None

    @property
    def n_values(self) -> int:
        """The number of values at each position."""
        n = int(self.second_moment) + len(self.orders) + len(self.sets)
        return n + 2 * (self.other is not None)


class EngineSharedWaiter(Protocol):
    """Waits for the jobs of many tasks, such as all tasks of asyncio.

    EngineModel.run waits for the jobs of one call. The added jobs run in the steps that any call of
    the model runs; a thread in `wait` runs steps if no call does. Any thread may call the methods.
    A waiter of a parent process raises ForkError in a forked child.
    """

    def add(self, job: EngineJob) -> None:
        """Let the job run one step, after which `wait` returns it.

        Nothing else may use the job until then. With drafts, a step may add several tokens. Raises
        OptionError if the job has finished or was already added, and ClosedError.
        """

    def remove(self, job: EngineJob) -> None:
        """Remove a job, after at most one more step. Do nothing if the job was not added."""

    def wait(self, seconds: float) -> list[EngineJob]:
        """Wait for at most `seconds`; return the jobs that have run a step.

        These jobs have a new token, have finished, have failed (see `raise_failure`) or were
        cancelled. Returns an empty list after `wake`, or when the time is over.
        """

    def wake(self) -> None:
        """Make `wait` in another thread return."""


@runtime_checkable
class EngineModel(Protocol):
    """A model's weights on an engine: immutable once loaded, shared by every call.

    After `close` every call raises ClosedError, except inside a `held` block.
    """

    @property
    def isa(self) -> str:
        """The compiled engine's instruction set, or "numpy"."""

    @property
    def dtype(self) -> str:
        """The format of the weights: "float32", "int8", "int4" or "float64"."""

    @property
    def n_vocab(self) -> int:
        """The number of token ids."""

    @property
    def n_positions(self) -> int:
        """The length of the context."""

    @property
    def n_embd(self) -> int:
        """The width of the residual stream."""

    @property
    def n_layer(self) -> int:
        """The number of blocks."""

    @property
    def n_threads(self) -> int:
        """The max number of threads of one call."""

    @property
    def n_bytes(self) -> int:
        """The memory of the weights, in bytes, including the weights packed for drafts."""

    @property
    def draft_bytes(self) -> int:
        """The memory of the weights packed for drafts, in bytes; 0 until drafts need them."""

    @property
    def page_bytes(self) -> int:
        """The bytes of one page of the KV cache; 0 after `close`."""

    @property
    def cache_bytes(self) -> int:
        """The bytes of the KV cache that sequences use; a page that several share counts once.

        In a forked child, the sequences of the parent may be left out. 0 after `close`.
        """

    @property
    def cache_limit(self) -> int:
        """The max of cache_bytes; 0 means no limit.

        A forward call that would exceed it calls `reclaim`, and raises CacheMemoryError if that
        frees nothing.
        """

    @cache_limit.setter
    def cache_limit(self, n_bytes: int) -> None: ...

    # A callback that frees some unneeded memory of the KV cache, and returns whether it did.
    reclaim: Callable[[], bool] | None

    def store_as(self, dtypes: dict[str, str]) -> None:
        """Choose the matrices of a float32 model that are stored in 16 bits; call it before `load`.

        `dtypes` maps the name of each to "float16" or "bfloat16". Results keep the bits of float32.
        Raises CacheMemoryError.
        """

    def change_stored_dtype(self, name: str, dtype: str) -> None:
        """Change the dtype of a 16-bit matrix to "float16", "bfloat16" or "float32".

        All its rows must be loaded again. Raises CacheMemoryError.
        """

    def stored_dtype(self, name: str) -> str:
        """Return the dtype in which a tensor is stored. Raises ClosedError.

        In a float32 model this may be "float16" or "bfloat16".
        """

    def load(self, name: str, rows: NDArray[np.float32], begin: int) -> bool:
        """Store rows [begin, begin + len(rows)) of a tensor; a vector is one row.

        Return False if the matrix is stored in 16 bits and a weight does not fit exactly. Then
        `change_stored_dtype` must change the dtype.
        """

    def read(self, name: str, rows: NDArray[np.float32], begin: int) -> None:
        """Copy rows [begin, begin + len(rows)) of a tensor into `rows`, dequantised to float32."""

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Return a view of the packed bytes of a matrix, valid until `close`.

        A loader may write to it. Raises OptionError if the engine does not pack the tensor.
        """

    def stream_rate(self) -> float:
        """Measure how fast this model's threads read its weights, in bytes per second."""

    def multiply_add_rate(self) -> float:
        """Measure the float operations per second of this model's threads; an FMA counts as two."""

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
        drafts: DraftSettings | None = None,
    ) -> EngineJob:
        """Return a job that continues ids int32 [n].

        The job takes over `sequence`, which already holds some of the first ids, but not all.
        `seed` and `sample` are the key of the noise with which a plan draws. With n_top, each new
        token gets a score and n_top alternatives. Raises OptionError for invalid arguments.
        """

    def run(self, jobs: list[EngineJob], max_steps: int) -> None:
        """Advance the jobs together for up to max_steps steps.

        Jobs of other threads' calls share the steps. With drafts, a step can add several tokens to
        a job. Returns early when a job finishes or is cancelled. Raises CacheMemoryError,
        ClosedError, or OptionError for a job that cannot run.
        """

    def shared_waiter(self) -> EngineSharedWaiter:
        """Return a new waiter, without jobs."""

    def score(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
    ) -> Scores:
        """Feed each sequence its ids, and score its targets, the tokens after its last ids.

        A sequence's ids are int32 [n], and its targets int32 [m], m <= n: target j follows id
        n - m + j. Returns the scores of all targets in order, each with n_top alternatives.
        """

    def measure(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
        measures: Measures,
        others: list[EngineSequence],
    ) -> MeasuredScores:
        """Score like `score`, with the same bits, and measure each target's distribution.

        `others` has a sequence of measures.other for each sequence, with the same tokens before
        `ids`, which are fed to it too; it is empty without another model.
        """

    def top_log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_top: int
    ) -> NDArray[np.void]:
        """Feed each sequence its ids; return the likeliest next tokens, TOP_TYPE [n, n_top].

        The likeliest comes first; ties go to the lower id. If n_top exceeds the vocabulary, the
        last entries have the id -1. If any logit is NaN, all log-probabilities of its row are NaN.
        """

    def log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        """Feed each sequence its ids; return the next token's log-probabilities, [n, n_vocab].

        They are float32, with the same bits as those of `score` and `top_log_probs`.
        """

    def hidden_states(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_blocks: int
    ) -> NDArray[Any]:
        """Feed each sequence its ids through the first n_blocks blocks; return [n_ids, n_embd].

        A row is the residual stream after these blocks, at each fed token of all sequences in
        order: the embeddings if n_blocks is 0, the output of ln_f if all blocks run. The dtype is
        float32, or float64 if the model's is. Afterwards the sequences lack the keys and values of
        the other blocks, so only this method may feed them, with at most as many blocks.
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
        """Apply the plan's stages to logits, float32 [n_vocab]; return the new logits.

        Removed ids have -infinity. ids and new_ids, int32, are the prompt and the new tokens so
        far. `seed` and `sample` are the key of the noise of stages that draw, such as xtc.
        """

    def forward(
        self,
        ids: NDArray[np.int32],
        locations: Collection[tuple[str, int]],
        logit_rows: NDArray[np.bool_],
        on_activation: OnActivation,
    ) -> NDArray[np.float32]:
        """Feed a whole sequence, and call `on_activation` at each (point, block) of `locations`.

        The callback may edit the values in place. The block is 0 for points outside the blocks.
        Returns the logits of the rows where logit_rows [n_ids] is true, float32 [n, n_vocab].
        """

    def held(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps the weights, even after `close`.

        Blocks of one thread may be nested.
        """

    def check_open(self) -> None:
        """Raise ClosedError after `close`."""

    def close(self) -> None:
        """Free the weights once running calls have ended."""


NO_MEASURES: Final = Measures()


class SharedEngineModel(EngineModel, Protocol):
    """A model on the compiled engine, whose weights may lie in a file of memory."""

    def packed_sizes(self) -> tuple[int, int]:
        """Return the bytes that `move_to` needs for the weights and for those packed for drafts.

        The second number is 0 for an int4 model. Raises CacheMemoryError.
        """

    def move_to(self, file: FileIO, n_file_bytes: int, begin: int, draft_begin: int) -> None:
        """Move the weights, and those packed for drafts, to a new file; close the model.

        The file, of n_file_bytes bytes, is mapped only during this call. Raises CacheMemoryError if
        it cannot be mapped, and OptionError if the weights do not fit in it.
        """

    def attach(
        self,
        file: FileIO,
        n_file_bytes: int,
        dtypes: dict[str, str],
        part: tuple[int, int],
        draft_part: tuple[int, int],
    ) -> None:
        """Use weights that `move_to` has moved to a file, instead of loading weights.

        `dtypes` is as in `store_as`. The parts are pairs (first byte, bytes) of the file, for the
        weights and for those packed for drafts, which may have 0 bytes. The model keeps the file,
        and maps it for reading only. Raises CacheMemoryError if it cannot be mapped, and
        OptionError if it does not hold such weights.
        """
