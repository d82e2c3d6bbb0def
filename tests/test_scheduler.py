"""Scheduler: every request has the result of `complete` alone, and ends, whatever happens."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import gc
import math
import os
import signal
import sys
import textwrap
import threading
import time
import traceback

import numpy as np
import pytest
from conftest import (
    BACKENDS,
    TALES,
    config_of,
    in_threads,
    load,
    model_on,
    random_weights,
    wait_until,
)

import gpt2c
from gpt2c import Scheduler
from gpt2c.scheduler import Finished, Token

NAME = "gpt2c scheduler"  # of the schedulers' threads
ENDLESS = {"max_new_tokens": 10**6, "overflow": "slide"}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def model(backend):
    config = config_of(vocab_size=300, n_positions=60)
    return model_on(backend, config, random_weights(config), threads=2)


@pytest.fixture(params=[False, True], ids=["readers", "thread"])
def thread(request):
    return request.param


def prompts(n):
    return [[1 + i % 7, 2, 3, 4 + i % 11][: 1 + i % 4] for i in range(n)]


def scheduler_threads():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    wait_until(lambda: not scheduler_threads())


def outcome(completion):
    """What must be equal whatever ran beside a request: all but the counts of passes and drafts."""
    return {
        name: value
        for name, value in vars(completion).items()
        if name not in ("passes", "drafted", "accepted")
    }


OPTIONS = [
    {},
    {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2, "seed": 5},
    {"stop_token_ids": [5, 17, 33, 80, 100, 150]},
    {"overflow": "slide", "max_new_tokens": 65, "logprobs": 1},
    {"logprobs": 2, "echo": True},
    {"mirostat_tau": 3.0, "seed": 9, "logprobs": 0},
    {"max_new_tokens": 0},
    {"callback": lambda index, ids: len(ids) == 4},
    {"min_new_tokens": 3, "no_repeat_ngram_size": 2},
]


# ---- results ----


def test_results_equal_complete(model, thread):
    """Requests with different options run beside each other."""
    requests = [
        (prompt, {"max_new_tokens": 12, **OPTIONS[i % len(OPTIONS)]})
        for i, prompt in enumerate(prompts(18))
    ]
    with Scheduler(model, thread=thread) as scheduler:
        handles = [scheduler.add(prompt, **options) for prompt, options in requests]
        found = [outcome(handle.result()) for handle in handles]
    for (prompt, options), each in zip(requests, found, strict=True):
        assert str(each) == str(outcome(model.complete(prompt, **options)))  # str: NaN equals NaN


def test_drafts(tales, thread):
    # A fixed number: otherwise measured times decide, and a busy machine may draft nothing.
    options = {"max_new_tokens": 60, "draft": "packing", "num_assistant_tokens": 3}
    texts = ["Once upon a time", "The fox", "One day"]
    with Scheduler(tales, thread=thread) as scheduler:
        handles = [scheduler.add(text, **options) for text in texts]
        completions = [handle.result() for handle in handles]
    assert [c.text for c in completions] == tales.generate(texts, max_new_tokens=60)
    assert all(c.drafted > 0 for c in completions)


def test_events_of_a_text(backend, thread):
    model = load(TALES, backend)
    options = {"max_new_tokens": 15, "stop_strings": ["little"], "logprobs": 2}
    with Scheduler(model, thread=thread) as scheduler:
        handle = scheduler.add("Once upon a time, there was a", **options)
        events = list(handle)
        assert list(handle) == events
    *tokens, end = events
    expected = model.complete("Once upon a time, there was a", **options)
    assert isinstance(end, Finished)
    assert outcome(end.completion) == outcome(expected)
    assert all(isinstance(token, Token) for token in tokens)
    assert [token.id for token in tokens] == expected.ids
    assert "".join(token.text for token in tokens) + end.text == expected.text
    assert [token.logprob for token in tokens] == expected.logprobs
    assert [token.top_logprobs for token in tokens] == expected.top_logprobs


def test_events_of_ids(model):
    with Scheduler(model) as scheduler:
        *tokens, end = scheduler.add([1, 2], max_new_tokens=3)
    assert tokens == [Token(id, None) for id in model.generate([1, 2], max_new_tokens=3)]
    assert end.text is None


def test_a_text_that_ends_inside_a_character(model):
    model.tokenizer = gpt2c.Tokenizer.gpt2()
    euro = model.tokenizer.encode("€")  # several tokens
    mask = np.zeros(300, bool)
    mask[euro[0] if euro[0] < 300 else 162] = True
    first = int(np.flatnonzero(mask)[0])
    assert model.tokenizer.token_bytes(first)[0] >= 0xC0  # the first byte of a character
    with Scheduler(model) as scheduler:
        *tokens, end = scheduler.add("!", max_new_tokens=1, allowed_ids=mask)
    assert [(token.id, token.text) for token in tokens] == [(first, "")]
    assert (end.text, end.completion.text) == ("\ufffd", "\ufffd")


def test_asyncio(model, thread):
    async def run():
        with Scheduler(model, thread=thread) as scheduler:
            handles = [scheduler.add(p, max_new_tokens=6) for p in prompts(50)]
            read = [[event async for event in handles[0]] for _ in range(2)]
            return read, await asyncio.gather(*(wait(handle) for handle in handles))

    async def wait(handle):
        return await handle

    read, completions = asyncio.run(run())
    alone = [model.generate(p, max_new_tokens=6) for p in prompts(50)]
    assert [completion.ids for completion in completions] == alone
    assert read[0] == read[1]
    assert [event.id for event in read[0][:-1]] == alone[0]


def test_readers_in_many_threads(model, thread):
    found = {}

    def serve(i):
        found[i] = [e.id for e in scheduler.add([1 + i], max_new_tokens=8) if isinstance(e, Token)]

    with Scheduler(model, thread=thread) as scheduler:
        in_threads(serve, range(40))
    assert found == {i: model.generate([1 + i], max_new_tokens=8) for i in range(40)}


def test_a_few_requests_at_a_time(model, thread):
    n_running, most_running = 0, 0

    def callback(index, ids):
        nonlocal n_running, most_running
        n_running += {1: 1, 5: -1}.get(len(ids), 0)
        most_running = max(most_running, n_running)

    options = {"max_new_tokens": 5, "callback": callback}
    with Scheduler(model, thread=thread, max_running=3) as scheduler:
        handles = [scheduler.add(prompt, **options) for prompt in prompts(20)]
        last = handles[-1].result()
        found = [handle.result().ids for handle in handles]
    assert found == [model.generate(prompt, max_new_tokens=5) for prompt in prompts(20)]
    assert last.ids == found[-1]
    assert most_running == 3


def test_allowed_ids(model):
    mask = np.zeros(300, bool)
    mask[[7, 9, 200]] = True
    with Scheduler(model) as scheduler:
        masked = scheduler.add([1, 2], max_new_tokens=20, allowed_ids=mask)
        free = scheduler.add([1, 2], max_new_tokens=20)
        assert set(masked.result().ids) <= {7, 9, 200}
        assert free.result().ids == model.generate([1, 2], max_new_tokens=20)
        with pytest.raises(gpt2c.OptionError, match="allowed_ids leaves no token"):
            scheduler.add([1], allowed_ids=np.zeros(300, bool))


# ---- order and time ----


def test_priority_orders_the_queue(model):
    order = []

    def begins(name):
        def callback(index, ids):
            if len(ids) == 1:
                order.append(name)

        return callback

    with Scheduler(model, max_running=1) as scheduler:
        handles = [
            scheduler.add([1], max_new_tokens=2, priority=priority, callback=begins(name))
            for name, priority in [("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0)]
        ]
        for handle in handles:
            handle.result()
    assert order == ["b", "d", "a", "e", "c"]


@pytest.mark.parametrize(
    ("n_running", "n_prompt", "n_steps"),
    [
        pytest.param(8, 320, 320 // 16, id="long"),
        pytest.param(64, 320, 320 // 32, id="many"),
        pytest.param(8, 60, 1, id="short"),
        pytest.param(2, 320, 320 // 64, id="few"),
    ],
)
def test_how_long_a_prompt_delays_others(backend, n_running, n_prompt, n_steps):
    """The rows of a prompt beside decoding requests show in the tokens they get meanwhile."""
    if backend == "numpy":
        pytest.skip("NumPy feeds a prompt whole")
    config = config_of(vocab_size=300, n_positions=2000)
    rng = np.random.default_rng(0)
    n_tokens = [0] * n_running

    def callback_of(i):
        def callback(index, ids):
            n_tokens[i] = len(ids)

        return callback

    with model_on(backend, config, random_weights(config)) as model, Scheduler(model) as scheduler:
        running = [
            scheduler.add([1 + i], max_new_tokens=1900, callback=callback_of(i), draft=None)
            for i in range(n_running)
        ]
        while not all(n_tokens):
            scheduler.add([299], max_new_tokens=1).result()
        found = []
        while not found or (len(found) < 20 and min(found) > n_steps + 2):
            before = n_tokens[0]
            scheduler.add(rng.integers(0, 299, n_prompt).tolist(), max_new_tokens=1).result()
            found.append(n_tokens[0] - before)
        assert not any(handle.done for handle in running)
    # Other steps may run before the prompt begins and after its last step.
    assert n_steps <= min(found) <= n_steps + 2


def test_without_a_thread_nothing_runs_until_a_handle_is_read(model):
    n_calls = 0

    def callback(index, ids):
        nonlocal n_calls
        n_calls += 1

    with Scheduler(model) as scheduler:
        handles = [scheduler.add([1], max_new_tokens=5, callback=callback) for _ in range(3)]
        time.sleep(0.05)
        assert n_calls == 0
        handles[0].result()
        assert n_calls >= 13  # the others run beside the first


def test_with_a_thread_requests_run_by_themselves(model):
    with Scheduler(model, thread=True) as scheduler:
        handle = scheduler.add([1], max_new_tokens=5)
        wait_until(lambda: handle.done)
        wait_until(lambda: not scheduler_threads())


def test_a_deadline_ends_a_request(model, thread):
    with Scheduler(model, thread=thread, max_running=1) as scheduler:
        endless = scheduler.add([1], deadline=60, **ENDLESS)
        queued = scheduler.add([2], deadline=0.1, **ENDLESS)
        late = scheduler.add([2], deadline=0)
        assert queued.result().finish_reason == "time"
        assert queued.result().ids == []
        assert late.result().finish_reason == "time"
        assert not endless.done
        endless.cancel()
        running = scheduler.add([1], deadline=1, **ENDLESS)
        completion = running.result()
        assert completion.finish_reason == "time"
        assert len(completion.ids) > 0


def test_a_timeout_leaves_the_request_running(model, thread):
    with Scheduler(model, thread=thread) as scheduler:
        handle = scheduler.add([1], deadline=0.3, **ENDLESS)
        with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
            handle.result(timeout=0.05)
        assert handle.result().finish_reason == "time"


# ---- ends ----


def test_cancel(model, thread):
    # Only a cancel ends the request that runs, so the others wait until then.
    with Scheduler(model, thread=thread, max_running=1) as scheduler:
        running = scheduler.add([1], **ENDLESS)
        other = scheduler.add([2], max_new_tokens=30)
        queued = scheduler.add([3], logprobs=1)
        queued.cancel()
        events = iter(running)
        first = next(events)
        running.cancel()
        assert queued.result().finish_reason == "cancelled"
        assert queued.result().logprobs == []
        rest = list(events)
        completion = running.result()
        assert completion.finish_reason == "cancelled"
        assert [event.id for event in [first, *rest[:-1]]] == completion.ids
        assert other.result().ids == model.generate([2], max_new_tokens=30)
        running.cancel()  # does nothing
        assert running.result() is completion


def test_cancel_without_a_reader(model):
    """A thread ends the request, although the scheduler has none of its own."""
    with Scheduler(model) as scheduler:
        handle = scheduler.add([1], **ENDLESS)
        next(iter(handle))
        wait_until(lambda: not scheduler_threads())
        assert not handle.done
        handle.cancel()
        wait_until(lambda: handle.done)


def test_a_dropped_handle_cancels_its_request(model):
    lengths = []
    with Scheduler(model, thread=True) as scheduler:
        handle = scheduler.add([1], callback=lambda i, ids: lengths.append(len(ids)), **ENDLESS)
        next(iter(handle))
        del handle
        gc.collect()
        wait_until(lambda: not scheduler_threads())


def test_a_finished_request_keeps_no_cache(backend, thread):
    config = config_of()
    model = model_on(backend, config, random_weights(config), prefix_cache_bytes=0)
    with Scheduler(model, thread=thread) as scheduler:
        handles = [scheduler.add([1, 2], max_new_tokens=5) for _ in range(4)]
        refused = scheduler.add([1], callback=lambda index, ids: 1 / 0)
        for handle in handles:
            handle.result()
        with pytest.raises(ZeroDivisionError) as caught:
            refused.result()
        del caught
        refused = None
        wait_until(lambda: gc.collect() >= 0 and model.kv_cache_bytes == 0)
        assert all(handle.done for handle in handles)


def test_close_cancels(model, thread):
    scheduler = Scheduler(model, thread=thread, max_running=2)
    handles = [scheduler.add(prompt, **ENDLESS) for prompt in prompts(4)]
    next(iter(handles[0]))
    scheduler.close()
    assert not scheduler_threads()
    assert [handle.result().finish_reason for handle in handles] == ["cancelled"] * 4
    with pytest.raises(gpt2c.ClosedError, match="the scheduler was closed"):
        scheduler.add([1])
    scheduler.close()
    model.close()
    assert model.n_bytes == 0


def test_a_reader_that_waits_while_another_thread_closes(model):
    scheduler = Scheduler(model)
    handle = scheduler.add([1], **ENDLESS)
    found = []
    reader = threading.Thread(target=lambda: found.append(handle.result().finish_reason))
    reader.start()
    next(iter(handle))
    scheduler.close()
    reader.join(20)
    assert found == ["cancelled"]


def test_a_closed_model_ends_its_requests(model, thread):
    scheduler = Scheduler(model, thread=thread)
    handles = [scheduler.add(prompt, **ENDLESS) for prompt in prompts(4)]
    next(iter(handles[0]))
    model.close()
    for handle in handles:
        with pytest.raises(gpt2c.ClosedError):
            handle.result()
    with pytest.raises(gpt2c.ClosedError):
        scheduler.add([1])
    scheduler.close()
    wait_until(lambda: model.n_bytes == 0)


def test_an_error_ends_only_its_own_request(model, thread):
    class RefusedError(Exception):
        pass

    def refuse(index, ids):
        if len(ids) == 3:
            raise RefusedError

    with Scheduler(model, thread=thread) as scheduler:
        good = [scheduler.add(prompt, max_new_tokens=8) for prompt in prompts(5)]
        bad = scheduler.add([1], callback=refuse)
        exits = scheduler.add([1], callback=lambda index, ids: sys.exit(3))
        nothing = scheduler.add([1], suppress_tokens=list(range(300)))
        with pytest.raises(RefusedError):
            bad.result()
        tokens = []
        with pytest.raises(RefusedError):
            tokens.extend(bad)
        with pytest.raises(SystemExit):
            exits.result()
        with pytest.raises(gpt2c.OptionError, match="leave no token"):
            nothing.result()
        found = [handle.result().ids for handle in good]
    assert found == [model.generate(prompt, max_new_tokens=8) for prompt in prompts(5)]


def test_a_nan(backend):
    config = config_of()
    weights = random_weights(config)
    weights["wpe.weight"][3] = np.nan
    with Scheduler(model_on(backend, config, weights)) as scheduler:
        handle = scheduler.add([1, 2], max_new_tokens=9)
        short = scheduler.add([1, 2], max_new_tokens=1)
        assert len(short.result().ids) == 1
        with pytest.raises(gpt2c.NumericalError, match="prompt 0: a logit at position"):
            handle.result()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_beams": 2}, gpt2c.OptionTypeError, "add has no option 'num_beams'"),
        ({"num_return_sequences": 2}, gpt2c.OptionTypeError, "has no option"),
        ({"logits_processor": lambda ids, x: x}, gpt2c.OptionError, "add takes no logits_proc"),
        ({"temperature": -1}, gpt2c.OptionError, "temperature is -1"),
        ({"priority": "high"}, gpt2c.OptionTypeError, "priority is 'high'"),
        ({"deadline": -1}, gpt2c.OptionError, "deadline is -1"),
        ({"deadline": math.nan}, gpt2c.OptionError, "deadline is nan"),
        ({"seed": [1, 2], "top_k": 3}, gpt2c.OptionTypeError, "one seed"),
        ({"prompt": [[1], [2]]}, gpt2c.OptionTypeError, "add takes one prompt"),
        ({"prompt": [1] * 100}, gpt2c.ContextError, "100"),
        ({"prompt": [300]}, gpt2c.OptionError, "300"),
    ],
)
def test_add_refuses(model, arguments, error, message):
    with Scheduler(model) as scheduler, pytest.raises(error, match=message):
        scheduler.add(**{"prompt": [1], **arguments})


def test_the_constructor_refuses(model):
    with pytest.raises(gpt2c.OptionTypeError, match=r"it must be a gpt2c\.GPT2"):
        Scheduler("gpt2")
    with pytest.raises(gpt2c.OptionError, match="max_running is 0"):
        Scheduler(model, max_running=0)
    with pytest.raises(gpt2c.OptionTypeError, match="thread is"):
        Scheduler(model, thread="yes")


def test_a_cancelled_task_cancels_its_request(model, thread):
    async def run():
        with Scheduler(model, thread=thread) as scheduler:
            handles = [scheduler.add([1], **ENDLESS) for _ in range(2)]

            async def read():
                async for _ in handles[1]:
                    pass

            async def wait():
                await handles[0]

            for reading in (wait(), read()):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reading, 0.03)
            return [(await handle).finish_reason for handle in handles]

    assert asyncio.run(run()) == ["cancelled"] * 2


def test_a_closed_loop_whose_task_was_waiting(model, thread):
    scheduler = Scheduler(model, thread=thread)
    handle = scheduler.add([1], max_new_tokens=50)
    loop = asyncio.new_event_loop()

    async def read():
        return await handle

    task = loop.create_task(read())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    task._log_destroy_pending = False
    assert handle.result().ids == model.generate([1], max_new_tokens=50)
    scheduler.close()


# ---- forks, interrupts and the end of the process ----


@needs_fork
def test_a_forked_child(model, thread):
    """The child cannot read its parent's handles, but runs requests of its own."""
    expected = model.generate([3, 4], max_new_tokens=12)
    scheduler = Scheduler(model, thread=thread)
    handles = [scheduler.add(prompt, max_new_tokens=40) for prompt in prompts(9)]
    next(iter(handles[0]))
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                handles[1].result()
            except gpt2c.ForkError:
                del handles
                own = [scheduler.add([3, 4], max_new_tokens=12) for _ in range(3)]
                if [handle.result().ids for handle in own] == [expected] * 3:
                    scheduler.close()
                    code = 0
        os._exit(code)
    found = [handle.result().ids for handle in handles]
    assert found == [model.generate(prompt, max_new_tokens=40) for prompt in prompts(9)]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    scheduler.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_ctrl_c_at_any_moment(model, thread):
    """It cancels the request that is read; the others are right."""
    is_reading = False

    def handler(number, frame):
        if is_reading:
            raise KeyboardInterrupt

    n_interrupts = 0
    expected = model.generate([3, 4], max_new_tokens=30)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Scheduler(model, thread=thread) as scheduler:
            for i in range(40):
                read = scheduler.add([1], **ENDLESS)
                other = scheduler.add([3, 4], max_new_tokens=30)
                try:
                    is_reading = True  # before the timer, which a busy machine may make early
                    signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0002 * i)
                    for _ in read:
                        pass
                except KeyboardInterrupt:
                    n_interrupts += 1
                is_reading = False
                read.cancel()
                assert read.result(20).finish_reason == "cancelled"
                assert other.result(20).ids == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_interrupts == 40


