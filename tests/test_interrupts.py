"""Ctrl-C at any moment: the signal handler's exception is raised, and weights are freed.

The handler counts its runs; the caller must see an exception for each. tools/soak/interrupts.py
runs the same checks for hours.
"""

from __future__ import annotations

import _thread
import gc
import operator
import signal
import subprocess
import sys
import threading
import time
import traceback
from functools import partial

import numpy as np
import pytest
from conftest import ISAS, ROOT, config_of, model_on, needs_engine, random_weights

import gpt2c
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import from_arrays
from gpt2c.weights.checkpoint.shared.views import WholeReadSource

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no SIGALRM here")


def fail_interrupted(*given):
    """Interrupt and then fail, as an edit or a processor might, all within one call of C code."""
    return list(map(_thread.interrupt_main, [signal.SIGALRM, "not a number"]))


@pytest.fixture
def model(backend):
    config = config_of()
    return model_on(backend, config, random_weights(config), threads=2)


@pytest.fixture
def handler_runs():
    """Install a handler that raises KeyboardInterrupt; record its runs."""
    runs = []

    def handler(number, frame):
        runs.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    yield runs
    signal.signal(signal.SIGALRM, before)


def is_interrupted(call, *errors):
    """Return whether KeyboardInterrupt is raised by a failing call or just after it."""
    try:
        try:
            call()
        except errors:
            for _ in range(100):
                pass
    except KeyboardInterrupt:
        return True
    return False


# ---- lost interrupts ----


def failing_calls(model):
    """Return functions of _engine by name, with arguments that they refuse."""
    engine = model._engine
    none = np.array([], dtype=np.int32)
    rows = np.zeros((1, 1), np.float32)
    sequence = engine.sequence()
    return {
        "score": partial(engine.score, [], [], [], 0),
        "log_probs": partial(engine.log_probs, [], none),
        "load": partial(engine.load, "no such", rows, 0),
        "read": partial(engine.read, "no such", rows, 0),
        "forward": partial(engine.forward, none, [], np.zeros(0, bool), None),
        "run": partial(engine.run, [None], 1),
        "job": partial(engine.job, none, 1, None, 0, 0, none),
        "feed": partial(sequence.feed, none, 1),
        "truncate": partial(sequence.truncate, 9),
        "sequence": partial(type(sequence), None),
    }


FAILING = ["score", "log_probs", "load", "read", "forward", "run", "job", "feed", "truncate",
           "sequence"]  # fmt: skip


@needs_engine
@needs_signals
@pytest.mark.parametrize("name", FAILING)
def test_an_interrupt_just_before_the_engine_raises(name, handler_runs):
    config = config_of()
    call = failing_calls(model_on(ISAS[-1], config, random_weights(config)))[name]
    calls = map(operator.call, [partial(_thread.interrupt_main, signal.SIGALRM), call])
    assert is_interrupted(partial(list, calls), gpt2c.Error, TypeError, KeyError)
    assert len(handler_runs) == 1


@needs_signals
@pytest.mark.parametrize("point", ["embed", "h.0.q", "h.1.probs", "logits"])
def test_an_interrupt_just_before_an_edit_fails(model, point, handler_runs):
    call = partial(model.forward, [1, 2, 3], edit={point: fail_interrupted})
    assert is_interrupted(call, TypeError)
    assert len(handler_runs) == 1


@needs_signals
def test_an_interrupt_just_before_a_processor_fails(model, handler_runs):
    call = partial(model.generate, [1, 2], max_new_tokens=3, logits_processor=fail_interrupted)
    assert is_interrupted(call, TypeError)
    assert len(handler_runs) == 1


@needs_engine
def test_an_error_of_the_engine_has_a_traceback():
    """Cython's `except` needs a traceback, and Cython's own would lose interrupts."""
    config = config_of()
    engine = model_on(ISAS[-1], config, random_weights(config))._engine
    with pytest.raises(gpt2c.OptionError) as caught:
        engine.score([], [], [], 0)
    entries = traceback.extract_tb(caught.value.__traceback__)
    assert entries[-1].filename == "<gpt2c.engine._engine>"


# ---- weights are freed after interrupted calls ----


def drop(model):
    hold = model._engine.held()
    hold.__enter__()
    del hold


def leave(model):
    with model._engine.held(), model._engine.held():
        pass


def interrupt_after_enter(model):
    """Interrupt between __enter__ and the block, as a debugger or profiler can."""

    def profile(frame, event, argument):
        code = frame.f_code if event == "return" else None
        if event == "c_return" and getattr(argument, "__name__", "") == "__enter__":
            raise KeyboardInterrupt
        if code is not None and code.co_name == "__enter__":
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        with model._engine.held():
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)


def interrupt_before_enter(model):
    try:
        with model._engine.held():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


@pytest.mark.parametrize("end", [drop, leave, interrupt_after_enter, interrupt_before_enter])
def test_close_frees_the_weights_after_a_hold_ended_in_any_way(model, end):
    end(model)
    model.close()
    gc.collect()
    assert model.n_bytes == 0


def test_close_frees_the_weights_when_the_last_hold_ends(model):
    n_bytes = model.n_bytes
    with model._engine.held():
        model.close()
        assert model.n_bytes == n_bytes > 0
        with model._engine.held():  # in the same thread
            pass
        assert model.n_bytes == n_bytes
        errors = []

        def other():
            try:
                with model._engine.held():
                    pass
            except gpt2c.ClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(errors) == 1
    assert model.n_bytes == 0


@needs_signals
def test_an_interrupt_while_a_model_is_loaded(backend, handler_runs):
    """The interrupt ends all loading threads, whichever of them waits."""
    config = config_of()
    weights = random_weights(config)
    checkpoint = from_arrays(config, weights)
    n_threads = len(sys._current_frames())

    def make():
        _thread.interrupt_main(signal.SIGALRM)
        return weights["wte.weight"]

    tensors = {**checkpoint.tensors}
    tensors["wte.weight"] = WholeReadSource("wte.weight", weights["wte.weight"].shape, "F32", make)
    slow = type(checkpoint)(config, tensors)
    with pytest.raises(KeyboardInterrupt):
        model_on_checkpoint(slow, backend)
    deadline = time.monotonic() + 10
    while len(sys._current_frames()) > n_threads and time.monotonic() < deadline:
        time.sleep(0.01)  # the frames of a finished thread disappear a moment later
    assert len(sys._current_frames()) == n_threads
    assert len(handler_runs) == 1


def model_on_checkpoint(checkpoint, backend):
    kind = "numpy" if backend == "numpy" else "c"
    return gpt2c.GPT2(checkpoint, MissingTokenizer("a test"), backend=kind, threads=3)


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_the_error_names_the_first_failing_tensor(n_threads):
    config = config_of()
    weights = random_weights(config)

    def failing(name):
        def make():
            raise gpt2c.CheckpointError(name)

        return WholeReadSource(name, weights[name].shape, "F32", make)

    tensors = {**from_arrays(config, weights).tensors}
    names = list(tensors)
    for name in (names[2], names[3], names[-1]):
        tensors[name] = failing(name)
    checkpoint = type(from_arrays(config, weights))(config, tensors)
    with pytest.raises(gpt2c.CheckpointError) as caught:
        gpt2c.GPT2(checkpoint, None, backend="numpy", threads=n_threads)
    assert str(caught.value) == names[2]


@needs_signals
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_interrupts_at_random():
    """Run the soak test for a few seconds."""
    script = ROOT / "tools/soak/interrupts.py"
    done = subprocess.run(
        [sys.executable, script, "--seconds", "12", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numpy:" in done.stdout
