"""Makes random requests from threads and tasks at once; compares each with the same one alone.

A finding is an outcome that differs from that of the same request alone, a hook that ran in another
caller's thread, a caller that waits too long, or a thread or weights that are left afterwards.
test_running_batch.py runs a few hundred requests from fixed seeds; tools/soak/together.py runs as
many as you ask for.
"""

from __future__ import annotations

import ast
import asyncio
import faulthandler
import gc
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from random_requests import (
    Loaded,
    Memory,
    Outcome,
    Request,
    load,
    make_requests,
    perform,
    perform_async,
)

MAX_SECONDS = 120.0  # for all requests of a round


class FindingError(Exception):
    """A request whose outcome differs from that of the request alone, or that did not end."""


# ---- comparing ----


def difference(
    request: Request, found: Outcome, alone: Outcome, errors: Iterable[str] = ()
) -> str | None:
    """Return what differs between an outcome and that of the request alone, or None.

    If an iterator was cut, or ended by an error, its values need only be a prefix. One of `errors`
    may end any request that runs beside others.
    """
    if found.foreign:
        return f"ran in another caller's thread: {', '.join(found.foreign)}"
    if (found.error or "").split(":")[0] in errors:
        is_equal = is_prefix(found.values, alone.values)
        # Alone, another prompt of the list may fail earlier.
        is_equal = is_equal or (alone.error is not None and is_prefix(alone.values, found.values))
        if not is_equal and "max_time" in request.options:
            found, alone = replace(found, error=None), replace(alone, error=None)
            return _cut_difference(request, found, alone)
        return None if is_equal else f"{found.error}, other values"
    if request.cut is not None or "max_time" in request.options:
        return _cut_difference(request, found, alone)
    if found.error is not None and request.is_unseeded:
        return None  # an error hides the seeds that the call drew
    if _error(request, found) != _error(request, alone):
        return f"the error {found.error}, alone {alone.error}"
    if found.error is not None:
        # The number of values before one prompt's error depends on how far the other prompts were.
        is_equal = is_prefix(found.values, alone.values) or is_prefix(alone.values, found.values)
        return None if is_equal else _first_difference(found.values, alone.values)
    if found.values != alone.values:
        return _first_difference(found.values, alone.values)
    if found.calls != alone.calls:
        return (
            f"the callback's calls {found.calls - alone.calls}, alone {alone.calls - found.calls}"
        )
    return None


def is_prefix(part: Any, whole: Any) -> bool:
    return bool(whole[: len(part)] == part)


def _error(request: Request, outcome: Outcome) -> str | None:
    """Return the error to compare.

    For a list of prompts it is only the type, because another prompt may fail first.
    """
    error = outcome.error
    return error.split(":")[0] if error is not None and request.is_list else error


def _cut_difference(request: Request, found: Outcome, alone: Outcome) -> str | None:
    if "max_time" not in request.options:
        if found.error is not None and _error(request, found) != _error(request, alone):
            return f"the error {found.error}, alone {alone.error}"
        is_equal = is_prefix(found.values, alone.values)
        return None if is_equal or alone.error else _first_difference(found.values, alone.values)
    if found.error is not None or alone.error is not None or "num_beams" in request.options:
        # The time limit may end a text before its error, or a beam search with other hypotheses.
        return None
    if request.kind == "stream":
        is_equal = _is_timed_prefix(request, found.values, alone.values)
        return None if is_equal else _first_difference(found.values, alone.values)
    for mine, other in zip(_flat(found.values), _flat(alone.values), strict=False):
        if not _is_timed_prefix(request, mine, other):
            return _first_difference([mine], [other])
    return None


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    """Yield the texts of a call, without the lists of num_return_sequences."""
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], str | dict | list):
            yield from _flat(value)
        else:
            yield value


def _is_timed_prefix(request: Request, mine: Any, other: Any) -> bool:
    """Whether a text, its ids or a completion is the beginning of that without a time limit."""
    if isinstance(mine, dict):
        if mine["finish_reason"] != "'time'":
            return bool(mine == other)
        mine, other = (ast.literal_eval(each["ids"]) for each in (mine, other))
    # generate does not say what ended its texts.
    return bool(mine == other) or is_prefix(mine[: max(len(mine) - _n_held(request), 0)], other)