def test_ctrl_c_cancels_a_request_that_is_waited_for(model):
    with Scheduler(model) as scheduler:
        handle = scheduler.add([1], **ENDLESS)
        threading.Timer(0.05, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            handle.result()
        assert handle.result(20).finish_reason == "cancelled"


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del scheduler", "del model, scheduler"])
def test_the_process_ends_with_running_requests(start, backend, thread, end):
    name = "numpy" if backend == "numpy" else "c"
    code = textwrap.dedent(f"""
        import sys
        import gpt2c
        model = gpt2c.GPT2.from_pretrained(backend={name!r})
        scheduler = gpt2c.Scheduler(model, thread={thread})
        options = {ENDLESS!r}
        handles = [scheduler.add("Once upon a time", **options) for _ in range(8)]
        next(iter(handles[0]))
        print("running", flush=True)
        {end}
    """)
    process = start([sys.executable, "-c", code], text=True, stdout=-1, stderr=-1)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "running\n", "")


def test_a_request_chooses_its_sample_and_whether_it_has_text(tales):
    options = {"max_new_tokens": 8, "temperature": 0.9, "seed": 3}
    wanted = tales.complete("Once upon a time", num_return_sequences=3, **options)
    ids = tales.tokenizer.encode("Once upon a time")
    with gpt2c.Scheduler(tales, thread=True) as scheduler:
        handles = [scheduler.add(ids, sample=i, has_text=True, **options) for i in range(3)]
        assert [h.result().text for h in handles] == [c.text for c in wanted]
        assert [h.result().sample for h in handles] == [0, 1, 2]
        assert "".join(e.text for e in handles[2]) == wanted[2].text
        without = scheduler.add("Once upon a time", has_text=False, **options).result()
        assert (without.text, without.ids) == (None, wanted[0].ids)
        for name, value in (("sample", -1), ("sample", 2**31), ("has_text", 1)):
            with pytest.raises((ValueError, TypeError), match=name):
                scheduler.add(ids, **{name: value})


