"""Separate calls that run at the same time: each has its own results, hooks, errors and end.

Calls come from threads, asyncio tasks and forked children. tools/soak/together.py and waiting.py
run the same checks for hours.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import ISAS, ROOT
from random_callers import FindingError, check_close, check_idle, difference, run_round
from random_requests import (
    POISON,
    Loaded,
    Memory,
    OnPurposeError,
    Outcome,
    Request,
    load,
    model_names,
    perform,
)

import gpt2c

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")
needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no SIGALRM here")

SECONDS = 60  # a call that takes longer counts as waiting for ever
# 500 random requests; those of tales and NumPy take longer than the others.
N_REQUESTS = {name: 26 for name in model_names() if name == "tales" or "numpy" in name}
N_REQUESTS |= {
    name: (500 - sum(N_REQUESTS.values())) // len({*model_names()} - {*N_REQUESTS})
    for name in model_names()
    if name not in N_REQUESTS
}
PROMPTS = [[i, *range(i % 5 * 4), i + 1] for i in range(8)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 3},
    {"repetition_penalty": 1.4, "logprobs": 3},
    {"logprobs": 1, "echo": True, "draft": None},
    {"temperature": 1.2, "top_p": 0.9, "seed": 8, "num_return_sequences": 3},
    {"num_beams": 3},
    {"stop_strings": "ab"},
    {"overflow": "slide", "temperature": 1.0, "seed": 1},
]


def calls_of(model: gpt2c.GPT2) -> list[Callable[[], Any]]:
    """Return calls of every kind, whose results == compares."""
    # NumPy is slower.
    n_new = 12 if model.backend == "numpy" else 30
    calls: list[Callable[[], Any]] = [
        partial(model.complete, prompt, max_new_tokens=n_new, **options)
        for prompt, options in zip(PROMPTS, OPTIONS, strict=True)
    ]
    calls += [
        lambda: list(model.stream(PROMPTS[3], max_new_tokens=n_new)),
        lambda: list(model.stream(PROMPTS[4], max_new_tokens=n_new, temperature=0.8, seed=4)),
        lambda: list(model.complete(iter(PROMPTS), max_new_tokens=9, batch_size=3)),
        lambda: model.logits(PROMPTS[4]).tobytes(),
        lambda: [s.logprobs.tobytes() for s in model.score(PROMPTS, top_logprobs=2)],
    ]
    return calls


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make each call in a thread of its own, all at the same time; return results or errors."""
    results: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def work(i: int) -> None:
        barrier.wait(SECONDS)
        try:
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.01))
    assert not any(thread.is_alive() for thread in threads), "a caller waits for ever"
    return results


def plain(results: list[Any]) -> list[str]:
    """Return results without the counts of passes and drafts, which depend on other calls."""

    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(each) for each in value]
        if isinstance(value, gpt2c.Completion):
            return replace(value, passes=0, drafted=0, accepted=0)
        return value

    return [repr(strip(result)) for result in results]


