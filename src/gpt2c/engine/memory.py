"""The limit of the KV cache: by default, half of the memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from gpt2c.checks.options import INT64_MAX, integer
from gpt2c.engine.control_groups import folders_v1, folders_v2, read_text
from gpt2c.engine.protocol import PAGE_POSITIONS, EngineModel


def choose_cache_limit(requested: int | None, model: EngineModel, root: Path = Path("/")) -> int:
    """Return the bytes that the KV cache of a model may take; 0 means no limit.

    The limit is `requested`; or else half of the memory that this process may use, but at least one
    full context; or else, if the system does not say how much memory that is, no limit. Raises
    OptionTypeError if `requested` is not an integer, and OptionError if it is less than one page.
    """
    if requested is not None:
        return integer("kv_cache_bytes", requested, max(model.page_bytes, 1), INT64_MAX)
    usable = usable_memory(root)
    n_pages = -(-model.n_positions // PAGE_POSITIONS)
    return 0 if usable is None else max(usable // 2, n_pages * model.page_bytes)


def usable_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use; None if the system does not say.

    This is the min of the machine's memory and the limits of the control group and its parents, or
    of the job object on Windows.
    """
    return min([*_group_limits(root), *_physical_memory()], default=None)


def cache_full(what: str, limit: int) -> str:
    """Return the message of the CacheMemoryError for `what`, which would exceed the limit."""
    return (
        f"the KV cache's limit of {limit} bytes leaves no room for {what}; run fewer or shorter "
        "texts at a time, drop sessions that you no longer need, or load the model with a larger "
        "kv_cache_bytes"
    )


def _group_limits(root: Path) -> list[int]:
    """Return the limits of the control groups, in bytes.

    For no limit, version 2 writes "max", and version 1 a number beyond any machine's memory.
    """
    files = [folder / "memory.max" for folder in folders_v2(root)]
    files += [folder / "memory.limit_in_bytes" for folder in folders_v1(root, "memory")]
    return [int(limit) for limit in map(read_text, files) if limit.isdigit()]


def _physical_memory() -> list[int]:
    """Return the machine's memory in bytes, on Windows also the limits of its job object."""
    if not hasattr(os, "sysconf"):
        from gpt2c.engine.windows import memory_limits  # lazily, because it imports ctypes

        return memory_limits()
    try:
        n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return []
    return [n_bytes] if n_bytes > 0 else []