def test_requests_of_different_spaces_share_no_prefix(tales, monkeypatch):
    prompt = "Once upon a time there was a king who had three daughters, and they all lived well"
    n = len(tales.tokenizer.encode(prompt))
    lengths = []
    copy_longest = type(tales._prefixes).copy_longest

    def spy(self, ids, longer_than=0, space=0):
        found = copy_longest(self, ids, longer_than, space)
        lengths.append(found.length if found is not None else 0)
        return found

    monkeypatch.setattr(type(tales._prefixes), "copy_longest", spy)
    tales._prefixes.clear()
    with gpt2c.Scheduler(tales) as scheduler:
        for space in (1, 2, 1):
            scheduler.add(prompt, max_new_tokens=2, cache_space=space).result()
        with pytest.raises(ValueError, match="cache_space"):
            scheduler.add(prompt, cache_space=-1)
    assert lengths == [0, 0, n - 1]


def test_text_of_ids_needs_a_tokenizer():
    config = config_of()
    model = model_on("numpy", config, random_weights(config))
    with (
        gpt2c.Scheduler(model) as scheduler,
        pytest.raises(gpt2c.TokenizerError, match="no tokenizer"),
    ):
        scheduler.add([1], has_text=True)


def test_running_and_waiting_requests_are_counted():
    config = config_of(n_positions=4096)
    model = model_on(BACKENDS[-1], config, random_weights(config))
    with gpt2c.Scheduler(model, thread=True, max_running=2) as scheduler:
        assert (scheduler.n_running, scheduler.n_waiting) == (0, 0)
        handles = [scheduler.add([1], max_new_tokens=4000) for _ in range(5)]
        next(iter(handles[0]))
        wait_until(lambda: scheduler.n_running == 2)
        assert scheduler.n_waiting == 3
        handles[4].cancel()
        assert scheduler.n_waiting == 2
        for handle in handles:
            handle.cancel()
        wait_until(lambda: (scheduler.n_running, scheduler.n_waiting) == (0, 0))


