"""Behaviour of a well-behaved library: Ctrl-C, memory errors, the GIL, fork and threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ISAS, config_of, in_threads, model_on, needs_engine, random_weights

import gpt2c

pytestmark = needs_engine

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

# A model whose calls take long: 32 blocks, 16,384 positions.
PRELUDE = """
import sys
sys.path.insert(0, {tests!r})
from conftest import *
import gpt2c
config = config_of(n_embd=128, n_head=2, n_layer=32, n_positions=16384)
model = model_on(ISAS[-1], config, random_weights(config))
"""


def program(code: str) -> list[str]:
    prelude = PRELUDE.format(tests=os.path.dirname(__file__))
    return [sys.executable, "-c", prelude + code]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no signals here")
@pytest.mark.parametrize(
    "call",
    [
        "model.generate([1], max_new_tokens=16000)",
        "model.generate([[1], [2, 3]], max_new_tokens=16000)",
        "model.logits([1] * 16384)",
        "list(model.stream([1], max_new_tokens=16000))",
    ],
)
def test_ctrl_c_ends_a_call_and_leaves_the_model_usable(call, start):
    code = f"""
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    session = model.session()
    session.feed([1, 2, 3])
    print("interrupted", len(model.generate([1], max_new_tokens=2)), flush=True)
"""
    process = start(program(code), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("interrupted 2\n", 0)


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer reserves more memory")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
def test_running_out_of_memory_is_an_error_that_frees_memory():
    # 32 blocks of 128 dimensions: 2 MB per page, 537 MB for a full context.
    code = """
import resource
model.generate([1], max_new_tokens=2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, -1))
session = model.session()
before = session.feed([5, 6, 7])
for _ in range(3):
    try:
        session.feed([1] * 16000)
    except MemoryError as error:
        assert isinstance(error, gpt2c.CacheMemoryError), error
        print("memory")
    assert session.ids == [5, 6, 7]
again = model.session().feed([5, 6, 7])
print((before == again).all(), len(model.generate([1] * 300, max_new_tokens=5)))
"""
    done = subprocess.run(program(code), capture_output=True, text=True, check=False)
    assert done.stdout == "memory\nmemory\nmemory\nTrue 5\n", done.stderr


def test_other_threads_run_while_the_engine_runs():
    config = config_of(n_embd=256, n_head=4, n_layer=8, n_positions=256)
    model = model_on(ISAS[-1], config, random_weights(config))
    inside = threading.Event()
    beats = []

    def work():
        inside.set()
        for _ in range(3):
            model.logits([1] * 256)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    while thread.is_alive():
        beats.append(time.perf_counter())
        time.sleep(0.001)
    # If the engine held the GIL, there would be only one or two beats per call.
    assert len(beats) > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads of other tests
def test_a_forked_child_generates():
    config = config_of()
    model = model_on(ISAS[-1], config, random_weights(config))
    expected = model.generate([1, 2], max_new_tokens=5)
    child = os.fork()
    if child == 0:
        os._exit(0 if model.generate([1, 2], max_new_tokens=5) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert model.generate([1, 2], max_new_tokens=5) == expected


def test_a_session_in_use_by_another_thread_is_refused():
    config = config_of(n_embd=256, n_head=4, n_layer=8, n_positions=256)
    model = model_on(ISAS[-1], config, random_weights(config))
    session = model.session()
    outcomes = []

    def work(_):
        try:
            session.feed([1] * 120)
            outcomes.append("fed")
        except gpt2c.OptionError as error:
            assert "in use by another thread" in str(error)  # noqa: PT017
            outcomes.append("refused")

    in_threads(work, range(2))
    assert "fed" in outcomes
    assert len(session) == 120 * outcomes.count("fed")
