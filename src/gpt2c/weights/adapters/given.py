"""The argument `adapter` of from_pretrained: adapters with their weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from gpt2c.checks.options import number
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError

_PathOrName: TypeAlias = "str | os.PathLike[str]"
# A folder or a name on the hub; a list of them, or of pairs (folder, weight).
Adapters: TypeAlias = "_PathOrName | Sequence[_PathOrName | tuple[_PathOrName, float]]"

_MAX_ADAPTERS: Final = 100
_MAX_WEIGHT: Final = 1e6


@dataclass(frozen=True)
class GivenAdapter:
    """An adapter to merge: its folder or name, and the factor of its change of the weights."""

    path: str | Path
    weight: float = 1.0


def given_adapters(adapter: Adapters) -> list[GivenAdapter]:
    """Check and unify the forms of the argument `adapter`.

    Raises OptionTypeError for other types, and OptionError for an empty list, too many adapters,
    and a weight that is not finite.
    """
    if isinstance(adapter, str | os.PathLike):
        return [GivenAdapter(_checked_path(adapter))]
    if not isinstance(adapter, Sequence) or isinstance(adapter, bytes):
        raise _wrong_type(adapter)
    if not 1 <= len(adapter) <= _MAX_ADAPTERS:
        raise OptionError(
            f"adapter has {len(adapter)} items; it must have from 1 to {_MAX_ADAPTERS}"
        )
    if len(adapter) == 2 and isinstance(adapter[1], int | float):
        raise OptionTypeError(
            f"adapter is {show(adapter)}; it must be a list of pairs: adapter=[(folder, weight)]"
        )
    return [_given(item) for item in adapter]


def _given(item: object) -> GivenAdapter:
    if isinstance(item, str | os.PathLike):
        return GivenAdapter(_checked_path(item))
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise _wrong_type(item)
    weight = number("the weight of an adapter", item[1], -_MAX_WEIGHT, _MAX_WEIGHT)
    return GivenAdapter(_checked_path(item[0]), weight)


def _checked_path(path: object) -> str | Path:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise _wrong_type(path)
    if not os.fspath(path):
        raise OptionError("adapter is empty; it must be a folder or a name on the hub")
    return path if isinstance(path, str) else Path(path)


def _wrong_type(found: object) -> OptionTypeError:
    return OptionTypeError(
        f"adapter is {show(found)}; it must be a folder or a name on the hub, or a list of them, "
        "or of pairs (folder, weight)"
    )