# ---- memory ----


@pytest.fixture
def no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 0}], ids=["plain", "echo"])
def test_a_failed_request_frees_its_memory_at_once(backend, no_garbage_collector, options):
    """An error's traceback and the request refer to each other, which only a collection ends."""
    config = config_of(vocab_size=300, n_positions=60)
    weights = random_weights(config)
    weights["wte.weight"][5] = 3e38  # so that a prompt with this id overflows
    model = model_on(backend, config, weights, threads=2)
    with Scheduler(model, thread=True) as scheduler:
        handles = [scheduler.add([1, 5, 2, 3], max_new_tokens=9, **options) for _ in range(3)]
        for handle in handles:
            with pytest.raises(gpt2c.NumericalError):
                handle.result(60)
        assert model.kv_cache_bytes == 0
    del handles


def test_a_failed_callback_frees_its_memory_at_once(model, no_garbage_collector):
    def fail(index, ids):
        raise RuntimeError("on purpose")

    with Scheduler(model, thread=True) as scheduler:
        handle = scheduler.add([1, 2, 3], max_new_tokens=9, callback=fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            handle.result(60)
        assert model.kv_cache_bytes == 0


def test_a_failure_keeps_no_memory_of_other_requests(model, no_garbage_collector):
    """The error's traceback has the frame of the step, which has the jobs of all requests."""

    def fail_last(index, ids):
        if len(ids) == 5:
            raise RuntimeError("on purpose")

    errors = []
    with Scheduler(model, thread=True) as scheduler:
        failing = scheduler.add([4, 5], max_new_tokens=6, callback=fail_last)
        handles = [scheduler.add([1, 2, 3], max_new_tokens=5) for _ in range(8)]
        for handle in handles:
            handle.result(60)
        try:
            failing.result(60)
        except RuntimeError as error:
            errors.append(error)
        wait_until(lambda: model.kv_cache_bytes == 0)
    (error,) = errors
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert [f.f_locals["ids"] for f in frames if f.f_code.co_name == "fail_last"] != []


def test_requests_with_deadlines_are_forgotten_when_they_end(model, no_garbage_collector):
    with Scheduler(model, thread=True) as scheduler:
        for _ in range(200):
            scheduler.add([1, 2, 3], max_new_tokens=1, deadline=1000).result(60)
        assert len(scheduler._runner._deadlines) < 40
        late = scheduler.add([1, 2, 3], deadline=0.01, **ENDLESS)
        assert late.result(60).finish_reason == "time"
