"""Threads: equal bits on any number of them, how many are used, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ISAS, cases, config_of, in_threads, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c import GPT2
from gpt2c.engine.threads import choose_threads


@needs_engine
@settings(max_examples=cases(30))
@given(
    n_head=st.integers(1, 5),
    head_dim=st.sampled_from([3, 16, 32, 64, 80]),
    n_layer=st.integers(0, 3),
    vocab_size=st.sampled_from([1, 65, 200, 500]),
    n_tokens=st.integers(1, 130),
    tied=st.booleans(),
    isa=st.sampled_from(ISAS or ["none"]),
)
def test_same_bits_on_any_number_of_threads(
    n_head, head_dim, n_layer, vocab_size, n_tokens, tied, isa
):
    config = config_of(
        n_embd=n_head * head_dim, n_head=n_head, n_layer=n_layer, vocab_size=vocab_size,
        n_positions=130, tie_word_embeddings=tied,
    )  # fmt: skip
    weights = random_weights(config)
    ids = np.random.default_rng(0).integers(0, vocab_size, n_tokens)
    alone = model_on(isa, config, weights, threads=1)
    expected = alone.logits(ids)
    new = alone.generate(ids, max_new_tokens=8)
    for threads in (2, 3, 7):
        model = model_on(isa, config, weights, threads=threads)
        assert model.threads == threads
        np.testing.assert_array_equal(model.logits(ids), expected)
        assert model.generate(ids, max_new_tokens=8) == new


@needs_engine
def test_same_bits_on_a_real_model():
    text = "Once upon a time there was a king who had three daughters, and"
    expected = GPT2.from_pretrained(threads=1).logits(text)
    for threads in (2, 3, 7):
        model = GPT2.from_pretrained(threads=threads)
        np.testing.assert_array_equal(model.logits(text), expected)
        session = model.session()
        for i, token in enumerate(model.tokenizer.encode(text)):
            np.testing.assert_array_equal(session.feed(token), expected[i])


@needs_engine
def test_calls_from_several_threads_share_the_workers():
    config = config_of(n_embd=64, n_head=4, n_positions=130)
    model = model_on(ISAS[-1], config, random_weights(config), threads=3)
    prompts = [[i, i + 1] for i in range(6)]
    expected = [model.generate(p, max_new_tokens=60) for p in prompts]
    wrong = []

    def work(i):
        for _ in range(5):
            if model.generate(prompts[i], max_new_tokens=60) != expected[i]:
                wrong.append(i)

    in_threads(work, range(6))
    assert wrong == []


def n_tasks() -> int:
    """Count threads once the count is stable: joined threads stay visible for a moment."""
    counts = [len(os.listdir("/proc/self/task"))]
    while len(counts) < 4 or len(set(counts[-4:])) > 1:
        time.sleep(0.05)
        counts.append(len(os.listdir("/proc/self/task")))
    return counts[-1]


@needs_engine
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_workers_are_reused():
    config = config_of()
    weights = random_weights(config)
    model_on(ISAS[-1], config, weights, threads=4).logits([1, 2, 3])
    before = n_tasks()
    for _ in range(20):
        with model_on(ISAS[-1], config, weights, threads=4) as model:
            model.generate([1, 2], max_new_tokens=5)
            with pytest.raises(gpt2c.Error):
                model.generate([1, 2], top_k=-1)
    assert n_tasks() == before


@needs_engine
def test_idle_workers_sleep():
    config = config_of()
    model = model_on(ISAS[-1], config, random_weights(config), threads=4)
    model.generate([1, 2], max_new_tokens=20)
    time.sleep(0.05)  # workers spin for 50 microseconds
    before = time.process_time()
    time.sleep(0.5)
    # Three spinning workers would have used 0.5 seconds or more.
    assert time.process_time() - before < 0.1


@needs_engine
def test_the_process_exits_while_workers_wait():
    program = (
        "import gpt2c; m = gpt2c.GPT2.from_pretrained(threads=4); m.generate('Once');"
        "s = m.stream('Once', max_new_tokens=400); next(s)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0


@needs_engine
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("n_cpus", [1, 2])
def test_no_more_threads_than_cpus(n_cpus):
    cpus = sorted(os.sched_getaffinity(0))[:n_cpus]
    program = (
        f"import os; os.sched_setaffinity(0, {cpus}); import gpt2c, numpy, tiktoken\n"
        # ThreadSanitizer starts its own thread together with the first one.
        "import threading, time; threading.Thread(target=int).start(); time.sleep(0.5)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "m = gpt2c.GPT2.from_pretrained(threads=8)\n"
        "m.generate(['Once', 'Two'], max_new_tokens=20)\n"
        "print(m.threads, len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, check=True, capture_output=True, text=True
    )
    n_threads, n_started = map(int, done.stdout.split())
    assert n_threads == 8
    assert n_started == len(cpus) - 1


# ---- on a crowded machine ----


def reports(n: int, lost: float, begin: float = 0.0, cpu: float = 1.0):
    """Return reports of n calls of 4 ms on two threads that lost a share of their time."""
    return [
        (2, 0, begin + 0.004 * i, begin + 0.004 * (i + 1), 0.004 * cpu, 0.004 * lost)
        for i in range(n)
    ]


@needs_engine
def test_a_quiet_machine_uses_all_workers():
    from gpt2c.engine._engine import learn_crowding

    assert learn_crowding(reports(50, lost=0.0, cpu=2.0), 0.2, 1) == (0, False)
    assert learn_crowding(reports(50, lost=0.1, cpu=1.9), 0.2, 1) == (0, False)


@needs_engine
def test_one_late_thread_leaves_no_worker_idle():
    from gpt2c.engine._engine import learn_crowding

    assert learn_crowding(reports(1, lost=0.9), 0.004, 1) == (0, False)
    twice = reports(1, lost=0.9) + reports(1, lost=0.9, begin=10.0)
    assert learn_crowding(twice, 10.004, 1) == (0, False)


@needs_engine
def test_a_crowded_machine_leaves_workers_idle_for_a_while():
    from gpt2c.engine._engine import learn_crowding

    crowded = reports(2, lost=0.6)
    assert learn_crowding(crowded, 0.008, 1) == (1, True)
    assert learn_crowding(crowded, 0.008, 0) == (0, True)
    assert learn_crowding(crowded, 0.008 + 0.5, 1) == (0, True)  # the back-off is over
    # On a quiet machine a few calls are enough to use all threads again.
    after = crowded + reports(20, lost=0.0, begin=0.6, cpu=2.0)
    assert learn_crowding(after, 0.68, 1) == (0, False)


@needs_engine
def test_no_worker_is_idle_if_one_thread_gets_less_cpu_time_than_two():
    from gpt2c.engine._engine import learn_crowding

    alone = [(1, 1, 0.009, 0.013, 0.0024, 0.0016)]  # 60 % of a CPU, with two busy processes
    assert learn_crowding(reports(2, lost=0.6, cpu=0.8) + alone, 0.0131, 1) == (0, True)
    assert learn_crowding(reports(2, lost=0.6, cpu=0.5) + alone, 0.0131, 1)[1] is True


@needs_engine
def test_more_workers_are_idle_until_it_helps():
    from gpt2c.engine._engine import learn_crowding

    eight = [(8, 0, 0.01 * i, 0.01 * (i + 1), 0.04, 0.006) for i in range(2)]
    assert learn_crowding(eight, 0.02, 7)[0] == 1
    seven = [(7, 1, 0.0200, 0.0209, 0.0045, 0.0006)]
    assert learn_crowding(eight + seven, 0.0209, 7)[0] == 2


# ---- the number of threads ----


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that writes the files describing a machine with 8 usable CPUs."""
    monkeypatch.delenv("GPT2C_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")  # others report their own CPUs

    def describe(files: dict[str, str]):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return describe


