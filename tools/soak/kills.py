"""Kills `gpt2c batch` at random moments, starts it again, and compares its files in the end.

Usage: python tools/soak/kills.py [--kills N] [--seed S] [--task generate|score|surprisal|embed]
           [--format jsonl|csv|parquet] [--syscalls]

Without --syscalls, SIGKILL comes after a random time. With it, strace sends SIGKILL at a random
system call that changes files, such as the 7th rename. The tool ends with status 1 at the first
difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

N_ROWS = 203
SHARD_ROWS = 8
CALLS = ("fsync", "rename", "mkdir", "unlinkat", "rmdir", "write", "flock")
MAX_CALL = 40  # a job has some 80 renames and 160 fsyncs, the rest of it fewer


def write_input(path: Path) -> None:
    """Write rows of several lengths; every 31st one is bad."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(N_ROWS):
            text = "The king said that " * (number % 5 + 1)
            row = {"id": f"r{number}", "text": text, "prompt": text, "number": number}
            file.write("not JSON\n" if number % 31 == 30 else json.dumps(row) + "\n")


def command(options: argparse.Namespace, source: Path, folder: Path) -> list[str]:
    """Return the command of the job."""
    more = ["-n", "6", "--temperature", "1", "--seed", "7"] if options.task == "generate" else []
    return [
        sys.executable, "-m", "gpt2c", "batch", options.task, str(source), "--output", str(folder),
        "--format", options.format, "--shard-rows", str(SHARD_ROWS), "--id", "id", *more,
    ]  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def state_of(folder: Path) -> str:
    """Say in a few words what a kill left behind."""
    if not folder.exists():
        return "no folder"
    if not (folder / "manifest.json").exists():
        return "no manifest yet"
    if json.loads((folder / "manifest.json").read_text())["complete"]:
        return "complete, not cleaned up"
    half_written = any(path.name.startswith(".gpt2c-") for path in folder.rglob("*"))
    n_shards = len(list(folder.glob("shard-*")))
    n_records = len(list((folder / ".progress").glob("*.json")))
    where = "a file half written" if half_written else "between files"
    return f"{where}, {'a shard without record' if n_shards > n_records else 'records whole'}"


def kill_at_random(start: list[str], folder: Path, chance: random.Random, seconds: float) -> bool:
    """Run the job and kill it after a random time; return whether it was killed."""
    process = subprocess.Popen(start, stderr=subprocess.PIPE)
    if chance.random() < 0.9:  # else while it starts
        while not (folder / "manifest.json").exists() and process.poll() is None:
            time.sleep(0.001)
    time.sleep(chance.uniform(0, seconds))
    process.kill()
    error = process.communicate()[1].decode()
    if process.returncode not in (0, -9):
        raise SystemExit(f"the job failed: {error}")
    return process.returncode == -9


def kill_at_call(start: list[str], call: str, number: int) -> bool:
    """Run the job, and kill it at its n-th call of a name; return whether it was killed."""
    trace = ["strace", "-f", "-qq", "-o", os.devnull]
    inject = f"inject={call}:signal=KILL:when={number}"
    done = subprocess.run(
        [*trace, "-e", f"trace={call}", "-e", inject, *start], capture_output=True, check=False
    )
    if done.returncode not in (0, 137, -9):
        raise SystemExit(f"the job failed: {done.stderr.decode()}")
    return done.returncode != 0


def main() -> int:
    """Kill, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="generate")
    parser.add_argument("--format", default="jsonl")
    parser.add_argument("--syscalls", action="store_true")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, whole, folder = work / "rows.jsonl", work / "whole", work / "out"
        write_input(source)
        begin = time.monotonic()
        subprocess.run(command(options, source, whole), check=True)
        seconds = time.monotonic() - begin
        expected = files_of(whole)
        states: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        n_kills = n_jobs = 0
        start = command(options, source, folder)
        while n_kills < options.kills:
            if options.syscalls:
                call, number = chance.choice(CALLS), chance.randint(1, MAX_CALL)
                killed = kill_at_call(start, call, number)
                calls[call] += killed
            else:
                killed = kill_at_random(start, folder, chance, min(seconds, 2.0))
            if killed:
                n_kills += 1
                states[state_of(folder)] += 1
                continue
            n_jobs += 1
            if files_of(folder) != expected:
                print(f"the files differ after {n_kills} kills, seed {options.seed}")
                return 1
            shutil.rmtree(folder)
        if folder.exists():
            subprocess.run(start, check=True)
            n_jobs += 1
            if files_of(folder) != expected:
                print(f"the files differ after {n_kills} kills, seed {options.seed}")
                return 1
    print(f"{options.task}, {options.format}: {n_kills} kills in {n_jobs} jobs; all files equal")
    for state, count in states.most_common():
        print(f"  {count:4d} left {state}")
    if calls:
        print("  at " + ", ".join(f"{count} {call}" for call, count in calls.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
