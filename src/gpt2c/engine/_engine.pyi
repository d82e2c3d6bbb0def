"""Types of the compiled engine. gpt2c.engine.protocol describes Model, Sequence and Job."""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import (
    AllowedIds,
    Drafts,
    EngineJob,
    EngineSequence,
    OnActivation,
    Plan,
    Scores,
)

NUMBERS: dict[str, int]
ENUMS: dict[str, dict[str, int]]
LAYOUTS: dict[str, np.dtype[np.void]]

def instruction_sets() -> list[tuple[str, bool]]:
    """Return the compiled instruction sets, slowest first: (name, whether this CPU can run it)."""

class Model:
    isa: str
    dtype: str
    n_vocab: int
    n_positions: int
    n_threads: int
    def __init__(
        self, config: GPT2Config, isa: str, n_threads: int, dtype: str = "float32"
    ) -> None: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def draft_bytes(self) -> int: ...
    def load(self, name: str, rows: NDArray[np.float32], begin: int) -> None: ...
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
        drafts: Drafts | None = None,
    ) -> Job: ...
    def run(self, jobs: list[EngineJob], max_steps: int) -> None: ...
    def score(
        self,
        sequences: list[EngineSequence],
        ids: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]],
        n_top: int,
    ) -> Scores: ...
    def top_log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]], n_top: int
    ) -> NDArray[np.void]: ...
    def log_probs(
        self, sequences: list[EngineSequence], ids: list[NDArray[np.int32]]
    ) -> NDArray[np.float32]: ...
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
    def set_allowed_ids(self, mask: AllowedIds) -> None: ...
    def prefill(self, n: int) -> None: ...
    def new_ids(self, begin: int = 0) -> list[int]: ...
    def scores(self) -> Scores: ...
    def next_logits(self) -> NDArray[np.float32]: ...
    def advance(self, logits: NDArray[np.float32], raw_logits: NDArray[np.float32]) -> None: ...

def elementwise(isa: str, function: str, x: ArrayLike) -> NDArray[np.float32]: ...
def layer_norm(
    isa: str,
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    epsilon: float,
) -> NDArray[np.float32]: ...
def matmul(
    isa: str,
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
    activation: str | None,
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
    quantizes: bool = False,
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
def pretend_cpus(n: int) -> None: ...
def learn_crowding(
    reports: Iterable[tuple[int, int, float, float, float, float]], now: float, n_workers: int
) -> tuple[int, bool]: ...