@pytest.fixture(autouse=True)
def short_turns() -> Iterator[None]:
    """Let threads take turns more often than every 5 ms, which is longer than most calls here."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def loaded(backend: str) -> Loaded:
    return load(f"{backend} float32")


@pytest.fixture
def model(loaded: Loaded) -> gpt2c.GPT2:
    return loaded.model


# ---- the same bits as alone ----


@pytest.mark.parametrize("name", model_names())
def test_random_requests_give_the_bits_of_the_request_alone(name: str) -> None:
    loaded = load(name)
    n = N_REQUESTS[name]
    sizes = {Memory(): n // 3, Memory(4): n // 3, Memory(6, 1 << 20): n - 2 * (n // 3)}
    counts: Counter[str] = Counter()
    for seed, (memory, size) in enumerate(sizes.items()):
        counts += run_round(name, loaded, seed, size, memory)
    assert counts.total() == n
    assert len(counts) >= 6
    check_close(loaded)


def test_calls_of_every_kind_at_once(model: gpt2c.GPT2) -> None:
    calls = calls_of(model)
    alone = plain([call() for call in calls])
    for _ in range(1 if model.backend == "numpy" else 3):
        assert plain(together(calls)) == alone
        assert plain([*reversed(together([*reversed(calls)]))]) == alone


def test_many_callers_of_one_prompt(model: gpt2c.GPT2) -> None:
    """More callers than sequences run together by default."""
    prompt = list(range(40))
    expected = model.generate(prompt, max_new_tokens=12)
    assert together([partial(model.generate, prompt, max_new_tokens=12)] * 40) == [expected] * 40


def test_a_draft_model_that_others_call(loaded: Loaded) -> None:
    model, draft = loaded.model, loaded.draft
    if draft is None:
        pytest.skip("NumPy makes no drafts")
    calls = [partial(model.generate, p, max_new_tokens=20, draft=draft) for p in PROMPTS]
    calls += [partial(draft.generate, p, max_new_tokens=20) for p in PROMPTS]
    alone = [call() for call in calls]
    assert together(calls) == alone


def test_streams_that_one_thread_reads_in_turns(model: gpt2c.GPT2) -> None:
    alone = [model.generate(p, max_new_tokens=20) for p in PROMPTS]
    streams = [model.stream(p, max_new_tokens=20) for p in PROMPTS]
    found: list[list[int]] = [[] for _ in PROMPTS]
    for _ in range(21):
        for ids, stream in zip(found, streams, strict=True):
            ids += [id for id in [next(stream, None)] if id is not None]
    assert found == alone


def test_a_stream_that_nobody_reads_holds_up_no_other_call(model: gpt2c.GPT2) -> None:
    alone = [model.generate(p, max_new_tokens=20) for p in PROMPTS]
    stream = model.stream(PROMPTS[0], max_new_tokens=20)
    first = next(stream)
    assert together([partial(model.generate, p, max_new_tokens=20) for p in PROMPTS]) == alone
    assert [first, *stream] == alone[0]


def test_tasks_and_threads_at_once(model: gpt2c.GPT2) -> None:
    alone = [model.generate(p, max_new_tokens=20, temperature=0.9, seed=2) for p in PROMPTS]

    async def read(prompt: list[int]) -> list[int]:
        pieces = model.stream_async(prompt, max_new_tokens=20, temperature=0.9, seed=2)
        return [piece async for piece in pieces]

    async def read_all() -> list[list[int]]:
        # More tasks than asyncio's executor has threads.
        return await asyncio.gather(*(read(p) for p in PROMPTS * 5))

    calls = [
        partial(model.generate, p, max_new_tokens=20, temperature=0.9, seed=2) for p in PROMPTS
    ]
    tasks, *threads = together([lambda: asyncio.run(read_all()), *calls])
    assert threads == alone
    assert tasks == alone * 5


# ---- hooks ----


def test_hooks_run_in_their_callers_thread(model: gpt2c.GPT2) -> None:
    def call(number: int) -> tuple[set[int], int, Any]:
        seen: set[int] = set()

        def prompts() -> Any:
            for prompt in PROMPTS[number:]:
                seen.add(threading.get_ident())
                yield prompt

        def callback(index: int, ids: list[int]) -> None:
            seen.add(threading.get_ident())

        def process(ids: list[int], logits: Any) -> Any:
            seen.add(threading.get_ident())
            return 0.5 * logits

        hooks = [{"callback": callback}, {"logits_processor": process}][number % 2]
        done = list(model.generate(prompts(), max_new_tokens=12, **hooks))
        stream = model.stream(PROMPTS[0], max_new_tokens=12, **hooks)
        return seen, threading.get_ident(), (done, list(stream))

    alone = [call(number)[2] for number in range(8)]
    found = together([partial(call, number) for number in range(8)])
    assert [result for _, _, result in found] == alone
    assert [seen for seen, _, _ in found] == [{caller} for _, caller, _ in found]


@pytest.mark.parametrize("hook", ["callback", "logits_processor"])
def test_hooks_may_wait_for_other_calls(model: gpt2c.GPT2, hook: str) -> None:
    """A sequence whose hook runs does not hold up the steps of others."""
    barrier = threading.Barrier(4)
    is_done = threading.Event()

    def wait_for_each_other(*given: Any) -> Any:
        barrier.wait(SECONDS)
        return given[1] if hook == "logits_processor" else None

    def wait_for_plain(*given: Any) -> Any:
        assert is_done.wait(SECONDS)
        return given[1] if hook == "logits_processor" else None

    def plain_call() -> Any:
        try:
            return model.generate(PROMPTS[0], max_new_tokens=30)
        finally:
            is_done.set()

    hooks = [wait_for_each_other] * 4 + [wait_for_plain]
    # A text that an EOS token ends early would leave the others waiting at the barrier.
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    alone = [model.generate(p, **options) for p in PROMPTS[:5]]
    expected = model.generate(PROMPTS[0], max_new_tokens=30)
    calls = [partial(model.generate, p, **options, **{hook: called})
             for p, called in zip(PROMPTS[:5], hooks, strict=True)]  # fmt: skip
    assert together([*calls, plain_call]) == [*alone, expected]


@pytest.mark.parametrize("hook", ["callback", "logits_processor"])
def test_hooks_may_call_the_model(model: gpt2c.GPT2, hook: str) -> None:
    """In the same thread, and in another one that the hook waits for."""
    inner = model.generate([9, 9], max_new_tokens=5)
    logits = model.logits([3, 4])
    found: list[Any] = []

    def called(*given: Any) -> Any:
        found.append(model.generate([9, 9], max_new_tokens=5))
        found.append(together([partial(model.generate, [9, 9], max_new_tokens=5)])[0])
        found.append(next(model.stream([9, 9])))
        assert np.array_equal(model.logits([3, 4]), logits)
        return given[1] if hook == "logits_processor" else None

    alone = [model.generate(p, max_new_tokens=6) for p in PROMPTS[:3]]
    calls = [partial(model.generate, p, max_new_tokens=6, **{hook: called}) for p in PROMPTS[:3]]
    assert together(calls) == alone
    assert found
    assert all(each == (inner[0] if isinstance(each, int) else inner) for each in found)


# ---- a request that fails, fails alone ----


def raising(*_: Any) -> Any:
    raise OnPurposeError("on purpose")


FAILURES: dict[str, tuple[Any, dict[str, Any], type[Exception]]] = {
    "callback": ([1, 2], {"callback": raising}, OnPurposeError),
    "processor": ([1, 2], {"logits_processor": raising}, OnPurposeError),
    "wrong processor": ([1, 2], {"logits_processor": lambda i, x: x[1:]}, gpt2c.OptionError),
    "NaN": ([1, POISON], {}, gpt2c.NumericalError),
    "NaN in the prompt's scores": ([1, POISON, 2], {"logprobs": 0, "echo": True},
                                   gpt2c.NumericalError),
    "NaN in beam search": ([1, POISON], {"num_beams": 2}, gpt2c.NumericalError),
    "no token left": ([1, 2], {"suppress_tokens": list(range(64))}, gpt2c.OptionError),
    "too long": ([1] * 97, {}, gpt2c.ContextError),
    "wrong id": ([64], {}, gpt2c.OptionError),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_request_that_fails_hurts_no_other(model: gpt2c.GPT2, name: str) -> None:
    prompt, options, kind = FAILURES[name]
    calls = calls_of(model)
    alone = plain([call() for call in calls])
    failing = partial(model.complete, prompt, max_new_tokens=20, **options)
    mixed = [call for good in calls for call in (failing, good)]
    results = together(mixed)
    assert [type(error) for error in results[::2]] == [kind] * len(calls)
    assert plain(results[1::2]) == alone
    assert plain([call() for call in calls]) == alone


# ---- ends ----


def test_a_cancelled_task_ends_soon_and_hurts_no_other(model: gpt2c.GPT2) -> None:
    alone = [model.generate(p, max_new_tokens=40) for p in PROMPTS]

    async def read(prompt: list[int]) -> list[int]:
        return [piece async for piece in model.stream_async(prompt, max_new_tokens=40)]

    async def read_all() -> Any:
        kept = [asyncio.create_task(read(p)) for p in PROMPTS]
        cut = [asyncio.create_task(read(p)) for p in PROMPTS]
        for i, task in enumerate(cut):
            await asyncio.sleep(0.001 * i)
            task.cancel()
        cancelled = await asyncio.gather(*cut, return_exceptions=True)
        return await asyncio.gather(*kept), cancelled

    kept, cancelled = asyncio.run(asyncio.wait_for(read_all(), SECONDS))
    assert kept == alone
    for result, expected in zip(cancelled, alone, strict=True):
        assert isinstance(result, asyncio.CancelledError) or result == expected
    assert any(isinstance(result, asyncio.CancelledError) for result in cancelled)


def test_abandoned_streams_leave_nothing(model: gpt2c.GPT2) -> None:
    calls = calls_of(model)
    alone = plain([call() for call in calls])

    def abandon() -> None:
        for n in range(4):
            stream = model.stream(PROMPTS[n], max_new_tokens=20)
            lazy = model.complete(iter(PROMPTS), max_new_tokens=20)
            for _ in range(n):
                next(stream), next(lazy)
            if n % 2:
                stream.close()  # type: ignore[attr-defined]
            cycle: list[Any] = [lazy]
            cycle.append(cycle)

    n_threads = threading.active_count()
    results = together([*[abandon] * 4, *calls])
    assert plain(results[4:]) == alone
    gc.collect()
    check_idle()
    assert threading.active_count() == n_threads
    model.close()
    assert model.n_bytes == 0


def test_close_during_calls(backend: str) -> None:
    loaded = load(f"{backend} float32")
    alone = plain([call() for call in calls_of(loaded.model)])
    for _ in range(4):
        loaded = load(f"{backend} float32")
        results = together([*calls_of(loaded.model), loaded.close])[:-1]
        for result, text, expected in zip(results, plain(results), alone, strict=True):
            assert isinstance(result, gpt2c.ClosedError) or text == expected
        gc.collect()
        assert loaded.model.n_bytes == 0


@needs_signals
def test_an_interrupted_caller_hurts_no_other(model: gpt2c.GPT2) -> None:
    """Ctrl-C ends the call of the main thread, whichever thread computes for it."""
    prompts = PROMPTS[1:5]
    alone = [model.generate(p, max_new_tokens=40) for p in PROMPTS]
    is_done = threading.Event()
    wrong: list[Any] = []
    n_calls = [0] * len(prompts)

    def others(i: int) -> None:
        while not is_done.is_set():
            found = model.generate(prompts[i], max_new_tokens=40)
            n_calls[i] += 1
            if found != alone[1 + i]:
                wrong.append(found)

    n_runs = 0

    def handler(number: int, frame: Any) -> None:
        nonlocal n_runs
        n_runs += 1
        raise KeyboardInterrupt

    threads = [threading.Thread(target=others, args=(i,), daemon=True) for i in range(4)]
    before = signal.signal(signal.SIGALRM, handler)
    n_caught = 0
    try:
        for thread in threads:
            thread.start()
        for i in range(40):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003 * (1 + i))
                begin = time.monotonic()
                while n_runs == i:
                    model.generate(PROMPTS[0], max_new_tokens=40)
                    assert time.monotonic() - begin < SECONDS
                for _ in range(100):
                    pass
            except KeyboardInterrupt:
                n_caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        is_done.set()
        for thread in threads:
            thread.join(SECONDS)
    assert n_caught == n_runs == 40
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert all(n_calls)
    assert [model.generate(p, max_new_tokens=40) for p in PROMPTS] == alone
    model.close()
    assert model.n_bytes == 0


def test_threads_that_die_in_a_call(model: gpt2c.GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """SystemExit comes at any line of a thread, perhaps of the one that computes for others."""
    monkeypatch.setattr(threading, "excepthook", lambda given: None)  # pytest's own would fail
    calls = calls_of(model)
    alone = plain([call() for call in calls])
    is_done = threading.Event()

    def die() -> None:
        while True:
            model.generate(PROMPTS[2], max_new_tokens=40)

    def kill_threads() -> int:
        n_killed = 0
        while not is_done.is_set() or n_killed < 10:
            thread = threading.Thread(target=die, daemon=True)
            thread.start()
            time.sleep(0.002 + 0.001 * (n_killed % 10))
            raise_in(thread, SystemExit)
            thread.join(SECONDS)
            assert not thread.is_alive()
            n_killed += 1
        return n_killed

    def call_all() -> list[str]:
        try:
            return [text for _ in range(3) for text in plain([call() for call in calls])]
        finally:
            is_done.set()

    killed, *results = together([kill_threads, call_all, call_all])
    assert results == [alone * 3] * 2
    assert killed >= 10
    gc.collect()
    model.close()
    assert model.n_bytes == 0


def raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an exception in another thread at its next line of Python."""
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(error))


