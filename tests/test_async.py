"""stream_async on one event loop and several: any number of streams, and every way to end one."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import os
import signal
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest
from conftest import config_of, in_threads, model_on, random_weights, wait_until

import gpt2c
from gpt2c.engine.protocol import Plan
from gpt2c.schedule.dispatcher import Dispatcher, resolve

NAME = "gpt2c asyncio"  # of the dispatcher's threads
SAMPLED = {"temperature": 1.1, "seed": 3}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def model(backend):
    config = config_of(vocab_size=300, n_positions=60)
    return model_on(backend, config, random_weights(config), threads=2)


def prompts(n):
    return [[1 + i % 7, 2, 3, 4 + i % 11][: 1 + i % 4] for i in range(n)]


async def read(pieces):
    return [piece async for piece in pieces]


def dispatcher_threads():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def run_streams(model, n, **options):
    async def run():
        streams = [
            read(model.stream_async(prompt, **{**options, "seed": i}))
            for i, prompt in enumerate(prompts(n))
        ]
        return await asyncio.gather(*streams)

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    wait_until(lambda: not dispatcher_threads())


# ---- results ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2},
        {"stop_token_ids": [5, 17, 33, 80]},
        {"overflow": "slide", "max_new_tokens": 65},
        {"draft": "lookup"},
    ],
    ids=["greedy", "sampled", "stops", "slide", "lookup"],
)
def test_streams_beside_each_other_equal_single_calls(model, options):
    if "draft" in options and model.backend == "numpy":
        pytest.skip("NumPy makes no drafts")
    options = {"max_new_tokens": 12, **options}
    found = run_streams(model, 10, **options)
    alone = [
        model.complete(prompt, **{**options, "seed": i}).ids for i, prompt in enumerate(prompts(10))
    ]
    assert found == alone


def test_two_hundred_streams_run_together(model):
    """Each begins before the first ends, though a pool of threads would run fewer."""
    n, n_tokens = 200, 3
    begun = set()
    counts = []

    def callback(i, ids):
        begun.add(i)

    async def one(i, prompt):
        pieces = []
        async for piece in model.stream_async(prompt, max_new_tokens=n_tokens, seed=i, top_k=9):
            begun.add(i)
            pieces.append(piece)
        counts.append(len(begun))
        return pieces

    async def run():
        return await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts(n))))

    found = asyncio.run(run())
    assert counts[0] > 100
    alone = model.complete(prompts(n), max_new_tokens=n_tokens, seed=list(range(n)), top_k=9)
    assert found == [completion.ids for completion in alone]


def test_a_step_wakes_the_loop_once_for_all_its_streams(model, monkeypatch):
    n, n_tokens = 30, 10
    n_wakes = 0

    async def run():
        nonlocal n_wakes
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counting(*arguments):
            nonlocal n_wakes
            n_wakes += 1
            return call(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        streams = (read(model.stream_async(p, max_new_tokens=n_tokens)) for p in prompts(n))
        await asyncio.gather(*streams)

    asyncio.run(run())
    assert n_tokens <= n_wakes < n * n_tokens / 2


def test_callbacks_run_in_the_threads_of_their_loops(model):
    seen = {}

    def run(name):
        def callback(index, ids):
            seen.setdefault(name, set()).add(threading.get_ident())

        def processor(ids, logits):
            seen.setdefault(name, set()).add(threading.get_ident())
            return logits

        async def both():
            await asyncio.gather(
                read(model.stream_async([1], max_new_tokens=5, callback=callback)),
                read(model.stream_async([1], max_new_tokens=5, logits_processor=processor)),
            )

        asyncio.run(both())
        assert seen[name] == {threading.get_ident()}

    in_threads(run, ["a", "b", "c"])
    assert set(seen) == {"a", "b", "c"}


def test_a_logits_processor_changes_the_streams_tokens(model):
    def processor(ids, logits):
        logits[:] = -np.inf
        logits[(ids[-1] + 1) % 300] = 0
        return logits

    async def run():
        stream = model.stream_async([7], max_new_tokens=4, logits_processor=processor)
        return await asyncio.gather(read(stream), read(model.stream_async([7], max_new_tokens=4)))

    counted, plain = asyncio.run(run())
    assert counted == [8, 9, 10, 11]
    assert plain == model.generate([7], max_new_tokens=4)


# ---- ends ----


def test_an_error_ends_only_its_own_stream(model):
    class RefusedError(Exception):
        pass

    def refuse(index, ids):
        if len(ids) == 3:
            raise RefusedError

    async def run():
        good = [read(model.stream_async(p, max_new_tokens=8)) for p in prompts(5)]
        bad = read(model.stream_async([1], max_new_tokens=8, callback=refuse))
        nothing = read(model.stream_async([1], suppress_tokens=list(range(300))))
        return await asyncio.gather(*good, bad, nothing, return_exceptions=True)

    *found, refused, nothing = asyncio.run(run())
    assert found == [model.generate(prompt, max_new_tokens=8) for prompt in prompts(5)]
    assert isinstance(refused, RefusedError)
    assert isinstance(nothing, gpt2c.OptionError)


def test_a_nan_raises_numerical_error(backend):
    config = config_of()
    weights = random_weights(config)
    weights["wpe.weight"][3] = np.nan
    model = model_on(backend, config, weights)

    async def run():
        return await read(model.stream_async([1, 2], max_new_tokens=9))

    with pytest.raises(gpt2c.NumericalError, match="prompt 0: a logit at position"):
        asyncio.run(run())


def test_cancelled_streams_end_and_the_others_go_on(model):
    async def run():
        tasks = [
            asyncio.create_task(read(model.stream_async(p, max_new_tokens=50))) for p in prompts(20)
        ]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    for i, prompt in enumerate(prompts(20)):
        if i % 2:
            assert found[i] == model.generate(prompt, max_new_tokens=50)
        else:
            alone = model.generate(prompt, max_new_tokens=50)
            assert isinstance(found[i], asyncio.CancelledError) or found[i] == alone
    model.close()
    wait_until(lambda: not dispatcher_threads())
    assert model.n_bytes == 0


def test_cancelling_a_task_cancels_its_job(model, monkeypatch):
    """The engine notices it within a pass, not only at the end of a long prompt."""
    jobs = []
    step = Dispatcher.step

    def noting(dispatcher, engine, job):
        jobs.append(job)
        return step(dispatcher, engine, job)

    monkeypatch.setattr(Dispatcher, "step", noting)

    async def run():
        task = asyncio.create_task(read(model.stream_async([1] * 50, max_new_tokens=5)))
        while not jobs:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert [job.cancelled for job in jobs] == [True]


def test_a_job_that_was_not_quite_added_does_not_keep_the_thread(model):
    """An interrupt may come between taking note of a job and adding it."""
    engine, dispatcher = model._engine, Dispatcher()
    ids, no_ids = np.array([1], np.int32), np.empty(0, np.int32)
    jobs = [engine.job(ids, 3, Plan(), 0, 0, no_ids) for _ in range(2)]

    async def run():
        lost = asyncio.get_running_loop().create_future()
        step = asyncio.create_task(dispatcher.step(engine, jobs[0]))
        while dispatcher._worker is None:
            await asyncio.sleep(0)
        dispatcher._worker._futures[jobs[1]] = weakref.ref(lost)
        await step

    asyncio.run(run())
    assert jobs[0].n_tokens == 1
    wait_until(lambda: not dispatcher_threads())


def test_a_timeout_ends_a_stream(model):
    async def run():
        stream = model.stream_async([1], max_new_tokens=10**6, overflow="slide")
        await asyncio.wait_for(read(stream), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(run())


def test_a_closed_loop_with_running_streams(model):
    """Tasks that were never cancelled: the jobs end with their step, and so does the thread."""
    loop = asyncio.new_event_loop()
    tasks = [
        loop.create_task(read(model.stream_async(p, max_new_tokens=10**6, overflow="slide")))
        for p in prompts(8)
    ]
    loop.run_until_complete(asyncio.sleep(0.03))
    loop.close()
    wait_until(lambda: not dispatcher_threads())
    for task in tasks:
        task._log_destroy_pending = False
    del tasks, task
    gc.collect()
    model.close()
    assert model.n_bytes == 0


def test_a_paused_stream_goes_on_after_the_thread_has_ended(model):
    async def run():
        stream = model.stream_async([1, 2], max_new_tokens=6)
        pieces = [await anext(stream)]
        while dispatcher_threads():
            await asyncio.sleep(0.01)
        return pieces + await read(stream)

    assert asyncio.run(run()) == model.generate([1, 2], max_new_tokens=6)


def test_a_model_that_is_closed_ends_its_streams(model):
    async def run():
        streams = [
            asyncio.create_task(read(model.stream_async(p, max_new_tokens=10**6, overflow="slide")))
            for p in prompts(5)
        ]
        await asyncio.sleep(0.02)
        model.close()
        return await asyncio.gather(*streams, return_exceptions=True)

    assert [type(error) for error in asyncio.run(run())] == [gpt2c.ClosedError] * 5
    wait_until(lambda: not dispatcher_threads())
    assert model.n_bytes == 0


def test_a_dropped_model_is_freed(model):
    config = config_of()
    dropped = model_on(model.backend, config, random_weights(config))
    run_streams(dropped, 3, max_new_tokens=3)
    engine = weakref.ref(dropped._engine)
    del dropped
    wait_until(lambda: gc.collect() >= 0 and engine() is None)


def test_loops_in_several_threads(model):
    found = {}

    def run(k):
        found[k] = run_streams(model, 10, max_new_tokens=9, temperature=0.8)

    in_threads(run, range(4))
    assert len(found) == 4
    assert all(each == found[0] for each in found.values())


# ---- forks, interrupts and the end of the process ----


@needs_fork
def test_a_forked_child_has_its_own_thread(model):
    """The parent forks while streams run; both have right results."""
    expected = model.generate([3, 4], max_new_tokens=12)

    async def run():
        tasks = [
            asyncio.create_task(read(model.stream_async(p, max_new_tokens=40))) for p in prompts(9)
        ]
        await asyncio.sleep(0.005)
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                in_threads(check_in_child, [(model, expected, ok := [])])
                code = 0 if ok else 2
            os._exit(code)
        streams = await asyncio.gather(*tasks)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return streams, os.waitstatus_to_exitcode(status)

    streams, code = asyncio.run(run())
    assert code == 0
    assert streams == [model.generate(p, max_new_tokens=40) for p in prompts(9)]


def check_in_child(arguments):
    model, expected, ok = arguments

    async def run():
        return await asyncio.gather(
            *(read(model.stream_async([3, 4], max_new_tokens=12)) for _ in range(3))
        )

    if asyncio.run(run()) == [expected] * 3:
        ok.append(True)


SCRIPT = """
import asyncio, sys, threading, time
import gpt2c
model = gpt2c.GPT2.from_pretrained(backend={backend!r})
async def read(prompt):
    async for piece in model.stream_async(prompt, max_new_tokens=10**6, overflow="slide"):
        pass
