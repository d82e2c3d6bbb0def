"""The windows in which texts are scored, and the prefixes that windows share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The least number of tokens that a window copies from another one. A copy also copies a page of
# the KV cache, which takes about as long as feeding a token.
MIN_SHARED: Final = 16


def default_stride(n_positions: int) -> int:
    """Return how many tokens apart windows begin by default: half of the context."""
    return max(n_positions // 2, 1)


class Window(NamedTuple):
    """Ids to feed, and the targets to score: the ids that follow the last len(targets) fed ids."""

    fed: NDArray[np.int32]
    targets: NDArray[np.int32]

    @property
    def n_unscored(self) -> int:
        """The number of fed ids, the first ones, that have no target."""
        return len(self.fed) - len(self.targets)


class Source(NamedTuple):
    """The window whose first n_shared fed ids another window copies."""

    donor: int  # its index
    n_shared: int


def windows_of(ids: NDArray[np.int32], n_given: int, size: int, stride: int) -> list[Window]:
    """Cut a text into windows; the list is empty if there is no token to score.

    The first n_given ids, at least one, are not scored. Windows of `size` tokens begin
    `stride` tokens apart, and each token is scored in the first window that contains it.
    """
    windows = []
    n_done, begin = 1, 0  # n_done: where the window before ended
    while n_done < len(ids):
        end = min(begin + size, len(ids))
        # If windows do not overlap, feed the token before this window to score its first token.
        first_fed = min(begin, n_done - 1)
        if end > max(n_done, n_given):
            windows.append(Window(ids[first_fed : end - 1], ids[max(n_done, n_given) : end]))
        n_done = max(n_done, end)
        begin += stride
    return windows


def with_end(windows: list[Window], ids: NDArray[np.int32], n_positions: int) -> list[Window]:
    """Let the windows of a text score one more target, after its last id; which id is arbitrary.

    So the distribution after the text is measured. Without windows nothing is added.
    """
    if not windows:
        return windows
    *before, last = windows
    end = np.zeros(1, dtype=np.int32)
    if len(last.fed) < n_positions:
        fed = np.concatenate([last.fed, ids[-1:]])
        return [*before, Window(fed, np.concatenate([last.targets, end]))]
    return [*windows, Window(ids[-1:], end)]  # windows that do not overlap; see windows_of


def find_sources(windows: Sequence[Window]) -> list[Source | None]:
    """Return for each window the one to copy a prefix from; None if no prefix is long enough.

    A window's source is before it in the order of their ids, so sources form no circle. In this
    order, no window before another one shares a longer prefix with it than its neighbour does.
    """
    keys = [window.fed.tobytes() for window in windows]
    order = sorted(range(len(windows)), key=keys.__getitem__)
    sources: list[Source | None] = [None] * len(windows)
    n_common = [0] * len(windows)  # with the source's window
    for before, index in pairwise(order):
        n = _common_length(windows[before].fed, windows[index].fed)
        donor = before
        # The donor's own donor is as good if all of this prefix came from there.
        while (source := sources[donor]) is not None and n_common[donor] >= n:
            donor = source.donor
        n_shared = _shareable(windows[donor], windows[index], n)
        if n_shared >= MIN_SHARED:
            sources[index], n_common[index] = Source(donor, n_shared), n
    return sources


def _shareable(donor: Window, window: Window, n_common: int) -> int:
    """Return how many of n_common equal ids the window can copy, with their targets' scores."""
    # The window feeds at least one id. The targets of the last equal id may differ.
    n = min(n_common, len(window.fed) - 1)
    if window.n_unscored < n:
        n = min(n, n_common - 1)
    if window.n_unscored < donor.n_unscored:
        n = min(n, window.n_unscored)  # the donor lacks the scores of the next targets
    return n


def _common_length(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    n = min(len(a), len(b))
    differences = np.flatnonzero(a[:n] != b[:n])
    return int(differences[0]) if len(differences) else n