EXITS = {
    "daemon threads": "",
    "an abandoned stream": "s = m.stream('Once', max_new_tokens=400); next(s)",
    "an exception": "raise SystemExit(0)",
    "asyncio": "import asyncio\nasync def f():\n async for _ in m.stream_async('Once'): break\n"
               "asyncio.run(f())",
}  # fmt: skip


@pytest.mark.parametrize("name", EXITS)
def test_the_process_exits_while_daemon_threads_are_in_calls(name: str) -> None:
    program = (
        "import gpt2c, threading, time\n"
        "m = gpt2c.GPT2.from_pretrained(threads=2)\n"
        "def work():\n"
        "    while True:\n"
        "        m.generate('Once', max_new_tokens=50)\n"
        "for _ in range(5):\n"
        "    threading.Thread(target=work, daemon=True).start()\n"
        f"time.sleep(0.2)\n{EXITS[name]}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        timeout=SECONDS, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# ---- forks ----


def exit_child(check: Callable[[], object]) -> None:
    """End a forked child: with status 0 if the check returns a true value."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    try:
        os._exit(0 if check() else 1)
    except BaseException:
        os._exit(2)


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads
def test_forks_beside_running_calls(model: gpt2c.GPT2) -> None:
    calls = calls_of(model)
    alone = plain([call() for call in calls])

    def fork() -> list[int]:
        statuses = []
        for _ in range(5):
            child = os.fork()
            if child == 0:
                exit_child(lambda: plain([call() for call in calls]) == alone)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return statuses

    statuses, *results = together([fork, *calls * 2])
    assert statuses == [0] * 5
    assert plain(results) == alone * 2


@needs_fork
@pytest.mark.parametrize("hook", ["callback", "logits_processor"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_in_a_hook_beside_running_calls(model: gpt2c.GPT2, hook: str) -> None:
    """The child ends the call that it was forked in, and makes others."""
    calls = calls_of(model)
    alone = plain([call() for call in calls])
    expected = model.generate([1, 2], max_new_tokens=6)

    def fork_in_hook() -> int:
        child = None

        def called(*given: Any) -> Any:
            nonlocal child
            if child is None:
                child = os.fork()
            return given[1] if hook == "logits_processor" else None

        ids = model.generate([1, 2], max_new_tokens=6, **{hook: called})
        if child == 0:
            exit_child(lambda: ids == expected and plain([call() for call in calls]) == alone)
        assert child is not None
        assert ids == expected
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    results = together([*[fork_in_hook] * 3, *calls])
    assert results[:3] == [0] * 3
    assert plain(results[3:]) == alone


# ---- the checks themselves ----


class _Mixing:
    """A model whose calls get each other's ids while several threads are in calls."""

    def __init__(self, model: gpt2c.GPT2) -> None:
        self._model = model
        self.n_inside = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, prompts: Any, **options: Any) -> Any:
        self.n_inside += 1
        try:
            time.sleep(0.001)
            is_mixed = self.n_inside > 1
            return self._model.generate([5] if is_mixed else prompts, **options)
        finally:
            self.n_inside -= 1


