"""Threads that use one model at the same moment, with or without the GIL.

On free-threaded Python these races end in crashes and wrong counts if a critical section is missing
in the compiled engine; with the GIL, few of them can occur.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from conftest import ISAS, cases, config_of, model_on, needs_engine, random_weights

import gpt2c
from gpt2c import ClosedError, OptionError, Scheduler

pytestmark = needs_engine

N_THREADS = 8
CONFIG = config_of(n_embd=16, n_head=2)
WEIGHTS = random_weights(CONFIG)


def new_model() -> gpt2c.GPT2:
    return model_on(ISAS[-1], CONFIG, WEIGHTS, threads=1, prefix_cache_bytes=1 << 20)


def at_once(functions: list[Callable[[], object]]) -> list[object]:
    """Call each function in a thread of its own, all at one moment.

    Return what each one returns, or its exception.
    """
    barrier, found = threading.Barrier(len(functions)), [None] * len(functions)

    def call(i: int) -> None:
        barrier.wait()
        try:
            found[i] = functions[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    return found


CALLS: list[Callable[[gpt2c.GPT2], object]] = [
    lambda m: m.generate([1, 2, 3], max_new_tokens=6),
    lambda m: m.generate([4, 5], max_new_tokens=8, draft="lookup"),
    lambda m: list(m.stream([6], max_new_tokens=4)),
    lambda m: m.score([1, 2, 3, 4]).logprobs[1:].tolist(),
    lambda m: m.forward([1, 2, 3], positions=-1)["logits"].tolist(),
    lambda m: m.logits([7, 8]).tolist(),
    lambda m: m.generate([9], max_new_tokens=3, num_beams=2),
    lambda m: m.session().copy().feed([1, 2]).tolist(),
]


def test_first_calls_of_a_model_at_once():
    with new_model() as model:
        alone = [call(model) for call in CALLS]
    for _ in range(cases(30)):
        with new_model() as model:
            assert at_once([lambda c=call: c(model) for call in CALLS]) == alone


def test_close_during_calls():
    with new_model() as model:
        alone = [call(model) for call in CALLS]
    rng = random.Random(0)
    for _ in range(cases(60)):
        model = new_model()
        n = rng.randrange(len(CALLS))

        def look(model=model) -> None:
            engine = model._engine
            for _ in range(200):
                assert engine.n_bytes >= 0
                assert engine.cache_bytes >= 0
                assert engine.cache_limit >= 0

        calls = [lambda c=call, m=model: c(m) for call in CALLS]
        *found, _, seen = at_once([*calls, model.close, look])
        assert seen is None
        for result, expected in zip(found, alone, strict=True):
            assert isinstance(result, ClosedError) or result == expected
        assert model.n_bytes == 0
        with pytest.raises(ClosedError):
            CALLS[n](model)


def test_one_sequence_belongs_to_one_call_at_a_time():
    with new_model() as model:
        for _ in range(cases(100)):
            sequence = model._engine.sequence()
            ids = np.array([1, 2, 3], dtype=np.int32)
            found = at_once([lambda s=sequence, i=ids: len(s.feed(i, 1))] * N_THREADS)
            refused = [each for each in found if isinstance(each, OptionError)]
            assert len(refused) + found.count(1) == N_THREADS
            assert sequence.length == 3 * found.count(1)


def test_requests_from_many_threads_end_once():
    with new_model() as model, Scheduler(model) as scheduler:
        expected = [model.generate([n], max_new_tokens=5) for n in range(N_THREADS)]

        def ask(n: int) -> None:
            rng = random.Random(n)
            for _ in range(cases(40)):
                handle = scheduler.add([n], max_new_tokens=5, priority=rng.randrange(3))
                if rng.random() < 0.3:
                    handle.cancel()
                    assert handle.result(60).finish_reason in ("cancelled", "length")
                else:
                    assert handle.result(60).ids == expected[n]

        assert at_once([lambda n=n: ask(n) for n in range(N_THREADS)]) == [None] * N_THREADS


def test_drafts_pack_the_weights_once():
    with new_model() as model:
        expected = model.generate([1, 2, 3], max_new_tokens=20)
    for _ in range(cases(20)):
        with new_model() as model:
            calls = [lambda m=model: m.generate([1, 2, 3], max_new_tokens=20, draft="packing")]
            assert at_once(calls * N_THREADS) == [expected] * N_THREADS


def test_close_while_other_threads_begin_and_end_calls():
    for _ in range(cases(60)):
        model = new_model()

        def hold(model=model) -> None:
            with suppress(ClosedError):
                while True:
                    with model._engine.held():
                        assert model._engine.n_bytes > 0

        assert at_once([hold, hold, hold, model.close]) == [None] * 4
        assert model.n_bytes == 0