def siblings(pairs: list[str]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text + "\n"
        for cpu, text in enumerate(pairs)
    }


def test_affinity_bounds_threads(machine, monkeypatch):
    root = machine({})
    assert choose_threads(root=root)[0] == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    n, why = choose_threads(root=root)
    assert n == 2
    assert "may use" in why


def test_physical_cores_bound_threads(machine):
    root = machine(siblings(["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"]))
    n, why = choose_threads(root=root)
    assert n == 4
    assert "physical cores" in why


@needs_engine
@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ((8, 8, 6, 0.0), (6, "performance cores that this process may use")),
        ((8, 4, 6, 0.0), (4, "physical cores that this process may use")),
        ((8, 8, 0, 2.5), (2, "the job object's quota of 2.5 CPUs")),
        ((8, 8, 0, 0.5), (1, "the job object's quota of 0.5 CPUs")),
        ((0, 0, 0, 0.0), (8, "CPUs that this process may use")),
    ],
)
def test_what_macos_and_windows_report_bounds_threads(machine, monkeypatch, reported, expected):
    from gpt2c.engine import _engine

    root = machine({})
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(_engine, "reported_cpus", lambda: reported)
    assert choose_threads(root=root) == expected


@needs_engine
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity mask")
def test_the_engine_counts_the_cpus_of_the_affinity_mask():
    from gpt2c.engine import _engine

    allowed = os.sched_getaffinity(0)
    assert _engine.reported_cpus()[0] == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert _engine.reported_cpus()[0] == 1
    finally:
        os.sched_setaffinity(0, allowed)


