"""Types of the compiled engine. gpt2c.engine.protocol describes Model, Sequence and Job."""

import io
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import (
    AllowedIds,
    DraftSettings,
    EngineJob,
    EngineSequence,
    MeasuredScores,
    Measures,
    OnActivation,
    Plan,
    Scores,
)

NUMBERS: dict[str, int]
ENUMS: dict[str, dict[str, int]]
LAYOUTS: dict[str, np.dtype[np.void]]

def instruction_sets() -> list[tuple[str, bool]]:
    """Return the compiled instruction sets, slowest first: (name, whether this CPU can run it)."""

def reported_cpus() -> tuple[int, int, int, float]:
    """Return (CPUs, physical cores, performance cores, quota in CPUs) that this process may use.

    A number is 0 if the system does not say; that of performance cores also if all cores are alike.
    """

class Model:
    isa: str
    dtype: str
    n_vocab: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_threads: int
    reclaim: Callable[[], bool] | None
    def __init__(
        self, config: GPT2Config, isa: str, n_threads: int, dtype: str = "float32"
    ) -> None: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def draft_bytes(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
    @property
    def cache_limit(self) -> int: ...
    @cache_limit.setter
    def cache_limit(self, n_bytes: int) -> None: ...
    def store_as(self, dtypes: dict[str, str]) -> None: ...
    def packed_sizes(self) -> tuple[int, int]:
        """Return the bytes that `move_to` needs for the weights and for those packed for drafts."""

    def move_to(self, file: io.FileIO, n_file_bytes: int, begin: int, draft_begin: int) -> None:
        """Move the weights to a new file of memory, and close the model."""

    def attach(
        self,
        file: io.FileIO,
        n_file_bytes: int,
        dtypes: dict[str, str],
        part: tuple[int, int],
        draft_part: tuple[int, int],
    ) -> None:
        """Use weights that `move_to` has moved to a file of memory, instead of loading weights."""

    def change_stored_dtype(self, name: str, dtype: str) -> None: ...
    def stored_dtype(self, name: str) -> str: ...
    def load(self, name: str, rows: NDArray[np.float32], begin: int) -> bool: ...
    def read(self, name: str, rows: NDArray[np.float32], begin: int) -> None: ...
    def packed(self, name: str) -> NDArray[np.uint8]: ...
    def stream_rate(self) -> float: ...
    def multiply_add_rate(self) -> float: ...
    def sequence(self) -> Sequence: ...
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
    ) -> Job: ...
    def run(self, jobs: list[EngineJob], max_steps: int) -> None: ...
    def shared_waiter(self) -> SharedWaiter: ...
    def score(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
    ) -> Scores: ...
    def measure(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
        measures: Measures,
        others: list[EngineSequence],
    ) -> MeasuredScores: ...
    def top_log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_top: int
    ) -> NDArray[np.void]: ...
    def log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]]
    ) -> NDArray[np.float32]: ...
    def hidden_states(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_blocks: int
    ) -> NDArray[Any]: ...
    def apply_stages(
        self,
        plan: Plan,
        logits: NDArray[np.float32],
        ids: NDArray[np.int32],
        new_ids: NDArray[np.int32],
        seed: int = 0,
        sample: int = 0,
    ) -> NDArray[np.float32]: ...
    def forward(
        self,
        ids: NDArray[np.int32],
        locations: Collection[tuple[str, int]],
        logit_rows: NDArray[np.bool_],
        on_activation: OnActivation,
    ) -> NDArray[np.float32]: ...
    def held(self) -> AbstractContextManager[None]: ...
    def check_open(self) -> None: ...
    def close(self) -> None: ...

class Sequence:
    def __init__(self, model: Model) -> None: ...
    @property
    def length(self) -> int: ...
    def feed(self, ids: NDArray[np.int32], n_logits: int) -> NDArray[np.float32]: ...
    def truncate(self, length: int) -> None: ...
    def copy(self) -> Sequence: ...

