"""Looking at what a model computes of a text, and changing it on the way.

The names are those that people who take GPT-2 apart use (Nanda and Bloom 2022, "TransformerLens");
the engine runs the kernels that it always runs, one part at a time where a point lies inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.checks.options import integer, is_integer, items, similar
from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import BLOCK_POINTS, MODEL_POINTS, EngineModel
from gpt2c.errors import CacheMemoryError, ContextError, OptionError, OptionTypeError

Array: TypeAlias = NDArray[Any]
Edit: TypeAlias = Callable[[Array], ArrayLike] | ArrayLike
Names: TypeAlias = "Sequence[str] | Set[str]"
Ints: TypeAlias = "Sequence[int] | Set[int] | NDArray[np.integer[Any]]"
Place: TypeAlias = tuple[str, int]  # a point and its block, 0 of the model's

POINTS: Final = (*MODEL_POINTS, *BLOCK_POINTS)
_BY_HEAD: Final = ("q", "k", "v", "scores", "probs")
_UNSEEN: Final = {"scores": -np.inf, "probs": 0}  # of tokens that come later


@dataclass(frozen=True)
class Captured:
    """Where a point's values go."""

    values: Array  # the whole result, of one block or of all
    block: int | None  # where in it, for all

    def put(self, value: Array) -> None:
        """Takes a block's."""
        (self.values if self.block is None else self.values[self.block])[...] = value


class Probe:
    """One forward call that is looked at."""

    def __init__(
        self,
        engine: EngineModel,
        config: GPT2Config,
        ids: NDArray[np.int32],
        capture: Any,
        edit: Any,
        positions: Any,
    ) -> None:
        """Checks what is asked for; see GPT2.forward."""
        if len(ids) == 0:
            raise OptionError("forward: there is no id to begin with")
        if len(ids) > config.n_positions:
            raise ContextError(
                f"forward: {len(ids)} tokens are more than the context's {config.n_positions} "
                "positions"
            )
        self._engine, self._config, self._ids = engine, config, ids
        self._positions = _checked_positions(positions, len(ids))
        self._edits = self._checked_edits(edit)
        self.result: dict[str, Array] = {}
        self._captured: dict[Place, list[Captured]] = {}
        names = [capture] if isinstance(capture, str) else items("capture", capture, "names")
        for name in names:
            self._capture(name)

    def run(self) -> dict[str, Array]:
        """What was asked for, by its names."""
        shown = self._captured.keys() | self._edits.keys()
        logit_rows = np.zeros(len(self._ids), dtype=bool)
        if ("logits", 0) in shown:
            logit_rows[self._positions] = True
        self._engine.forward(self._ids, shown, logit_rows, self._show)
        return self.result

    # ---- what is asked for ----

    def _places(self, name: object, option: str) -> list[Place]:
        """The points that a name stands for: "h.3.probs" for one, "probs" for each block's."""
        n_layer = self._config.n_layer
        if not isinstance(name, str):
            raise OptionTypeError(f"{option} has {show(name)}; it must hold names of points")
        if name in MODEL_POINTS:
            return [(name, 0)]
        if name in BLOCK_POINTS:
            return [(name, block) for block in range(n_layer)]
        first, _, rest = name.partition(".")
        block, _, point = rest.partition(".")
        if first == "h" and point in BLOCK_POINTS:
            is_number = block.isascii() and block.isdecimal() and len(block) < 10
            if not is_number or int(block) >= n_layer:
                raise OptionError(
                    f"{option}: {show(name)} is of block {show(block)}; this model's are 0 to "
                    f"{n_layer - 1}"
                )
            return [(point, int(block))]
        raise OptionError(
            f"{option}: {show(name)} is no point; they are {', '.join(MODEL_POINTS)}, and of each "
            f"block (as in h.0.resid_pre) {', '.join(BLOCK_POINTS)}{similar(point or name, POINTS)}"
        )

    def _capture(self, name: Any) -> None:
        places = self._places(name, "capture")
        if name in self.result:
            return
        is_of_all = name in BLOCK_POINTS
        point = places[0][0] if places else name
        shape = self._shape(point, len(self._positions))
        try:
            values = np.empty((len(places), *shape) if is_of_all else shape, dtype=self._dtype)
        except (MemoryError, ValueError) as error:
            raise CacheMemoryError(f"not enough memory to capture {name} ({error})") from None
        self.result[name] = values
        for place in places:
            captured = Captured(values, place[1] if is_of_all else None)
            self._captured.setdefault(place, []).append(captured)

    def _checked_edits(self, edit: Any) -> dict[Place, Edit]:
        if edit is None:
            return {}
        if not isinstance(edit, Mapping):
            raise OptionTypeError(
                f"edit is {show(edit)}; it must map points to functions or arrays"
            )
        edits: dict[Place, Edit] = {}
        for name, change in edit.items():
            for place in self._places(name, "edit"):
                if place in edits:
                    raise OptionError(f"edit names the point {_text(*place)} twice")
                edits[place] = change
        return edits

    @property
    def _dtype(self) -> Any:
        return np.float64 if self._engine.dtype == "float64" else np.float32

    def _shape(self, point: str, n: int) -> tuple[int, ...]:
        """Of n tokens' values at a point, as users see them."""
        c = self._config
        if point in ("scores", "probs"):
            return c.n_head, n, len(self._ids)
        if point in ("q", "k", "v"):
            return c.n_head, n, c.n_embd // c.n_head
        widths = {"mlp_pre": c.inner, "mlp_act": c.inner, "logits": c.vocab_size}
        return n, widths.get(point, c.n_embd)

    # ---- while it runs ----

    def _show(self, point: str, block: int, rows: Array) -> None:
        """Changes rows where that is asked for, and keeps what is."""
        place = (point, block)
        # Of logits there are those of the positions alone.
        n = len(rows) if point == "logits" else len(self._ids)
        shape = self._shape(point, n)
        if place in self._edits:
            value = _as_users_see(rows, point, shape).copy()
            _store(rows, point, self._edited(place, value))
            if point in _UNSEEN:
                rows.reshape(shape)[:, ~np.tri(n, dtype=bool)] = _UNSEEN[point]
        value = _as_users_see(rows, point, shape)
        for captured in self._captured.get(place, ()):
            if point == "logits":
                captured.put(value)
            else:
                captured.put(value[:, self._positions] if point in _BY_HEAD else
                             value[self._positions])  # fmt: skip

    def _edited(self, place: Place, value: Array) -> Array:
        edit = self._edits[place]
        changed: Any = edit(value) if callable(edit) else edit
        try:
            return np.broadcast_to(_real_numbers(changed, value.dtype), value.shape)
        except ValueError as error:
            found = f"shape {changed.shape}" if isinstance(changed, np.ndarray) else show(changed)
            raise OptionError(
                f"edit of {_text(*place)} gave {found}; it must be real numbers of shape "
                f"{value.shape}, or what broadcasts to it ({error})"
            ) from None