def _n_held(request: Request) -> int:
    """Return how many characters or ids of a text may be the beginning of a stop string.

    Without a time limit, the stop string may come, and then they are not part of the text.
    """
    stops = request.options.get("stop_strings", "")
    longest = max(len(stop.encode()) for stop in ([stops] if isinstance(stops, str) else stops))
    return max(longest - 1, 0)


def _first_difference(found: list[Any], alone: list[Any]) -> str:
    if len(found) != len(alone):
        return f"{len(found)} values, alone {len(alone)}; {found!r:.300}, alone {alone!r:.300}"
    at = next(i for i, (a, b) in enumerate(zip(found, alone, strict=True)) if a != b)
    a, b = found[at], alone[at]
    if isinstance(a, dict) and isinstance(b, dict):
        name = next(name for name in a if a[name] != b.get(name))
        a, b = f"{name} {a[name]}", f"{name} {b[name]}"
    return f"value {at}: {a!r:.500}, alone {b!r:.500}"


# ---- running ----


def run_alone(loaded: Loaded, request: Request, found: Outcome | None = None) -> Outcome:
    """Return the outcome of a request with nothing beside it, without its cut and its time limit.

    A request that drew its own seeds gets those in its outcome `found`. Raises FindingError if the
    text of a stream is not that of generate.
    """
    options = {name: value for name, value in request.options.items() if name != "max_time"}
    seeds: Any = None
    if found is not None and found.seeds and found.seeds[0] is not None:
        seeds = found.seeds if request.is_list else found.seeds[0]
    whole = replace(request, options=options, cut=None)
    alone = perform(loaded, whole, seeds)
    if request.kind == "stream" and alone.error is None:
        text = perform(loaded, replace(whole, kind="generate"), seeds).values[0]
        if list(text) != alone.values:
            raise FindingError(f"{request}: the stream {alone.values}, but generate {text!r}")
    return alone


def _errors_of_prompts(loaded: Loaded, request: Request) -> set[str | None]:
    """Return the types of the errors that the prompts of a list raise, each in a call of its own.

    If several prompts fail, the call raises the error that occurs first. Which one this is depends
    on how far each prompt is, and so on the requests beside it.
    """
    types = set()
    for i, prompt in enumerate(request.prompts):
        options = dict(request.options)
        if isinstance(options.get("seed"), list):
            options["seed"] = [options["seed"][i]]
        single = replace(request, prompts=[prompt], options=options)
        types.add(_error(single, run_alone(loaded, single)))
    return types


class Round:
    """The requests of a round and their callers: threads, and tasks of one event loop."""

    def __init__(self, loaded: Loaded, requests: list[Request], rng: random.Random) -> None:
        self.loaded = loaded
        self._remaining = deque(requests)
        self._n_threads = rng.randint(1, 12)
        self._n_tasks = rng.choice([0, 1, 4, 12])
        self._switch_interval = rng.choice([1e-5, 1e-4, 1e-3])
        self.outcomes: dict[int, Outcome] = {}
        self.failures: list[BaseException] = []
        self.slowest = 0.0

    def run(self, others: Iterable[threading.Thread] = ()) -> None:
        """Run all requests. Raises FindingError if one does not end in time."""
        # Daemon threads, so that a program with a stuck caller can end.
        threads = [
            threading.Thread(target=self._in_thread, daemon=True) for _ in range(self._n_threads)
        ]
        if self._n_tasks:
            loop = threading.Thread(target=lambda: asyncio.run(self._in_tasks()), daemon=True)
            threads.append(loop)
        threads += others
        # With Python's default of 5 ms, a call of 1 ms would wait for the Python code of others.
        before = sys.getswitchinterval()
        sys.setswitchinterval(self._switch_interval)
        try:
            self._run_threads(threads)
        finally:
            sys.setswitchinterval(before)
        if self.failures:
            raise self.failures[0]

    def _run_threads(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        end = time.monotonic() + MAX_SECONDS
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.01))
        if any(thread.is_alive() for thread in threads):
            faulthandler.dump_traceback(sys.__stderr__)
            raise FindingError(f"callers still wait after {MAX_SECONDS:.0f} s; stderr shows where")

    def _next(self) -> Request | None:
        try:
            return self._remaining.popleft()
        except IndexError:
            return None

    def _end(self, request: Request, outcome: Outcome, begin: float) -> None:
        self.outcomes[request.number] = outcome
        self.slowest = max(self.slowest, time.monotonic() - begin)

    def _in_thread(self) -> None:
        try:
            while (request := self._next()) is not None:
                time.sleep(request.delay)
                begin = time.monotonic()
                self._end(request, perform(self.loaded, request), begin)
        except BaseException as error:
            self.failures.append(error)

    async def _in_tasks(self) -> None:
        async def caller() -> None:
            while (request := self._next()) is not None:
                await asyncio.sleep(request.delay)
                begin = time.monotonic()
                self._end(request, await perform_async(self.loaded, request), begin)

        try:
            await asyncio.gather(*(caller() for _ in range(self._n_tasks)))
        except BaseException as error:
            self.failures.append(error)


