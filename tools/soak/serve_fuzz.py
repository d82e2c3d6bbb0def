"""Fuzzes the HTTP border of gpt2c serve with a million mutated requests.

    python tools/soak/serve_fuzz.py [--requests N] [--seconds S] [--seed S] [--first N]

Needs an environment with gpt2c and its extra "test", and Linux. The server is a process of its own,
on a Unix socket, with a random model of one layer. The last line shows the seed and the result. The
script exits with status 1 at the first input that is a finding; tests/http_fuzzing.py says what is
one. `--seed SEED --first N --requests 1` sends input N again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from http_client import FindingError, ServerProcess, resident_megabytes, server_process
from http_fuzzing import app_of, fuzz, is_flat, server_options
from http_inputs import KEY
from model_folders import folder_of
from summary import print_counts, quarters

ROUND_SIZE = 5000  # inputs between two looks at the server's memory
MAX_GROWTH = 24  # MB, from the second quarter to the last


def main() -> int:
    options = arguments()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    memory: list[float] = []  # of the server
    ours: list[float] = []  # of this process, which has an app too
    result = "nothing found"
    with tempfile.TemporaryDirectory() as folder:
        model = folder_of(Path(folder) / "model")
        with (
            server_process(*server_options(str(model)), GPT2C_API_KEY=KEY) as server,
            app_of(str(model)) as app,
        ):
            try:
                asyncio.run(run(server, app, options, seed, counts, memory, ours))
                result = ending(server, memory, ours)
            except FindingError as finding:
                result = f"FOUND: {finding}"
            if options.log is not None:
                options.log.write_bytes(server.log.read_bytes())
    print_counts(counts)
    ways = Counter(app=0, socket=0)
    for name, count in counts.items():
        ways[name.partition(",")[0]] += count
    print(
        f"serve_fuzz: seed {seed}, {counts.total()} inputs in {time.monotonic() - begin:.0f} s, "
        f"{ways['socket']} through a socket and {ways['app']} to an app in this process, memory "
        f"by quarters {quarters(memory)} MB and {quarters(ours)} MB: {result}"
    )
    return 0 if result == "nothing found" else 1


async def run(
    server: ServerProcess,
    app: Any,
    options: argparse.Namespace,
    seed: int,
    counts: Counter[str],
    memory: list[float],
    ours: list[float],
) -> None:
    begin = time.monotonic()
    await server.wait_until_ready()
    while counts.total() < options.requests:
        if options.seconds is not None and time.monotonic() - begin >= options.seconds:
            return
        at = options.first + counts.total()
        n = min(ROUND_SIZE, options.requests - counts.total())
        counts += await fuzz(server, app, seed, range(at, at + n))
        memory.append(server.resident_megabytes())
        ours.append(resident_megabytes(os.getpid()))
        print(
            f"{time.monotonic() - begin:8.0f} s  {counts.total():9} inputs, {memory[-1]:.1f} and "
            f"{ours[-1]:.1f} MB, {server.n_descriptors()} descriptors",
            flush=True,
        )


def ending(server: ServerProcess, memory: list[float], ours: list[float]) -> str:
    """Stop the server, and return the result."""
    for sizes in (memory, ours):
        if not is_flat(sizes, MAX_GROWTH):
            return f"FOUND: the memory grows: {sizes}"
    status = server.stop()
    return "nothing found" if status == 0 else f"FOUND: the server ended with status {status}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--requests", type=int, metavar="N", default=1_000_000, help="inputs; default: 1000000"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--first", type=int, metavar="N", default=0, help="begin with input N")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where to keep the server's log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
