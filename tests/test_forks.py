"""Forked children. They have neither the pool's workers nor the threads that held locks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Lock, RLock

import numpy as np
import pytest
from conftest import ROOT, config_of, model_on, random_weights

import gpt2c
from gpt2c.forks import ProcessLock
from gpt2c.weights.checkpoint.shared.views import WholeReadSource

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # fork with threads
]

SECONDS = 60  # a child that runs longer counts as hung

# AddressSanitizer of gcc 12 does nothing about its locks at a fork. If another thread is in malloc
# or free, or is starting or ending, a child may copy a lock that is held, and wait for it forever.
# The C library's malloc is safe.
HAS_ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")
busy_threads = pytest.mark.skipif(
    HAS_ASAN, reason="a child may copy a lock of AddressSanitizer that a busy thread holds"
)


def others_sleep() -> bool:
    """Whether all other threads of this process sleep, on Linux."""
    try:
        for task in Path("/proc/self/task").iterdir():
            state = (task / "stat").read_text().rpartition(") ")[2][0]
            if int(task.name) != threading.get_native_id() and state != "S":
                return False
    except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
        return False
    return True


def fork() -> int:
    """Fork; under AddressSanitizer, wait until no other thread can hold one of its locks.

    The threads that loaded a model may still be ending during its first calls. A thread that holds
    such a lock runs, or waits for memory: it does not sleep.
    """
    end = time.monotonic() + SECONDS
    n_quiet = 0
    # Looking lets a thread run that waited for the interpreter, so one look is not enough.
    while HAS_ASAN and n_quiet < 2:
        assert time.monotonic() < end, "another thread of this process never sleeps"
        time.sleep(1e-3)
        n_quiet = n_quiet + 1 if others_sleep() else 0
    return os.fork()


def exit_child(check: Callable[[], None]) -> None:
    """End a forked child, with status 0 if the check passes."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    try:
        check()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def in_child(check: Callable[[], None]) -> None:
    """Fork a child here and assert that the check passes in it."""
    child = fork()
    if child == 0:
        exit_child(check)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(params=[1, 2, 3])
def model(backend, request):
    config = config_of()
    return model_on(backend, config, random_weights(config), threads=request.param)


# ---- the pool ----


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="compiles Linux's files")
@pytest.mark.parametrize("sleep", ["futex", "condition"])  # macOS sleeps by condition
def test_a_fork_during_the_first_call_of_the_pool(tmp_path, sleep):
    program = tmp_path / "pool_forks"
    core = ("pool", "crowding", "os/posix", "os/linux", f"os/{sleep}")
    sources = [ROOT / "tests/c/pool_forks.c", *(ROOT / f"csrc/{name}.c" for name in core)]
    subprocess.run(
        ["cc", "-std=c11", "-O1", "-pthread", "-I", ROOT / "csrc", *sources, "-o", program],
        check=True,
    )
    # When the fork handler was registered under the pool's lock, a sixth of these children hung.
    # LD_PRELOAD is unset, because these children are forked while other threads start.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    command = [program, "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "0 of 100 children hung\n"


# ---- a call that forks ----