def random_memory(rng: random.Random) -> Memory:
    """Return limits: most of them so small that requests wait and take each other's pages."""
    return Memory(rng.choice([None, 4, 6, 12]), rng.choice([0, 1 << 20]))


def run_round(
    name: str, loaded: Loaded, seed: int, n: int, memory: Memory | None = None
) -> Counter[str]:
    """Run n random requests on a model, and compare; return the numbers of outcomes by kind.

    `loaded` runs each request alone, without a limit of memory. In some rounds, the model is closed
    while the requests run. Raises FindingError.
    """
    rng = random.Random(f"{name} {seed}")
    memory = random_memory(rng) if memory is None else memory
    if "numpy" in name:
        memory = Memory()  # its calls do not wait, and its bits depend on how a prompt is divided
    requests, errors = make_requests(rng, loaded, n), set()
    if memory.n_pages is not None and rng.random() < 0.5:
        errors.add("CacheMemoryError")
    elif memory.n_pages is not None:
        # No request may fail, because each can take the pages of those that came later.
        requests = [r for r in make_requests(rng, loaded, 5 * n) if not r.keeps_pages][:n]
    closes = rng.random() < 0.12 and name != "tales"
    alone_first = rng.random() < 0.5
    alone = {r.number: run_alone(loaded, r) for r in requests if alone_first and not r.is_unseeded}
    used = load(name, memory) if closes or memory != Memory() else loaded
    n_threads = threading.active_count()
    running = Round(used, requests, rng)
    closing = threading.Timer(rng.uniform(0, 0.003 * n), used.close)
    if closes:
        errors.add("ClosedError")
    running.run([closing] if closes else [])
    gc.collect()
    end = time.monotonic() + 5  # the thread of asyncio streams ends a tenth of a second after them
    while threading.active_count() > n_threads and time.monotonic() < end:
        time.sleep(0.01)
    if threading.active_count() > n_threads:
        raise FindingError(f"threads are left: {threading.enumerate()}")
    if used is not loaded:
        check_close(used)
    counts: Counter[str] = Counter()
    for request in requests:
        found = running.outcomes[request.number]
        expected = alone.get(request.number) or run_alone(loaded, request, found)
        differs = difference(request, found, expected, errors)
        if differs and expected.error and found.error and request.is_list:
            other = _error(request, found)
            if other in _errors_of_prompts(loaded, request):
                expected = replace(expected, error=found.error)
                differs = difference(request, found, expected, errors)
        if differs:
            raise FindingError(f"{memory}, {request}: {differs}")
        counts[_kind_of(request, found)] += 1
    return counts


def check_close(loaded: Loaded) -> None:
    """Close a model. Raises FindingError if a call that has ended still holds memory."""
    loaded.close()
    if loaded.model.n_bytes or loaded.model.kv_cache_bytes:
        raise FindingError("close() did not free the memory: an ended call holds it")


def _kind_of(request: Request, found: Outcome) -> str:
    if found.error is not None:
        return f"{request.kind}: {found.error.split(':')[0]}"
    return f"{request.kind}{', cut' if request.cut is not None else ''}"


def check_idle() -> None:
    """Raise FindingError if this process computes although no call runs."""
    time.sleep(0.05)  # workers spin for a moment
    before = time.process_time()
    time.sleep(0.3)
    if (seconds := time.process_time() - before) > 0.1:
        raise FindingError(f"{seconds:.2f} s of CPU time in 0.3 s without a call")
