"""Imports Ray, which is an extra."""

from __future__ import annotations

from typing import Any

from gpt2c.errors import MissingDependencyError


def import_ray() -> Any:
    """Return the package ray, with ray.data. Raises MissingDependencyError."""
    try:
        import ray
        import ray.data  # noqa: F401 - callers use it as an attribute of ray
        import ray.util.scheduling_strategies  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"jobs on a cluster need Ray with Ray Data ({error}): pip install 'gpt2c[ray]'"
        ) from None
    return ray
