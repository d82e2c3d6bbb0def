"""Plays timed traces of many clients against gpt2c serve, and compares each answer with one alone.

    python tools/soak/serve_traces.py [--requests N] [--seconds S] [--seed S] [--rate R]

Needs an environment with gpt2c and its extra "test", and Linux. The server is a process of its own,
on a Unix socket, with a random model of one layer and the embedded model in float32 and int8. The
last line shows the seed and the result. The script exits with status 1 at the first answer that
differs, in any bit, from what GPT2 gives alone in this process. A finding names the seed of its
round: `--seed SEED --requests 500` repeats the requests of the round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from conftest import TALES
from http_client import FindingError, ServerProcess, as_json, request_bytes, server_process
from http_fuzzing import is_flat
from model_folders import folder_of
from served_answers import check_answer
from served_traces import Tracer, check_idle, make_trace
from summary import print_counts, quarters

from gpt2c import GPT2

ROUND_SIZE = 500
MAX_GROWTH = 24  # MB, from the second quarter of the rounds to the last
PREFIX_CACHE_BYTES = 1 << 20
# Clients that read nothing of streams of 1.2 MB each. asyncio buffers 64 KiB for each. The texts
# and their tokens, which the scheduler keeps until they are sent, take 29 MB in all; unbounded
# buffers would take 24 MB more.
N_SLOW, N_TEXTS, N_TOKENS, MAX_SLOW_MEGABYTES = 20, 60, 60, 42


def main() -> int:
    options = arguments()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    memory: list[float] = []
    n_compared = [0]
    result = "nothing found"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny = str(folder_of(Path(folder) / "tiny"))
        models = {
            "tiny": GPT2.from_pretrained(tiny, prefix_cache_bytes=0),
            "tales": GPT2.from_pretrained(TALES, prefix_cache_bytes=0, dtype="float32"),
            "small": GPT2.from_pretrained(TALES, prefix_cache_bytes=0, dtype="int8"),
        }
        with server_process(*server_options(tiny)) as server:
            try:
                asyncio.run(run(server, options, seed, models, counts, memory, n_compared))
                if not is_flat(memory, MAX_GROWTH):
                    result = f"FOUND: the server's memory grows: {memory}"
                elif (status := server.stop()) != 0:
                    result = f"FOUND: the server ended with status {status}"
            except FindingError as finding:
                result = f"FOUND: {finding}"
            if options.log is not None:
                options.log.write_bytes(server.log.read_bytes())
    print_counts(counts)
    print(
        f"serve_traces: seed {seed}, {counts.total()} answers and ends in "
        f"{time.monotonic() - begin:.0f} s, {n_compared[0]} answers compared, the server's memory "
        f"by quarters {quarters(memory)} MB: {result}"
    )
    return 0 if result == "nothing found" else 1


def server_options(tiny: str) -> list[str]:
    # Times beyond the pauses of a machine that measures something else now and then.
    return [
        "--model", f"tiny={tiny}", "--model", f"tales={TALES}", "--model", f"small={TALES}",
        "--dtype", "tales=float32", "--dtype", "small=int8", "--body-seconds", "900",
        "--header-seconds", "900", "--idle-seconds", "900", "--write-seconds", "900",
        "--prefix-cache-bytes", str(PREFIX_CACHE_BYTES),
    ]  # fmt: skip


async def run(
    server: ServerProcess,
    options: argparse.Namespace,
    seed: int,
    models: dict[str, GPT2],
    counts: Counter[str],
    memory: list[float],
    n_compared: list[int],
) -> None:
    begin = time.monotonic()
    await server.wait_until_ready()
    await read_slowly(server, memory)
    memory.clear()
    n_made = 0
    while n_made < options.requests:
        if options.seconds is not None and time.monotonic() - begin >= options.seconds:
            return
        round_seed = seed + n_made // ROUND_SIZE
        trace = make_trace(round_seed, ROUND_SIZE, options.rate, models)
        trace = trace[: options.requests - n_made]
        tracer = Tracer(server, round_seed, {})
        await tracer.play(trace)
        await check_idle(server, {}, PREFIX_CACHE_BYTES)
        server.check_alive()
        for planned, reply in tracer.replies:
            try:
                check_answer(models[planned.body["model"]], planned.path, planned.body, reply)
            except FindingError as error:
                raise FindingError(f"round with seed {round_seed}, {planned}: {error}") from None
        counts += tracer.counts
        n_made += len(trace)
        n_compared[0] += len(tracer.replies)
        memory.append(server.resident_megabytes())
        print(
            f"{time.monotonic() - begin:8.0f} s  {n_made:7} requests, {n_compared[0]} answers "
            f"compared, {memory[-1]:.1f} MB, {server.n_descriptors()} descriptors", flush=True,
        )  # fmt: skip


async def read_slowly(server: ServerProcess, memory: list[float]) -> None:
    """Let many clients read nothing of long streams for a while; check the server's memory."""
    before = server.resident_megabytes()
    body: dict[str, Any] = {
        "model": "tiny", "prompt": "a", "max_tokens": N_TOKENS, "stream": True, "n": N_TEXTS,
        "seed": 1, "ignore_eos": True, "request_id": "r" * 100,
    }  # fmt: skip
    streams = []
    for _ in range(N_SLOW):
        reader, writer = await asyncio.open_unix_connection(server.socket)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request_bytes("POST", "/v1/completions", as_json(body)))
        await writer.drain()
        streams.append((reader, writer))
    await asyncio.sleep(1)
    n_calm, sizes = 0, [server.resident_megabytes()]
    while n_calm < 5:  # seconds without growth: every stream waits for its client
        await asyncio.sleep(1)
        sizes.append(server.resident_megabytes())
        n_calm = n_calm + 1 if abs(sizes[-1] - sizes[-2]) < 0.3 else 0
    print(f"{N_SLOW} clients that read nothing: {before:.1f} to {max(sizes):.1f} MB", flush=True)
    for _, writer in streams:
        writer.close()
    if max(sizes) - before > MAX_SLOW_MEGABYTES:
        raise FindingError(f"{N_SLOW} clients that read nothing take {sizes} MB")
    await check_idle(server, {}, PREFIX_CACHE_BYTES)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, metavar="N", default=10_000, help="default: 10000")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds")
    parser.add_argument(
        "--rate", type=float, metavar="R", default=40, help="requests per second; default: 40"
    )
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where to keep the server's log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