@pytest.mark.parametrize("point", ["embed", "h.0.q", "h.1.probs", "logits"])
def test_a_child_forked_in_an_edit_that_returns(model, point):
    expected = model.forward([1, 2, 3], capture="logits")["logits"]
    child = None

    def edit(x):
        nonlocal child
        if child is None:
            child = fork()
        return x

    try:
        logits = model.forward([1, 2, 3], capture="logits", edit={point: edit})["logits"]
    except gpt2c.ForkError as error:
        assert child == 0, "only the child may fail"
        assert "forked in the middle of a forward call" in str(error)  # noqa: PT017
        logits = None
    if child == 0:

        def check():
            # A call that uses one thread completes in the child too.
            assert logits is not None or model.threads > 1
            assert logits is None or np.array_equal(logits, expected)
            assert np.array_equal(model.forward([1, 2, 3], capture="logits")["logits"], expected)
            model.close()
            assert model.n_bytes == 0

        exit_child(check)
    assert np.array_equal(logits, expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_forked_in_an_edit_that_raises(model):
    class MineError(Exception):
        pass

    child = None

    def edit(x):
        nonlocal child
        child = fork()
        if child == 0:
            raise MineError
        return x

    try:
        model.forward([1, 2, 3], edit={"h.0.q": edit})
        caught = None
    except MineError as error:
        caught = error
    if child == 0:
        exit_child(lambda: None if caught else os._exit(2))
    assert caught is None
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_forked_in_an_edit_can_call_the_model_there(model):
    expected = model.generate([1, 2], max_new_tokens=4)

    def check():
        assert model.generate([1, 2], max_new_tokens=4) == expected
        assert model.forward([1, 2], capture="logits")["logits"].shape == (2, 50)

    def edit(x):
        in_child(check)
        return x

    model.forward([1, 2, 3], edit={"h.1.mlp_act": edit})
    check()


def test_a_signal_handler_that_forks_in_a_forward_call(model):
    """PyErr_CheckSignals runs the handler while the call's other threads wait."""
    children = []

    def handler(number, frame):
        children.append(fork())

    def edit(x):
        signal.raise_signal(signal.SIGALRM)
        return x

    before = signal.signal(signal.SIGALRM, handler)
    try:
        model.forward([1, 2, 3], edit={"h.0.q": edit})
        is_done = True
    except gpt2c.ForkError:
        is_done = False
    if children == [0]:
        exit_child(lambda: None if is_done or model.threads > 1 else os._exit(2))
    signal.signal(signal.SIGALRM, before)
    assert is_done
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


@pytest.mark.parametrize("option", ["logits_processor", "callback"])
def test_a_child_forked_in_a_callback_continues(model, option):
    expected = model.generate([1, 2], max_new_tokens=4)
    child = None

    def called(*given):
        nonlocal child
        if child is None:
            child = fork()
        return given[1] if option == "logits_processor" else None

    ids = model.generate([1, 2], max_new_tokens=4, **{option: called})
    if child == 0:
        exit_child(lambda: None if ids == expected else os._exit(2))
    assert ids == expected
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- locks and work of other threads at the fork ----


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_a_lock_that_another_thread_holds_is_free_in_a_child(kind):
    locks = ProcessLock(kind)
    taken, go_on = threading.Event(), threading.Event()

    def hold():
        with locks.lock:
            taken.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()

    def check():
        lock = locks.lock
        assert lock.acquire(timeout=0)
        lock.release()
        in_child(lambda: os._exit(0 if locks.lock.acquire(timeout=0) else 3))
        assert locks.lock is lock

    in_child(check)
    assert kind is not Lock or not locks.lock.acquire(blocking=False)  # still held in the parent
    go_on.set()
    thread.join()


def test_a_tensor_that_another_thread_makes_can_be_read_in_a_child():
    making, go_on = threading.Event(), threading.Event()

    def make():
        if threading.current_thread() is thread:
            making.set()
            go_on.wait()
        return np.ones((4, 2), dtype=np.float32)

    source = WholeReadSource("wte", (4, 2), "F32", make)
    thread = threading.Thread(target=lambda: source.read(0, 4))
    thread.start()
    making.wait()
    in_child(lambda: None if source.read(0, 4).sum() == 8 else os._exit(2))
    go_on.set()
    thread.join()


@busy_threads
def test_forks_while_other_threads_are_in_calls(backend):
    """Whatever other threads do, the child's calls run and its close() frees the weights."""
    config = config_of()
    model = model_on(backend, config, random_weights(config), threads=2)
    session = model.session()
    logits = model.session().feed([1, 2, 3])
    is_done = False

    def probe():
        while not is_done:
            model.forward([1, 2, 3], capture="embed", edit={"embed": lambda x: x})

    def feed():
        while not is_done:
            session.feed([1, 2, 3])
            session.rollback(3)

    def check():
        assert np.array_equal(model.forward([1, 2, 3], capture="logits")["logits"][-1], logits) or (
            backend == "numpy"
        )
        assert session.ids in ([], [1, 2, 3])
        session.rollback(len(session))
        np.testing.assert_allclose(session.feed([1, 2, 3]), logits, atol=1e-4)
        model.close()
        # NumPy's weights stay referenced by the frames of threads that the child lacks.
        assert backend == "numpy" or model.n_bytes == 0

    threads = [threading.Thread(target=probe), threading.Thread(target=feed)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            in_child(check)
    finally:
        is_done = True
        for thread in threads:
            thread.join()


@busy_threads
def test_a_session_in_use_by_a_thread_of_the_parent_is_free_in_a_child(backend):
    if backend == "numpy":
        # Products so small that OpenBLAS computes them on one thread: its own fork handler can wait
        # forever for threads that are in a product.
        config = config_of(n_embd=16, n_head=4, n_layer=100, n_positions=128)
    else:
        config = config_of(n_embd=256, n_head=4, n_layer=8, n_positions=512)
    model = model_on(backend, config, random_weights(config), threads=2)
    session = model.session()
    inside = threading.Event()

    def work():
        inside.set()
        session.feed([1] * config.n_positions)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    while not session._fed:  # ids are recorded just before the engine gets them
        pass

    def check():
        session.rollback(len(session))
        session.feed([2] * 20)
        assert session.ids == [2] * 20

    in_child(check)
    thread.join()
    assert len(session) == config.n_positions
