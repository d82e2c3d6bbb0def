"""Makes random requests from threads and asyncio tasks at once; compares each with one made alone.

    python tools/soak/together.py [MODEL ...] [--requests N | --minutes M] [--seed S]

Needs an environment with gpt2c and its extra "test". The models are small: every dtype on every
instruction set, NumPy, and the embedded model. Many rounds have a prefix cache, or a KV cache so
small that requests wait and take each other's pages. The last line shows the seed and the result.
The script exits with status 1 at the first request whose text, ids, finish reason or bits of
log-probabilities differ from those of the same request alone, and if a caller waits too long, a
thread or memory is left, or the process computes without a call. `--seed S --requests 60`, with the
seed of the failed round, repeats that round.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from random_callers import FindingError, check_close, check_idle, run_round
from random_requests import Loaded, load, model_names
from summary import print_counts, quarters

ROUND_SIZE = 60  # requests; each round has one model and its own seed
# The max growth of the resident memory, in MB, between the second and the last quarter of a run.
# The first quarter fills caches. A round of the embedded model takes up to 60 MB, of which the
# allocator keeps a part.
MAX_GROWTH = 32


def main() -> int:
    options = arguments()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    names = options.models or model_names()
    with suppress(AttributeError):
        # One heap for all threads (M_ARENA_MAX). Several heaps would keep growing for an hour.
        ctypes.CDLL(None).mallopt(-8, 1)
    models: dict[str, Loaded] = {name: load(name) for name in names}
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    memory: list[float] = []
    n_rounds = 0

    def is_over() -> bool:
        if options.minutes is not None:
            return time.monotonic() - begin >= options.minutes * 60
        return counts.total() >= options.requests

    result = "nothing found"
    try:
        while not is_over():
            round_seed = seed + n_rounds
            name = random.Random(round_seed).choice(names)
            n = ROUND_SIZE
            if options.minutes is None:
                n = min(ROUND_SIZE, options.requests - counts.total())
            counts += run_round(name, models[name], round_seed, n)
            memory.append(resident_megabytes())
            n_rounds += 1
            if n_rounds % 20 == 0:
                print(f"{time.monotonic() - begin:8.0f} s  {counts.total():9} requests, "
                      f"{memory[-1]:.0f} MB", flush=True)  # fmt: skip
        round_seed = seed
        for loaded in models.values():
            check_close(loaded)
        check_idle()
        check_growth(memory)
    except FindingError as finding:
        result = f"FOUND on {name}, seed {round_seed}: {finding}"
    print_counts(counts)
    print(
        f"together: seed {seed}, {counts.total()} requests in "
        f"{time.monotonic() - begin:.0f} s, resident memory by quarters "
        f"{quarters(memory)} MB: {result}"
    )
    return 0 if result == "nothing found" else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    examples = ", ".join(map(repr, model_names()[:3]))
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"such as {examples}; default: all"
    )
    parser.add_argument("--requests", type=int, metavar="N", default=10_000, help="default: 10000")
    parser.add_argument("--minutes", type=float, metavar="M", help="run for M minutes instead")
    parser.add_argument("--seed", type=int, help="default: a random one")
    options = parser.parse_args()
    if unknown := set(options.models) - set(model_names()):
        known = ", ".join(map(repr, model_names()))
        parser.error(f"unknown model {', '.join(sorted(unknown))}; known are {known}")
    return options


def resident_megabytes() -> float:
    """Return this process's resident memory in MB, after the allocator gave back what it can."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def check_growth(memory: list[float]) -> None:
    """Raise FindingError if the memory, measured after each round, grows quarter by quarter."""
    n = len(memory) // 4
    if n < 5:
        return
    second, third, last = (statistics.median(memory[i * n : (i + 1) * n]) for i in (1, 2, 3))
    if second < third < last and last - second > MAX_GROWTH:
        raise FindingError(f"the resident memory grows: {second:.0f}, {third:.0f}, {last:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
