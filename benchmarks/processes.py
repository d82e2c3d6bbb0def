"""Engines as processes: started, asked, and stopped while it is not their turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert import converted

HERE = Path(__file__).parent


class EngineError(Exception):
    """An engine cannot run here; the message says why in a line."""


class Launcher:
    """What starting an engine takes: its interpreter, its files, its number of threads."""

    def __init__(
        self, checkpoint: Path, work: Path, pythons: dict[str, str], threads: int, bench: str
    ) -> None:
        self.checkpoint, self.work, self.threads = checkpoint, work, threads
        self.pythons = pythons
        self.env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "LLAMA_BATCHED_BENCH": bench,
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else processes stay that wait for work
        }

    def log(self, name: str) -> Path:
        return self.work / f"{name}.log"

    def python(self, name: str) -> str:
        return self.pythons.get(name, sys.executable)

    def prepare(self, name: str, kind: str) -> None:
        """Makes the engine's files unless they are there."""
        if converted(self.work, self.checkpoint, kind).exists():
            return
        script = [self.python(name), str(HERE / "convert.py"), kind]
        with self.log(name).open("w") as log:
            done = subprocess.run(
                [*script, str(self.checkpoint), str(self.work)],
                env=self.env, stdout=log, stderr=log, check=False,
            )  # fmt: skip
        if done.returncode:
            raise EngineError(f"no {kind} files: {self.last_line(name)}")

    def start(self, name: str, kind: str, *more: str) -> subprocess.Popen[str]:
        folder = str(converted(self.work, self.checkpoint, kind))
        worker = [self.python(name), str(HERE / "worker.py"), name, folder, str(self.threads)]
        with self.log(name).open("w") as log:
            # A group of its own takes SIGSTOP whole; of the same session, the kernel ends it
            # should this process die while it is stopped.
            return subprocess.Popen(
                [*worker, *more], env=self.env, text=True, process_group=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def last_line(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


class Worker:
    """One engine, loaded; it runs only inside `with worker.turn():`."""

    def __init__(self, launcher: Launcher, name: str, kind: str) -> None:
        self.launcher, self.name = launcher, name
        self.process = launcher.start(name, kind)
        try:
            self.versions: dict[str, str] = self.read()["versions"]
        except BaseException:
            self.close()
            raise
        self.signal(signal.SIGSTOP)

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(self.launcher.last_line(self.name))
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(" ".join(reply["error"].split()))
        return reply

    def ask(self, op: str, **task: Any) -> dict[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"op": op, **task}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(self.launcher.last_line(self.name)) from None
        return self.read()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.communicate()


def first_token(launcher: Launcher, name: str, kind: str, prompt: list[int]) -> float:
    """Seconds from the start of a process to the first new token that it tells."""
    begin = time.perf_counter()
    process = launcher.start(name, kind, json.dumps(prompt))
    assert process.stdout
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    process.communicate()
    if not line:
        raise EngineError(launcher.last_line(name))
    return seconds