def _real_numbers(given: object, dtype: Any) -> Array:
    """What NumPy takes for numbers, but for texts, dates, nothing, and what has imaginary parts.

    Raises ValueError.
    """
    try:
        array = np.asarray(given)
    except Exception as error:  # an object's own way to become an array may raise anything
        raise ValueError(str(error)) from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"NumPy makes {array.dtype} of it")
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return array.astype(dtype)


def _text(point: str, block: int) -> str:
    return point if point in MODEL_POINTS else f"h.{block}.{point}"


def _checked_positions(positions: Any, n: int) -> NDArray[np.intp]:
    if positions is None:
        return np.arange(n)
    given = [positions] if is_integer(positions) else items("positions", positions, "ints")
    places = [integer("a position", position, -n, n - 1) % n for position in given]
    if sorted(set(places)) != places:
        raise OptionError(
            f"positions are {show(given)}; they must be in ascending order, each once, for a text "
            f"of {n} tokens"
        )
    return np.array(places, dtype=np.intp)


def _as_users_see(rows: Array, point: str, shape: tuple[int, ...]) -> Array:
    """rows [n, width] in the shape of users, who have heads first."""
    if point in ("q", "k", "v"):
        n_head, n, head_dim = shape
        return rows.reshape(n, n_head, head_dim).swapaxes(0, 1)
    return rows.reshape(shape)


def _store(rows: Array, point: str, value: Array) -> None:
    if point in ("q", "k", "v"):
        value = value.swapaxes(0, 1)  # [n, n_head, head_dim]
    rows[...] = value.reshape(rows.shape)


def forward(
    engine: EngineModel,
    config: GPT2Config,
    ids: NDArray[np.int32],
    capture: str | Names,
    edit: Mapping[str, Edit] | None,
    positions: int | Ints | None,
) -> dict[str, Array]:
    """What GPT2.forward says."""
    return Probe(engine, config, ids, capture, edit, positions).run()
