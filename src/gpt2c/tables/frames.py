"""Make pandas and polars frames from columns; neither package is a dependency of gpt2c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from gpt2c.checks.names import choice
from gpt2c.checks.untrusted import show
from gpt2c.errors import MissingDependencyError, TableError
from gpt2c.tables.table import Cell
from gpt2c.tables.writing import Metadata

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import polars
    from numpy.typing import NDArray

# A column's cells: an array of shape [n_rows], or a sequence.
Cells: TypeAlias = "NDArray[np.generic] | Sequence[Cell]"


@overload
def to_frame(
    columns: Mapping[str, Cells], kind: Literal["pandas"], metadata: Metadata | None = None
) -> pandas.DataFrame: ...
@overload
def to_frame(
    columns: Mapping[str, Cells], kind: Literal["polars"], metadata: Metadata | None = None
) -> polars.DataFrame: ...
def to_frame(
    columns: Mapping[str, Cells],
    kind: Literal["pandas", "polars"],
    metadata: Metadata | None = None,
) -> pandas.DataFrame | polars.DataFrame:
    """Return a frame with the columns, in their order.

    An array keeps its dtype; its numbers are copied. NaN stays NaN. `metadata` becomes the `attrs`
    of a pandas frame; a polars frame has no place for it.

    Raises OptionError for another kind, TableError if the columns differ in length, and
    MissingDependencyError if the package is not installed.
    """
    choice("kind", kind, ("pandas", "polars"))
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TableError(f"the columns have different lengths: {show(lengths)}")
    try:
        if kind == "polars":
            import polars

            return polars.DataFrame(dict(columns))
        import pandas
    except ImportError:
        raise MissingDependencyError(
            f"the frame needs the package {kind}: pip install {kind}"
        ) from None
    frame = pandas.DataFrame(dict(columns))
    frame.attrs.update(metadata or {})
    return frame
