"""Runs each engine in a process of its own, which SIGSTOP pauses between its turns."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert import converted_folder
from peers import ENGINES

HERE = Path(__file__).parent


class EngineError(Exception):
    """An engine cannot run here; the message says why, in one line."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `launcher_for` needs."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", metavar="ENGINE=PATH", action="append", default=[],
                        help="the interpreter that runs an engine; default: this one")  # fmt: skip
    parser.add_argument("--work-folder", type=Path, help="for converted files and logs",
                        default=Path(tempfile.gettempdir()) / "gpt2c-benchmarks")  # fmt: skip


def launcher_for(options: argparse.Namespace, bench: str = "") -> Launcher:
    """Return a launcher for the options of `add_options`; create the work folder."""
    options.work_folder.mkdir(parents=True, exist_ok=True)
    pythons = dict(pair.split("=", 1) for pair in options.python)
    return Launcher(options.checkpoint, options.work_folder, pythons, options.threads, bench)


def rate_summary(values: list[float], digits: int = 0) -> str:
    """Format the median, min and max of rates in tokens per second."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:8.{digits}f} tok/s ({low:.{digits}f} - {high:.{digits}f})"


class Launcher:
    """Starts engines: knows their interpreters, files and number of threads."""

    def __init__(
        self, checkpoint: Path, work: Path, pythons: dict[str, str], threads: int, bench: str
    ) -> None:
        self.checkpoint, self.work, self.threads = checkpoint, work, threads
        self.pythons = pythons
        self.env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "LLAMA_BATCHED_BENCH": bench,
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # more would leave idle processes running
        }
        # Otherwise every process would compile a source tree before its first token.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def log(self, name: str) -> Path:
        return self.work / f"{name}.log"

    def python(self, name: str) -> str:
        """Return the path of the interpreter that runs an engine."""
        return self.pythons.get(name, sys.executable)

    def worker(self, name: str) -> Worker:
        """Make an engine's files and load it; raise EngineError if it cannot run."""
        self.prepare(name)
        return Worker(self, name)

    def prepare(self, name: str) -> None:
        """Make an engine's files if they do not exist."""
        kind = ENGINES[name].files
        if converted_folder(self.work, self.checkpoint, kind).exists():
            return
        script = [self.python(name), str(HERE / "convert.py"), kind]
        with self.log(name).open("w") as log:
            done = subprocess.run(
                [*script, str(self.checkpoint), str(self.work)],
                env=self.env, stdout=log, stderr=log, check=False,
            )  # fmt: skip
        if done.returncode:
            raise EngineError(f"no {kind} files: {self.last_line(name)}")

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        """Start worker.py with an engine; `more` are further arguments of worker.py."""
        folder = str(converted_folder(self.work, self.checkpoint, ENGINES[name].files))
        worker = [self.python(name), str(HERE / "worker.py"), name, folder, str(self.threads)]
        with self.log(name).open("w") as log:
            # The engine has its own process group, so one SIGSTOP stops all of its processes. The
            # group is in this session, so the kernel ends it, if stopped, when this process dies.
            return subprocess.Popen(
                [*worker, *more], env=self.env, text=True, process_group=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def last_line(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


class Worker:
    """One loaded engine; it runs only inside `with worker.turn():`."""

    def __init__(self, launcher: Launcher, name: str) -> None:
        self.launcher, self.name = launcher, name
        self.process = launcher.start(name)
        try:
            self.versions: dict[str, str] = self.read_reply()["versions"]
        except BaseException:
            self.close()
            raise
        self.send_signal(signal.SIGSTOP)

    def read_reply(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(self.launcher.last_line(self.name))
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(" ".join(reply["error"].split()))
        return reply

    def ask(self, op: str, **task: Any) -> dict[str, Any]:
        """Send an operation of worker.py, and return its reply; raise EngineError if it fails."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"op": op, **task}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(self.launcher.last_line(self.name)) from None
        return self.read_reply()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let the engine run during the block."""
        self.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.process.communicate()


def first_token_seconds(launcher: Launcher, name: str, prompt: list[int]) -> float:
    """Return the seconds from the start of a process to its first new token."""
    begin = time.perf_counter()
    process = launcher.start(name, json.dumps(prompt))
    assert process.stdout
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    process.communicate()
    if not line:
        raise EngineError(launcher.last_line(name))
    return seconds
