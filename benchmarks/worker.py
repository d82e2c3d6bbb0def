"""Runs one engine in a process of its own, which exchanges lines of JSON with processes.py.

python benchmarks/worker.py ENGINE FOLDER THREADS [PROMPT]

With PROMPT, a list of ids in JSON, it prints the first new id and exits.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from peers import ENGINES, Engine


def answer(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a task, whose "op" is roofline, encode, score or generate."""
    if task["op"] == "roofline":
        return engine.roofline()
    if task["op"] == "encode":
        return {"ids": engine.encode(Path(task["text"]).read_text())}
    if task["op"] == "score":
        begin = time.perf_counter()
        total = engine.score(task["ids"], task["stride"])
        return {"seconds": time.perf_counter() - begin, "total": total}
    seconds, ids = engine.timed(task["prompts"], task["n_new"])
    return {"seconds": seconds, "ids": ids}


def versions(engine: Engine) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {package: version(package) for package in engine.packages}
    except PackageNotFoundError:  # not installed, but run from a source tree
        return {}


def main() -> None:
    # The pipe is for answers only; whatever an engine prints goes to the log.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, folder, threads, *prompt = sys.argv[1:]
    engine = ENGINES[name](folder, int(threads))
    if prompt:
        print(json.dumps({"id": engine.first(json.loads(prompt[0]))}), file=pipe)
        return
    print(json.dumps({"versions": versions(engine)}), file=pipe)
    for line in sys.stdin:
        try:
            reply = answer(engine, json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=pipe)


if __name__ == "__main__":
    main()