def test_mixed_up_calls_are_found(backend: str) -> None:
    loaded = load(f"{backend} float32")
    mixing = replace(loaded, model=_Mixing(loaded.model))  # type: ignore[arg-type]

    def run() -> None:
        for seed in range(20):
            run_round(f"{backend} float32", mixing, seed, 40, Memory())

    with pytest.raises(FindingError, match="alone"):
        run()


def test_what_counts_as_a_difference() -> None:
    def outcome(*values: Any, error: str | None = None) -> Outcome:
        return Outcome(list(values), error)

    stream, lists = Request(0, "stream", "a"), Request(1, "generate", ["a", "b"])
    cut = replace(stream, cut=2)
    assert difference(stream, outcome(1, 2), outcome(1, 2)) is None
    assert difference(stream, outcome(1), outcome(1, 2)) is not None
    assert difference(stream, outcome(-0.0), outcome("-0.0")) is not None
    assert difference(cut, outcome(1, 2), outcome(1, 2, 3)) is None
    assert difference(cut, outcome(1, 3), outcome(1, 2, 3)) is not None
    assert difference(stream, outcome(1, error="A: b"), outcome(1, error="A: c")) is not None
    assert difference(lists, outcome(error="A: b"), outcome(error="A: c")) is None
    assert difference(lists, outcome(error="A: b"), outcome(error="B: b")) is not None
    assert difference(lists, outcome(error="ClosedError: b"), outcome(1)) is not None
    closed = outcome(1, error="ClosedError: b")
    assert difference(lists, closed, outcome(1, 2), {"ClosedError"}) is None
    assert difference(lists, closed, outcome(2), {"ClosedError"}) is not None
    assert difference(lists, closed, outcome(1, 2), {"CacheMemoryError"}) is not None
    timed = Request(2, "stream", "a", {"max_time": 0.0, "stop_strings": "dc"})
    assert difference(timed, outcome("c", "d"), outcome("c")) is None
    assert difference(timed, outcome("c", "d", "e"), outcome("c")) is not None
    late = outcome("c", "d", error="ClosedError: b")
    assert difference(timed, late, outcome("c"), {"ClosedError"}) is None
    assert difference(timed, late, outcome("e"), {"ClosedError"}) is not None
    assert difference(replace(timed, options={"max_time": 0.0}), outcome("c", "d"),
                      outcome("c")) is not None  # fmt: skip
    assert "thread" in (difference(stream, Outcome(foreign=["callback"]), outcome()) or "")


def test_an_outcome_has_every_bit_of_a_log_probability() -> None:
    loaded = load("numpy float32")
    request = Request(0, "complete", [1, 2], {"max_new_tokens": 2, "logprobs": 1, "echo": True})
    (found,) = perform(loaded, request).values
    completion = loaded.model.complete([1, 2], max_new_tokens=2, logprobs=1, echo=True)
    assert [float(x) for x in found["logprobs"][1:-1].split(",")] == completion.logprobs
    assert found["prompt_logprobs"].startswith("[nan, ")


def test_the_soak_scripts_print_their_seed_and_result_last() -> None:
    for script, arguments, first in (
        ("together.py", ["scalar float32" if ISAS else "numpy float32", "--requests", "30"],
         "together: seed 3, 30 requests in "),
        ("waiting.py", ["--minutes", "0.05"], "waiting: seed 3, "),
    ):  # fmt: skip
        command = [sys.executable, ROOT / "tools/soak" / script, *arguments, "--seed", "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith(first)
        assert last.endswith(": nothing found")
