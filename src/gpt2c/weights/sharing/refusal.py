"""Why weights cannot be shared."""

from __future__ import annotations


class NotShared(Exception):
    """The weights cannot be shared. The message says why; it ends up in a SharingWarning."""
