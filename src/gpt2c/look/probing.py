"""Capture the activations of a forward pass, and edit them while it runs (patching, ablation).

A point is a named activation of the pass. The names are those of interpretability research (Nanda
and Bloom 2022, "TransformerLens"). Probing runs the same kernels as any other forward pass; it only
splits fused steps in which a point lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2c.checks.options import did_you_mean, integer, is_integer, items
from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import BLOCK_POINTS, MODEL_POINTS, EngineModel
from gpt2c.errors import CacheMemoryError, ContextError, OptionError, OptionTypeError

Array: TypeAlias = NDArray[Any]
Edit: TypeAlias = Callable[[Array], ArrayLike] | ArrayLike
Names: TypeAlias = "Sequence[str] | Set[str]"
Ints: TypeAlias = "Sequence[int] | Set[int] | NDArray[np.integer[Any]]"
Location: TypeAlias = tuple[str, int]  # a point and its block; block 0 for points outside blocks

POINTS: Final = (*MODEL_POINTS, *BLOCK_POINTS)
_BY_HEAD: Final = ("q", "k", "v", "scores", "probs")  # points whose first axis is n_head
_MASKED: Final = {"scores": -np.inf, "probs": 0}  # the values that the causal mask sets


@dataclass(frozen=True)
class CaptureTarget:
    """Where to store a point's values."""

    array: Array  # for the values in one block, or for those in all blocks, stacked
    block: int | None  # the block's index in a stacked array, else None

    def put(self, values: Array) -> None:
        """Store the values of one block."""
        (self.array if self.block is None else self.array[self.block])[...] = values


class InstrumentedForward:
    """One forward pass that captures and edits activations."""

    def __init__(
        self,
        engine: EngineModel,
        config: GPT2Config,
        ids: NDArray[np.int32],
        capture: Any,
        edit: Any,
        positions: Any,
    ) -> None:
        """Check the options and allocate the captured arrays; see GPT2.forward."""
        if len(ids) == 0:
            raise OptionError("forward: ids is empty; it must hold at least one id")
        if len(ids) > config.n_positions:
            raise ContextError(
                f"forward: {len(ids)} tokens are more than the context's {config.n_positions} "
                "positions"
            )
        self._engine, self._config, self._ids = engine, config, ids
        self._positions = _checked_positions(positions, len(ids))
        self._edits = self._checked_edits(edit)
        self.captured: dict[str, Array] = {}
        self._targets: dict[Location, list[CaptureTarget]] = {}
        names = [capture] if isinstance(capture, str) else items("capture", capture, "names")
        for name in names:
            self._add_capture(name)

    def run(self) -> dict[str, Array]:
        """Run the pass; return the captured arrays by the names in `capture`."""
        visited = self._targets.keys() | self._edits.keys()
        logit_rows = np.zeros(len(self._ids), dtype=bool)
        if ("logits", 0) in visited:
            logit_rows[self._positions] = True
        self._engine.forward(self._ids, visited, logit_rows, self._visit)
        return self.captured

    # ---- options ----

    def _locations(self, name: object, option: str) -> list[Location]:
        """Return the locations that a name means: "h.3.probs" in block 3, "probs" in all blocks."""
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
                    f"{option}: {show(name)} names block {show(block)}; this model's blocks are 0 "
                    f"to {n_layer - 1}"
                )
            return [(point, int(block))]
        raise OptionError(
            f"{option}: {show(name)} is not a point; the points are {', '.join(MODEL_POINTS)}, and "
            f"in each block (as in h.0.resid_pre) {', '.join(BLOCK_POINTS)}"
            f"{did_you_mean(point or name, POINTS)}"
        )

    def _add_capture(self, name: Any) -> None:
        """Allocate the array for a name in `capture`."""
        locations = self._locations(name, "capture")
        if name in self.captured:
            return
        is_stacked = name in BLOCK_POINTS
        point = locations[0][0] if locations else name
        shape = self._shape(point, len(self._positions))
        try:
            array = np.empty((len(locations), *shape) if is_stacked else shape, dtype=self._dtype)
        except (MemoryError, ValueError) as error:
            raise CacheMemoryError(f"not enough memory to capture {name} ({error})") from None
        self.captured[name] = array
        for location in locations:
            target = CaptureTarget(array, location[1] if is_stacked else None)
            self._targets.setdefault(location, []).append(target)

    def _checked_edits(self, edit: Any) -> dict[Location, Edit]:
        if edit is None:
            return {}
        if not isinstance(edit, Mapping):
            raise OptionTypeError(
                f"edit is {show(edit)}; it must map points to functions or arrays"
            )
        edits: dict[Location, Edit] = {}
        for name, new_value in edit.items():
            for location in self._locations(name, "edit"):
                if location in edits:
                    raise OptionError(f"edit names the point {_full_name(*location)} twice")
                edits[location] = new_value
        return edits

    @property
    def _dtype(self) -> Any:
        return np.float64 if self._engine.dtype == "float64" else np.float32

    def _shape(self, point: str, n: int) -> tuple[int, ...]:
        """Return the shape in which users see the values of n tokens at a point."""
        c = self._config
        if point in ("scores", "probs"):
            return c.n_head, n, len(self._ids)
        if point in ("q", "k", "v"):
            return c.n_head, n, c.n_embd // c.n_head
        widths = {"mlp_pre": c.inner, "mlp_act": c.inner, "logits": c.vocab_size}
        return n, widths.get(point, c.n_embd)

    # ---- while the engine runs ----

    def _visit(self, point: str, block: int, rows: Array) -> None:
        """Apply the point's edit to `rows`, in place, and capture the result.

        `rows` has the engine's shape; see OnActivation.
        """
        location = (point, block)
        # Logits are computed only at the captured positions.
        n = len(rows) if point == "logits" else len(self._ids)
        shape = self._shape(point, n)
        if location in self._edits:
            values = _user_view(rows, point, shape).copy()
            _write_back(rows, point, self._edited(location, values))
            if point in _MASKED:
                rows.reshape(shape)[:, ~np.tri(n, dtype=bool)] = _MASKED[point]
        values = _user_view(rows, point, shape)
        if point in _BY_HEAD:
            values = values[:, self._positions]
        elif point != "logits":
            values = values[self._positions]
        for target in self._targets.get(location, ()):
            target.put(values)

    def _edited(self, location: Location, values: Array) -> Array:
        """Return what the location's edit gives for `values`, with their shape and dtype."""
        edit = self._edits[location]
        edited: Any = edit(values) if callable(edit) else edit
        try:
            return np.broadcast_to(_as_real_array(edited, values.dtype), values.shape)
        except ValueError as error:
            found = f"shape {edited.shape}" if isinstance(edited, np.ndarray) else show(edited)
            raise OptionError(
                f"edit of {_full_name(*location)} gave {found}; expected real numbers that "
                f"broadcast to shape {values.shape} ({error})"
            ) from None


