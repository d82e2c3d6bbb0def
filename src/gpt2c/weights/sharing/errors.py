"""Why weights cannot be shared."""

from __future__ import annotations

from typing import Final

NEEDS_LINUX: Final = "this needs Linux"


class SharingError(Exception):
    """The weights cannot be shared. The message says why; it ends up in a SharingWarning."""
