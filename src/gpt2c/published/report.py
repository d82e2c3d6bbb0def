"""The result of a check, and how results are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    name, status
        What was checked, and whether it holds; "skipped" if it could not be checked.
    found, expected
        What this model gives, and what it should give.
    tolerance, source
        The largest difference that is allowed with the reason for its size, and where the expected
        result was published; "" if there is none.
    """

    name: str
    status: Status
    found: str
    expected: str
    tolerance: str = ""
    source: str = ""


def checked(
    is_right: bool, name: str, found: str, expected: str, tolerance: str = "", source: str = ""
) -> Check:
    """Return the result of a check that was made."""
    return Check(name, "ok" if is_right else "FAILED", found, expected, tolerance, source)


def skipped(name: str, reason: str, source: str = "") -> Check:
    """Return the result of a check that could not be made."""
    return Check(name, "skipped", reason, "", source=source)
