"""The limit of the KV cache: by default, half of the memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from gpt2c.checks.options import INT64_MAX, integer
from gpt2c.engine.control_groups import folders_v1, folders_v2, read
from gpt2c.engine.protocol import PAGE_POSITIONS, EngineModel


def choose_cache_limit(requested: int | None, model: EngineModel, root: Path = Path("/")) -> int:
    """Return the bytes that the KV cache of a model may take; 0 means no limit.

    The limit is `requested`, at least one page; or else half of the memory that this process may
    use, but at least one full context; or else, if the system does not say how much that is, none.
    Raises OptionError or OptionTypeError.
    """
    if requested is not None:
        return integer("kv_cache_bytes", requested, max(model.page_bytes, 1), INT64_MAX)
    usable = usable_memory(root)
    n_pages = -(-model.n_positions // PAGE_POSITIONS)
    return 0 if usable is None else max(usable // 2, n_pages * model.page_bytes)


def usable_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use; None if the system does not say.

    They are the min of the machine's memory and the limits of the control group and its parents.
    """
    limits = _group_limits(root)
    if (physical := _physical_memory()) is not None:
        limits.append(physical)
    return min(limits, default=None)


def cache_full(what: str, limit: int) -> str:
    """Return the message of a CacheMemoryError: `what` would exceed the limit."""
    return (
        f"the KV cache's limit of {limit} bytes leaves no room for {what}; run fewer or shorter "
        "texts at a time, drop sessions that you no longer need, or load the model with a larger "
        "kv_cache_bytes"
    )


def _group_limits(root: Path) -> list[int]:
    """Read the limits of the control groups: bytes, or "max" for none.

    Version 1 writes a number beyond any machine's memory for none.
    """
    files = [folder / "memory.max" for folder in folders_v2(root)]
    files += [folder / "memory.limit_in_bytes" for folder in folders_v1(root, "memory")]
    return [int(limit) for limit in map(read, files) if limit.isdigit()]


def _physical_memory() -> int | None:
    """Return the machine's memory in bytes; None on Windows, which has no sysconf."""
    try:
        n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return n_bytes if n_bytes > 0 else None
