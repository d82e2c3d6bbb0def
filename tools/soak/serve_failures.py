"""Puts gpt2c serve under mixed load with failures that are made on purpose, for an hour.

    python tools/soak/serve_failures.py [--seconds S] [--seed S] [--rate R]

Needs an environment with gpt2c and its extra "test", and Linux. While a trace of requests runs (see
tests/served_traces.py), client processes are killed and stopped, malformed and invalid requests
come, keys are wrong, and requests fill the KV cache, so that some fail for a lack of memory. After
each round nothing may run or wait, and the KV cache may hold only what the prefix cache keeps. At
the end the server drains and ends, starts again with other keys and without a prefix cache, and is
ended by two signals. The last line shows the seed and the result.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from conftest import TALES
from http_client import (
    ClosedError,
    FindingError,
    Reply,
    ServerProcess,
    as_json,
    ask,
    check_error,
    read_reply,
    request_bytes,
)
from http_fuzzing import fuzz, is_flat
from http_inputs import KEY, make_input
from model_folders import folder_of
from served_answers import check_answer
from served_traces import TEMPORARY, Planned, Tracer, check_idle, make_trace
from summary import print_counts, quarters

from gpt2c import GPT2

ROUND_SECONDS = 20
N_CHECKED = 80  # answers per round that are compared with the model alone
PREFIX_CACHE_BYTES = 1 << 20
KV_CACHE_BYTES = 6 << 20  # one context of the larger model is 4 MB
MAX_GROWTH = 24  # MB, from the second quarter of the rounds to the last
OTHER_KEY, NEW_KEY = "another-client's-key", "a-key-of-the-second-life"
# A client that sends a request and reads its answer slowly.
CLIENT = """
import base64, socket, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(base64.b64decode(sys.argv[2]))
while connection.recv(256):
    time.sleep(0.01)