async def main():
    tasks = [asyncio.create_task(read("Once upon a time")) for _ in range(8)]
    await asyncio.sleep(0.3)
    print("running", flush=True)
    {then}
"""


def script(backend, then):
    return SCRIPT.format(backend="numpy" if backend == "numpy" else "c", then=then)


@pytest.mark.parametrize("end", ["return", "sys.exit(0)", "abandoned", "daemon"])
def test_the_process_ends_with_running_streams(start, backend, end):
    code = script(backend, "return" if end in ("abandoned", "daemon") else end)
    if end == "abandoned":
        code += textwrap.dedent("""
            loop = asyncio.new_event_loop()
            task = loop.create_task(main())
            loop.run_until_complete(task)
        """)
    elif end == "daemon":
        code = script(backend, "await asyncio.sleep(1000)") + textwrap.dedent("""
            threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
            time.sleep(1)
        """)
    else:
        code += "\nasyncio.run(main())\n"
    process = start([sys.executable, "-W", "ignore", "-c", code], text=True, stdout=-1)
    assert process.stdout.readline() == "running\n"
    assert process.wait(30) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no signals here")
def test_ctrl_c_ends_the_streams(start, backend):
    code = script(backend, "await asyncio.gather(*tasks)") + textwrap.dedent("""
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            model.close()
            end = time.monotonic() + 10
            while model.n_bytes and time.monotonic() < end:
                time.sleep(0.01)
            print("interrupted", model.n_bytes)
    """)
    process = start([sys.executable, "-c", code], text=True, stdout=-1)
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted 0\n"
    assert process.wait(30) == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_ctrl_c_at_any_moment_of_the_streams(model):
    """asyncio.run cancels its tasks then; the next call is right, and nothing hangs."""
    expected = model.generate([3, 4], max_new_tokens=12)
    is_running = False

    def handler(number, frame):
        if is_running:
            _thread.interrupt_main()

    async def run():
        nonlocal is_running
        is_running = True
        try:
            streams = (read(model.stream_async(p, max_new_tokens=50)) for p in prompts(3))
            await asyncio.gather(*streams)
        finally:
            is_running = False

    async def again():
        return await asyncio.wait_for(read(model.stream_async([3, 4], max_new_tokens=12)), 20)

    n_interrupts = 0
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for i in range(40):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0002 * i)
            try:
                asyncio.run(run())
            except KeyboardInterrupt:
                n_interrupts += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert asyncio.run(again()) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_interrupts > 5


def test_a_step_waits_for_the_tasks_that_the_last_one_woke():
    """The lock of `resolve` is released after the tasks, and after what they call soon."""

    async def run() -> list[str]:
        loop, order = asyncio.get_running_loop(), []
        future = loop.create_future()

        async def wait_for_a_token() -> None:
            await future
            order.append("task")
            loop.call_soon(order.append, "called soon")

        def wait_for_the_lock() -> list[str]:
            (lock,) = resolve([future])
            assert lock.acquire(timeout=60)
            return list(order)

        task = asyncio.create_task(wait_for_a_token())
        await asyncio.sleep(0)
        found = await asyncio.to_thread(wait_for_the_lock)
        await task
        return found

    assert asyncio.run(run()) == ["task", "called soon"]