class Job:
    sequence: Sequence
    cancelled: bool
    @property
    def n_tokens(self) -> int: ...
    @property
    def draft_counts(self) -> tuple[int, int, int]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def end_id(self) -> int | None: ...
    def cancel(self) -> None: ...
    def raise_failure(self) -> None: ...
    def set_allowed_ids(self, mask: AllowedIds) -> None: ...
    def prefill(self, n: int) -> None: ...
    def new_ids(self, begin: int = 0) -> list[int]: ...
    def scores(self) -> Scores: ...
    def end_scores(self) -> Scores | None: ...
    def next_logits(self) -> NDArray[np.float32]: ...
    def advance(self, logits: NDArray[np.float32], raw_logits: NDArray[np.float32]) -> None: ...

class SharedWaiter:
    def add(self, job: EngineJob) -> None: ...
    def remove(self, job: EngineJob) -> None: ...
    def wait(self, seconds: float) -> list[EngineJob]: ...
    def wake(self) -> None: ...

def elementwise(isa: str, function: str, x: ArrayLike) -> NDArray[np.float32]: ...
def layer_norm(
    isa: str,
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    epsilon: float,
) -> NDArray[np.float32]: ...
def narrow(isa: str, rows: NDArray[np.float32], dtype: str) -> tuple[NDArray[np.uint16], bool]: ...
def widen(isa: str, narrow: NDArray[np.uint16], dtype: str) -> NDArray[np.float32]: ...
def matmul(
    isa: str,
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
    activation: str | None,
    dtype: str = "float32",
) -> NDArray[np.float32]: ...
def quantize_rows(
    isa: str, x: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]: ...
def quantize_block(
    isa: str, bits: int, weights: NDArray[np.float32], n_scales: int = 16
) -> NDArray[np.uint8]: ...
def integer_matmul(
    isa: str,
    bits: int,
    rows: tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]],
    panels: NDArray[np.uint8],
    n: int,
    activation: str | None = None,
    is_out_quantized: bool = False,
) -> Any: ...
def store(
    isa: str, key: NDArray[np.float32], value: NDArray[np.float32], is_bfloat16: bool
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def attention(
    isa: str,
    q: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    scale: float,
    is_bfloat16: bool = False,
) -> NDArray[np.float32]: ...
def arg_max(isa: str, logits: NDArray[np.float32]) -> int: ...
def add(isa: str, x: NDArray[np.float32], added: NDArray[np.float32]) -> NDArray[np.float32]: ...
def log_sum_exp(isa: str, logits: NDArray[np.float32]) -> tuple[float, float]: ...
def measures(
    isa: str,
    logits: NDArray[np.float32],
    order: float,
    added: NDArray[np.float32],
    other: NDArray[np.float32],
) -> tuple[float, float, float, float]: ...
def rank(isa: str, logits: NDArray[np.float32], id: int) -> int: ...
def draw(
    isa: str,
    logits: NDArray[np.float32],
    ids: NDArray[np.int32],
    seed: int,
    sample: int,
    position: int,
) -> tuple[int, float]: ...
def uniform(isa: str, seed: int, sample: int, position: int) -> float: ...
def bytes_needed(sequence: EngineSequence, n_tokens: int) -> int: ...
def tile_rows(isa: str) -> int: ...
def product_rectangles(
    n_rows: int, n_panels: int, tile_rows: int, worker: int, n_workers: int
) -> list[tuple[int, int, int, int]]: ...
def attention_rectangles(
    feeds: Collection[tuple[int, int]], n_head: int, worker: int, n_workers: int
) -> list[tuple[int, int, int, int]]: ...
def pretend_cpus(n: int) -> None: ...
def learn_crowding(
    reports: Iterable[tuple[int, int, float, float, float, float]], now: float, n_workers: int
) -> tuple[int, bool]: ...