"""


class Soak:
    """A run: its server, models and counts."""

    def __init__(self, folder: Path, options: argparse.Namespace, seed: int) -> None:
        self.folder, self.options, self.seed = folder, options, seed
        self.tiny = str(folder_of(folder / "tiny"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.models = {
                name: GPT2.from_pretrained(path, prefix_cache_bytes=0, threads=1)
                for name, path in (("tiny", self.tiny), ("tales", TALES))
            }
        self.counts: Counter[str] = Counter()
        self.memory: list[float] = []
        self.n_checked = 0

    def start(self, prefix_cache_bytes: int, *keys: str) -> ServerProcess:
        """Start a server that accepts these keys."""
        (self.folder / "keys").write_text("\n".join(keys))
        # Times beyond the pauses of a machine that measures something else now and then.
        return ServerProcess(
            self.folder, "--model", f"tiny={self.tiny}", "--model", f"tales={TALES}",
            "--api-key-file", str(self.folder / "keys"), "--max-running", "64",
            "--max-queued", "200", "--max-items", "5000", "--write-seconds", "400",
            "--body-seconds", "400", "--header-seconds", "400", "--idle-seconds", "400",
            "--kv-cache-bytes", str(KV_CACHE_BYTES),
            "--prefix-cache-bytes", str(prefix_cache_bytes),
        )  # fmt: skip

    async def run(self) -> None:
        server = self.start(PREFIX_CACHE_BYTES, KEY, OTHER_KEY)
        try:
            await server.wait_until_ready()
            begin, n = time.monotonic(), 0
            while time.monotonic() - begin < self.options.seconds:
                await self.round(server, self.seed + n, KEY, PREFIX_CACHE_BYTES)
                n += 1
                print(
                    f"{time.monotonic() - begin:8.0f} s  round {n}, {self.counts.total()} requests,"
                    f" {self.n_checked} compared, {self.memory[-1]:.1f} MB, "
                    f"{server.n_descriptors()} descriptors", flush=True,
                )  # fmt: skip
            await self.drain(server)
            server = self.start(0, NEW_KEY)
            await server.wait_until_ready()
            for key, status in ((KEY, 401), (NEW_KEY, 200)):
                reply = await ask(server.socket, "GET", "/v1/models", headers=bearer(key))
                if reply.status != status:
                    raise FindingError(f"the key {key} gets {reply}")
            await self.round(server, self.seed + n, NEW_KEY, 0)
            await self.end_at_once(server)
        finally:
            server.process.kill()
            server.process.wait()

    # ---- a round ----

    async def round(self, server: ServerProcess, seed: int, key: str, most_kept: int) -> None:
        """Make requests and failures for some seconds, then check that nothing is left."""
        rng = random.Random(f"{seed} round")
        trace = make_trace(
            seed, int(self.options.rate * ROUND_SECONDS), self.options.rate, self.models
        )
        trace = [p for p in trace if p.at < ROUND_SECONDS]
        tracer = Tracer(server, seed, bearer(key))
        before = server.process.poll()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(tracer.play(trace))
                group.create_task(self.clients(server, rng, key))
                group.create_task(self.fill_memory(tracer, rng))
                group.create_task(self.wrong_keys(server, rng))
                if key == KEY:
                    group.create_task(self.invalid(server, seed))
        except* FindingError as found:
            raise FindingError(f"round with seed {seed}: {found.exceptions[0]}") from None
        assert before is None
        self.counts += tracer.counts
        try:
            await check_idle(server, bearer(key), most_kept)
        except FindingError as found:
            raise FindingError(f"round with seed {seed}: {found}") from None
        server.check_alive()
        self.memory.append(server.resident_megabytes())
        answers = rng.sample(tracer.replies, min(N_CHECKED, len(tracer.replies)))
        for planned, reply in answers:
            try:
                check_answer(self.models[planned.body["model"]], planned.path, planned.body, reply)
            except FindingError as error:
                raise FindingError(f"round with seed {seed}, {planned}: {error}") from None
        self.n_checked += len(answers)

    async def clients(self, server: ServerProcess, rng: random.Random, key: str) -> None:
        """Start client processes; kill some, and stop others before that."""
        for _ in range(6):
            body = {"model": "tales", "prompt": "Once", "max_tokens": 300, "stream": True, "n": 2}
            sent = request_bytes("POST", "/v1/completions", as_json(body), bearer(key))
            client = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", CLIENT, server.socket, base64.b64encode(sent)],
                stderr=subprocess.DEVNULL,
            )
            await asyncio.sleep(rng.uniform(0, 1.5))
            kind = rng.choice(("killed", "stopped and killed", "stopped and left to go on"))
            if kind != "killed":
                client.send_signal(signal.SIGSTOP)
                await asyncio.sleep(rng.uniform(0.5, 2))
            if kind == "stopped and left to go on":
                client.send_signal(signal.SIGCONT)
                await asyncio.sleep(1)
            client.kill()
            client.wait()
            self.counts[f"a client process: {kind}"] += 1

    async def fill_memory(self, tracer: Tracer, rng: random.Random) -> None:
        """Ask for more texts at once than the KV cache holds."""
        for burst in range(2):
            await asyncio.sleep(rng.uniform(1, 6))
            requests = []
            for i in range(8):
                prompt = [rng.randrange(4000) for _ in range(rng.choice((200, 380)))]
                body: dict[str, Any] = {
                    "model": "tales",
                    "prompt": prompt,
                    "max_tokens": 60,
                    "seed": i,
                }
                if i % 2:
                    body |= {"echo": True, "logprobs": 1}
                body |= {"max_tokens": 60, "stream": i % 4 == 0}
                planned = Planned(-1 - 8 * burst - i, 0, "/v1/completions", body, "plain")
                requests.append(tracer.make(planned))
            await asyncio.gather(*requests)

    async def wrong_keys(self, server: ServerProcess, rng: random.Random) -> None:
        for _ in range(10):
            await asyncio.sleep(rng.uniform(0, 1))
            key = rng.choice(("wrong-key-1", "x" * 500, ""))
            reply = await ask(
                server.socket, "POST", "/v1/completions", {"prompt": "a"}, bearer(key)
            )
            if reply.status != 401:
                raise FindingError(f"the key {key!r} gets {reply}")
            check_error(reply)
            self.counts["a wrong key: 401"] += 1

    async def invalid(self, server: ServerProcess, seed: int) -> None:
        # Only those with an answer: this server waits long for the others.
        numbers = [i for i in range(200) if make_input(seed, i).framed is not None]
        for name, count in (await fuzz(server, None, seed, numbers)).items():
            self.counts[f"a mutated request: {name.rpartition(': ')[2]}"] += count

    # ---- the end ----

    async def long_streams(self, server: ServerProcess, key: str) -> list[asyncio.Task[Reply]]:
        """Begin streams that take a while; return what reads them."""

        async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reply:
            try:
                return await read_reply(reader)
            finally:
                writer.close()

        tasks = []
        for i in range(8):
            reader, writer = await asyncio.open_unix_connection(server.socket, limit=1 << 22)
            sent = request_bytes("POST", "/v1/completions", as_json(long_body(i)), bearer(key))
            writer.write(sent)
            tasks.append(asyncio.create_task(read(reader, writer)))
        for _ in range(200):
            reply = await ask(server.socket, "GET", "/metrics", headers=bearer(key))
            found = re.search(rb'vllm:num_requests_running\{model_name="tales"\} (\d+)', reply.body)
            if found and int(found[1]) > 0:
                break
            await asyncio.sleep(0.01)
        return tasks

    async def drain(self, server: ServerProcess) -> None:
        """Send SIGTERM: running requests end as they would have, and new ones are refused."""
        streams = await self.long_streams(server, KEY)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        try:
            reply = await ask(server.socket, "GET", "/v1/models", headers=bearer(KEY))
            if check_error(reply)["code"] != "stopping":
                raise FindingError(f"a server that drains answers {reply}")
            self.counts["while it drains: 503 stopping"] += 1
        except (OSError, ClosedError):
            self.counts["while it drains: refused"] += 1
        for i, reply in enumerate(await asyncio.gather(*streams)):
            codes = {event["error"]["code"] for event in reply.events() if "error" in event}
            if codes and codes <= TEMPORARY - {"stopping"}:
                continue
            check_answer(self.models["tales"], "/v1/completions", long_body(i), reply)
            self.counts["while it drains: a whole stream"] += 1
        status = await asyncio.to_thread(server.wait)
        server.process.poll()
        if status != 0 or os.path.exists(server.socket):
            raise FindingError(
                f"the server ends with status {status}: {server.log.read_text()[-2000:]}"
            )

    async def end_at_once(self, server: ServerProcess) -> None:
        """Send SIGTERM twice."""
        streams = await self.long_streams(server, NEW_KEY)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(server.wait)
        await asyncio.gather(*streams, return_exceptions=True)
        self.counts[
            f"a second SIGTERM: status {status} after {time.monotonic() - begin:.1f} s"
        ] += 1
        if status not in (0, 1):  # 0: the streams had ended
            raise FindingError(f"after a second signal the status is {status}")


def long_body(seed: int) -> dict[str, Any]:
    """Return a request whose stream takes a while."""
    return {
        "model": "tales", "prompt": "Once", "max_tokens": 450, "stream": True, "seed": seed,
        "ignore_eos": True,
    }  # fmt: skip


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def main() -> int:
    options = arguments()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    begin = time.monotonic()
    result = "nothing found"
    with tempfile.TemporaryDirectory(prefix="gpt2c-serve-") as folder:
        soak = Soak(Path(folder), options, seed)
        try:
            asyncio.run(soak.run())
            if not is_flat(soak.memory[:-1], MAX_GROWTH):
                result = f"FOUND: the server's memory grows: {soak.memory}"
        except FindingError as finding:
            result = f"FOUND: {finding}"
        if options.log is not None:
            options.log.write_bytes((Path(folder) / "log").read_bytes())
    print_counts(soak.counts)
    memory = soak.memory[:-1]  # without the second server's
    print(
        f"serve_failures: seed {seed}, {soak.counts.total()} requests in "
        f"{time.monotonic() - begin:.0f} s, {soak.n_checked} compared, the server's memory by "
        f"quarters {quarters(memory)} MB: {result}"
    )
    return 0 if result == "nothing found" else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--seconds", type=float, metavar="S", default=3600, help="of load; default: 3600"
    )
    parser.add_argument("--rate", type=float, metavar="R", default=12, help="requests per second")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where to keep the server's log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