def _as_real_array(given: object, dtype: Any) -> Array:
    """Convert real numbers to an array of `dtype`. Raises ValueError for anything else."""
    try:
        array = np.asarray(given)
    except Exception as error:  # an object's __array__ may raise anything
        raise ValueError(str(error)) from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"NumPy converts it to the dtype {array.dtype}")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
        return array.astype(dtype)


def _full_name(point: str, block: int) -> str:
    return point if point in MODEL_POINTS else f"h.{block}.{point}"


def _checked_positions(positions: Any, n: int) -> NDArray[np.intp]:
    """Return the positions as indices from 0 to n - 1; all of them for None."""
    if positions is None:
        return np.arange(n)
    given = [positions] if is_integer(positions) else items("positions", positions, "ints")
    indices = [integer("a position", position, -n, n - 1) % n for position in given]
    if sorted(set(indices)) != indices:
        raise OptionError(
            f"positions are {show(given)}; they must be in strictly ascending order, without "
            f"duplicates (the prompt has {n} tokens)"
        )
    return np.array(indices, dtype=np.intp)


def _user_view(rows: Array, point: str, shape: tuple[int, ...]) -> Array:
    """View rows of the engine in the shape that users see, with the heads as the first axis."""
    if point in ("q", "k", "v"):
        n_head, n, head_dim = shape
        return rows.reshape(n, n_head, head_dim).swapaxes(0, 1)
    return rows.reshape(shape)


def _write_back(rows: Array, point: str, values: Array) -> None:
    """Write values in the shape that users see into rows of the engine."""
    if point in ("q", "k", "v"):
        values = values.swapaxes(0, 1)  # [n, n_head, head_dim]
    rows[...] = values.reshape(rows.shape)


def forward(
    engine: EngineModel,
    config: GPT2Config,
    ids: NDArray[np.int32],
    capture: str | Names,
    edit: Mapping[str, Edit] | None,
    positions: int | Ints | None,
) -> dict[str, Array]:
    """See GPT2.forward."""
    return InstrumentedForward(engine, config, ids, capture, edit, positions).run()
