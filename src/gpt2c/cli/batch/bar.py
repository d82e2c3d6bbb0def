"""The progress of a job on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpt2c.progress import rated_bar

if TYPE_CHECKING:
    from gpt2c.jobs import Progress


@contextmanager
def open_bar(*, is_shown: bool) -> Iterator[Callable[[Progress], None]]:
    """Provide a function that shows how far a job is, with its rates and the time left."""
    begin = time.monotonic()
    with rated_bar(is_shown=is_shown) as update:

        def report(progress: Progress) -> None:
            seconds = max(time.monotonic() - begin, 1e-9)
            rates = {"rows/s": progress.rows / seconds, "tok/s": progress.tokens / seconds}
            if progress.new_tokens:
                rates["new tok/s"] = progress.new_tokens / seconds
            counts = f"{progress.rows_before + progress.rows} rows"
            if progress.bad_rows:
                counts += f", {progress.bad_rows} bad"
            shown = [counts, *(f"{rate:.4g} {unit}" for unit, rate in rates.items())]
            update(progress.bytes_read, progress.n_bytes, ", ".join(shown))

        yield report
