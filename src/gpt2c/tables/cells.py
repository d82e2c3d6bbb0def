"""What a row may hold to be written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from gpt2c.checks.names import did_you_mean
from gpt2c.checks.untrusted import show, show_list
from gpt2c.errors import OptionTypeError, TableError
from gpt2c.tables.table import Cell, Columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A row may hold NumPy's scalars and arrays too.
Writable: TypeAlias = "Cell | np.generic | NDArray[np.generic]"


def check_columns(row: Mapping[str, Writable], columns: Columns, place: str) -> None:
    """Raise TableError if a row has a column that the table lacks."""
    for column in row:
        if column not in columns:
            raise TableError(
                f"{place}: has the column {show(column)}, which the table lacks"
                f"{did_you_mean(column, columns)}; the columns are {show_list(tuple(columns))}"
            )


def plain_cell(value: Writable) -> Cell:
    """Return a cell without NumPy's types; NaN and infinities become None."""
    if value is None or isinstance(value, str | int):  # a bool is an int
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain_cell(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_cell(item) for item in value]
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy
        return plain_cell(value.tolist())
    raise OptionTypeError(
        f"a cell is {show(value)}; it must be text, a number, a bool, None or a list"
    )