@needs_engine
def test_reported_cpus_replace_the_affinity_mask(machine, monkeypatch):
    from gpt2c.engine import _engine

    root = machine({})
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(_engine, "reported_cpus", lambda: (3, 0, 0, 0.0))
    assert choose_threads(root=root) == (3, "CPUs that this process may use")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, 8),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_the_control_groups_quota_bounds_threads(machine, files, expected):
    n, why = choose_threads(root=machine(files))
    assert n == expected
    if expected < 8:
        assert "quota" in why


def test_a_requested_number_takes_precedence(machine, monkeypatch):
    root = machine({"sys/fs/cgroup/cpu.max": "100000 100000\n"})
    assert choose_threads(3, root)[0] == 3
    monkeypatch.setenv("GPT2C_THREADS", "5")
    assert choose_threads(root=root) == (5, "asked for by GPT2C_THREADS")
    assert choose_threads(3, root) == (3, "asked for by threads=")


# Results of omp_get_max_threads in GCC 12.2's libgomp; None where it warns "Invalid value".
OPENMP = {
    "4": 4, "4,2": 4, " 3 ": 3, "2, 5": 2, "3 ,1": 3, "+2": 2, "1,2,3,4": 1, "0": None, "-1": None,
    "x": None, "4,x": None, "4,0": None, "4,": None, "1.5": None, "": None, "3 2": None,
    "99999999999999999999": None, "7;": None, "0x3": None, "٣": None,
}  # fmt: skip


@pytest.mark.parametrize("value", OPENMP)
def test_omp_num_threads_is_used(machine, monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    n, why = choose_threads(root=machine({}))
    if OPENMP[value] is None:
        assert (n, why) == (8, "CPUs that this process may use")
    else:
        assert (n, why) == (OPENMP[value], "asked for by OMP_NUM_THREADS")
    assert choose_threads(5)[0] == 5
    monkeypatch.setenv("GPT2C_THREADS", "6")
    assert choose_threads() == (6, "asked for by GPT2C_THREADS")


def test_omp_num_threads_is_limited_to_256(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "300")
    assert choose_threads(root=machine({}))[0] == 256


def test_bad_numbers_of_threads(monkeypatch):
    for bad in (0, -1, 257):
        with pytest.raises(gpt2c.OptionError, match=f"threads is {bad}"):
            choose_threads(bad)
    for bad in (True, 1.5, "2"):
        with pytest.raises(gpt2c.OptionTypeError):
            choose_threads(bad)
    for bad in ("0", "-1", "two", "1.5", "²", "257"):
        monkeypatch.setenv("GPT2C_THREADS", bad)
        with pytest.raises(gpt2c.OptionError, match="GPT2C_THREADS"):
            choose_threads()
