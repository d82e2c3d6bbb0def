"""Check the options of scoring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag, integer, is_integer, items
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import MAX_LOGPROBS, EngineModel, Measures
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.measure.scoring import ScoringOptions
from gpt2c.measure.windows import default_stride

# Closer to 1, the entropy's formula divides two small numbers, and float32 leaves no digits.
_MIN_DISTANCE_FROM_1: Final = 0.01
# A set takes 4 bytes a token of the vocabulary.
_MAX_SETS: Final = 64
_MAX_ORDERS: Final = 64
_MAX_FLOAT32: Final = float(np.finfo(np.float32).max)


def check_scoring(
    engine: EngineModel,
    *,
    stride: int | None,
    top_logprobs: int,
    second_moments: bool,
    renyi_orders: Sequence[float],
    id_sets: Sequence[Iterable[int]],
    other: EngineModel | None,
) -> ScoringOptions:
    """Return the checked options of GPT2.score; `other` is the other model's engine.

    Raises OptionError or OptionTypeError.
    """
    step = default_stride(engine.n_positions)
    if stride is not None:
        step = integer("stride", stride, 1, engine.n_positions)
    n_top = integer("top_logprobs", top_logprobs, 0, MAX_LOGPROBS)
    if other is not None:
        _check_other(engine, other)
    measures = Measures(
        second_moment=flag("second_moments", second_moments),
        orders=_checked_orders(renyi_orders),
        sets=_added_logits(id_sets, engine.n_vocab),
        other=other,
    )
    return ScoringOptions(step, n_top, measures)


def _check_other(engine: EngineModel, other: EngineModel) -> None:
    other.check_open()
    if type(other) is not type(engine):
        raise OptionError(
            f"other runs on the engine {other.isa} and this model on {engine.isa}; load both with "
            "the same backend"
        )
    if other.n_vocab != engine.n_vocab:
        raise OptionError(
            f"other has a vocabulary of {other.n_vocab} tokens and this model one of "
            f"{engine.n_vocab}; both need the same vocabulary"
        )


def _checked_orders(orders: Sequence[float]) -> tuple[float, ...]:
    found = []
    for given in _as_list("renyi_orders", orders, "numbers above 0", _MAX_ORDERS):
        if not is_integer(given) and not isinstance(given, float | np.floating):
            raise OptionTypeError(
                f"renyi_orders has {show(given)}; each must be a number above 0, such as 0.5, 2 or "
                "math.inf"
            )
        # Above float32's range, only the largest probability counts, as for infinity.
        order = math.inf if given > _MAX_FLOAT32 else float(np.float32(max(given, -1)))
        if not order > 0 or abs(order - 1) < _MIN_DISTANCE_FROM_1:
            raise OptionError(
                f"renyi_orders has {show(given)}; each must be above 0, and at least "
                f"{_MIN_DISTANCE_FROM_1} from 1 (the entropy of order 1 is in Score.entropies)"
            )
        found.append(order)
    return tuple(found)


def _added_logits(id_sets: Sequence[Iterable[int]], n_vocab: int) -> NDArray[np.float32]:
    """Return float32 [n_sets, n_vocab]: 0 for the ids of a set, -infinity for the others."""
    sets = _as_list("id_sets", id_sets, "sets of ids", _MAX_SETS)
    added = np.full((len(sets), n_vocab), -math.inf, dtype=np.float32)
    for index, ids in enumerate(sets):
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise OptionTypeError(f"id_sets[{index}] is {show(ids)}; it must be a set of ids")
        if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu" and ids.size:
            edges = [ids.min(), ids.max()]  # a large set is checked at once
            for id in edges:
                integer(f"an id of id_sets[{index}]", id, 0, n_vocab - 1)
            added[index, ids] = 0
            continue
        for id in ids:
            added[index, integer(f"an id of id_sets[{index}]", id, 0, n_vocab - 1)] = 0
    return added


def _as_list(name: str, values: object, what: str, max_length: int) -> list[Any]:
    found = items(name, values, what)
    if len(found) > max_length:
        raise OptionError(f"{name} has {len(found)} items; it may have at most {max_length}")
    return found
