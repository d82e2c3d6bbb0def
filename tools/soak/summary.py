"""What the scripts of this folder print at their end."""

from __future__ import annotations

from collections.abc import Mapping


def print_counts(counts: Mapping[str, int]) -> None:
    """Print how often each kind of input or answer was seen."""
    for name, count in sorted(counts.items()):
        print(f"{count:9}  {name}")


def quarters(megabytes: list[float]) -> str:
    """Return sizes of the memory at the beginning, at each quarter and at the end of a run."""
    at = [megabytes[i * (len(megabytes) - 1) // 4] for i in range(5)] if megabytes else []
    return " ".join(f"{size:.0f}" for size in at)
