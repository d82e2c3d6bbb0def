"""The KV cache has a limit: what counts, what happens at the limit, and the default."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import FLOAT_ISAS, ISAS, config_of, in_threads, model_on, needs_engine, random_weights
from test_forks import in_child

import gpt2c
from gpt2c.engine.memory import choose_cache_limit, usable_memory
from gpt2c.engine.protocol import Plan

PAGE = 64  # positions
CONFIG = config_of(n_positions=256)
WEIGHTS = random_weights(CONFIG)
# Keys and values of one position, in float32.
TOKEN_BYTES = 2 * CONFIG.n_layer * CONFIG.n_embd * 4
PAGE_BYTES = PAGE * TOKEN_BYTES
PROMPT = [i % 50 for i in range(70)]


def limited(backend, n_bytes=None, **options):
    return model_on(backend, CONFIG, WEIGHTS, kv_cache_bytes=n_bytes, **options)


@pytest.fixture
def model(backend):
    return limited(backend)


def bytes_of(model, n_tokens):
    """Return the bytes of one sequence: NumPy has no pages."""
    if model.backend == "numpy":
        return n_tokens * TOKEN_BYTES
    return -(-n_tokens // PAGE) * PAGE_BYTES


# ---- what counts ----


def test_pages_count_while_sequences_use_them(model):
    assert model.kv_cache_bytes == 0
    session = model.session()
    assert model.kv_cache_bytes == 0
    for n in (1, 63, 1, 64, 100):
        session.feed(PROMPT[:1] * n)
        assert model.kv_cache_bytes == bytes_of(model, len(session))
    session.rollback(len(session) - 65)
    assert model.kv_cache_bytes == bytes_of(model, 65)
    other = model.session()
    other.feed([1, 2])
    assert model.kv_cache_bytes == bytes_of(model, 65) + bytes_of(model, 2)
    del session, other
    assert model.kv_cache_bytes == 0


def test_a_shared_page_counts_once(model):
    session = model.session()
    session.feed(PROMPT)
    copy = session.copy()
    third = copy.copy()
    assert model.kv_cache_bytes == bytes_of(model, 70)
    # Feeding makes an own copy of the last page (on NumPy, of all positions).
    copy.feed([1])
    own = 71 * TOKEN_BYTES if model.backend == "numpy" else PAGE_BYTES
    assert model.kv_cache_bytes == bytes_of(model, 70) + own
    del session
    assert model.kv_cache_bytes == bytes_of(model, 70) + own
    del third
    assert model.kv_cache_bytes == bytes_of(model, 71)


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@needs_engine
def test_the_size_of_a_page(dtype):
    """Quantised models keep bfloat16 in the KV cache."""
    model = limited(ISAS[-1], dtype=dtype)
    model.session().feed([1])
    session = model.session()
    session.feed([1])
    assert model.kv_cache_bytes == PAGE_BYTES // (1 if dtype == "float32" else 2)


CALLS = {
    "generate": lambda m: m.generate([PROMPT, PROMPT[:20]], max_new_tokens=9),
    "beams": lambda m: m.generate(PROMPT, max_new_tokens=9, num_beams=3),
    "echo": lambda m: m.complete(PROMPT, max_new_tokens=4, logprobs=1, echo=True),
    "score": lambda m: m.score(PROMPT),
    "logits": lambda m: m.logits(PROMPT),
    "forward": lambda m: m.forward(PROMPT, capture="logits"),
    "drafts": lambda m: m.generate(PROMPT, max_new_tokens=30, draft="packing"),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_give_their_pages_back(backend, call):
    if (backend, call) == ("numpy", "drafts"):
        pytest.skip("NumPy makes no drafts")
    model = limited(backend)
    CALLS[call](model)
    assert model.kv_cache_bytes == 0


@needs_engine
def test_a_draft_model_counts_for_itself(isa):
    model, small = limited(isa), limited(isa)
    text = model.generate(PROMPT, max_new_tokens=30, draft=small)
    assert text == model.generate(PROMPT, max_new_tokens=30)
    assert (model.kv_cache_bytes, small.kv_cache_bytes) == (0, 0)


@needs_engine
def test_threads_lose_no_page(isa):
    model = limited(isa)
    session = model.session()
    session.feed(PROMPT)

    def work(seed):
        for i in range(20):
            copy = session.copy() if not i % 2 else model.session()
            copy.feed([seed])
            model.generate([seed, *PROMPT[:40]], max_new_tokens=40)

    def copying(seed):  # a session may be copied by one thread at a time
        try:
            work(seed)
        except gpt2c.OptionError as error:
            assert "in use by another thread" in str(error)  # noqa: PT017

    in_threads(copying, range(6))
    assert model.kv_cache_bytes == bytes_of(model, 70)


@needs_engine
def test_bytes_needed():
    from gpt2c.engine._engine import bytes_needed

    model = limited(ISAS[-1])
    sequence = model._engine.sequence()
    other = None
    rng = np.random.default_rng(0)
    for n in (1, 62, 1, 1, 64, 1, 100):
        before = model.kv_cache_bytes
        needed = bytes_needed(sequence, n)
        sequence.feed(np.ones(n, dtype=np.int32), 0)
        assert model.kv_cache_bytes - before == needed
        if rng.random() < 0.5:
            other = sequence.copy()  # shares the last page until the next feed
    assert other is not None


def test_a_closed_model_frees_what_sessions_still_hold(model):
    sessions = [model.session() for _ in range(3)]
    for session in sessions:
        session.feed(PROMPT)
    copy = sessions[0].copy()
    model.close()
    assert model.kv_cache_bytes == 0
    del sessions, copy  # under AddressSanitizer this must not touch the freed model
    assert model.kv_cache_bytes == 0


# ---- forks ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@needs_engine
def test_a_child_counts_only_its_own_pages(isa):
    model = limited(isa, 3 * PAGE_BYTES)
    session = model.session()
    session.feed(PROMPT)
    expected = model.session().feed(PROMPT[:10]).tolist()

    def check():
        assert model.kv_cache_bytes == 0
        own = model.session()
        assert own.feed(PROMPT[:10]).tolist() == expected
        assert model.kv_cache_bytes == PAGE_BYTES
        session.feed([1])  # copies no page: the child is alone
        session.feed([1] * 60)
        assert model.kv_cache_bytes == 2 * PAGE_BYTES
        session.rollback(len(session))
        assert model.kv_cache_bytes == PAGE_BYTES
        del own
        assert model.kv_cache_bytes == 0

    in_child(check)
    assert model.kv_cache_bytes == 2 * PAGE_BYTES


# ---- at the limit ----


def test_a_call_beyond_the_limit_fails_alone(backend):
    model = limited(backend, 2 * PAGE_BYTES)
    assert model.kv_cache_limit == 2 * PAGE_BYTES
    session = model.session()
    session.feed(PROMPT[:64])
    with pytest.raises(
        gpt2c.CacheMemoryError, match=f"limit of {2 * PAGE_BYTES} bytes .*kv_cache_bytes"
    ):
        session.feed(PROMPT[:65])
    assert len(session) == 64
    assert model.kv_cache_bytes == PAGE_BYTES
    logits = session.feed(PROMPT[:64])
    assert len(session) == 128
    with pytest.raises(gpt2c.CacheMemoryError):
        model.generate([1], max_new_tokens=1)
    del session
    fresh = limited(backend).session()
    fresh.feed(PROMPT[:64])
    assert np.array_equal(fresh.feed(PROMPT[:64]), logits)
    assert len(model.generate([1], max_new_tokens=9)) == 9


@pytest.mark.parametrize("call", ["beams", "echo", "score", "logits", "forward"])
def test_every_call_meets_the_limit(backend, call):
    if (backend, call) == ("numpy", "forward"):
        pytest.skip("a forward call on NumPy keeps no KV cache")
    model = limited(backend, PAGE_BYTES)
    with pytest.raises(gpt2c.CacheMemoryError, match=f"limit of {PAGE_BYTES} bytes"):
        CALLS[call](model)
    gc.collect()  # the exception's frames refer to NumPy's sequences
    assert model.kv_cache_bytes == 0
    assert len(model.generate([1], max_new_tokens=9)) == 9


def test_a_copy_on_write_meets_the_limit(backend):
    model = limited(backend, 2 * PAGE_BYTES)
    session = model.session()
    session.feed(PROMPT)
    copy = session.copy()
    with pytest.raises(gpt2c.CacheMemoryError):
        copy.feed([1])
    assert len(copy) == 70
    del session
    logits = copy.feed([1])
    fresh = limited(backend).session()
    fresh.feed(PROMPT)
    assert np.array_equal(fresh.feed([1]), logits)


@needs_engine
def test_prompts_that_do_not_fit_together_run_one_after_another():
    model = limited(FLOAT_ISAS[0], 2 * PAGE_BYTES)
    prompts = [PROMPT, PROMPT[::-1], PROMPT[3:], [1]]
    alone = [limited(FLOAT_ISAS[0]).generate(p, max_new_tokens=9) for p in prompts]
    assert model.generate(prompts, max_new_tokens=9) == alone
    assert model.kv_cache_bytes == 0


@needs_engine
@pytest.mark.parametrize("prefix_cache_bytes", [0, 64 * PAGE_BYTES])
def test_prompts_that_share_prefixes_run_one_after_another_too(prefix_cache_bytes):
    """Donors that feed a prefix for others hold pages before they run."""
    begins = [[(7 * i + k) % 50 for i in range(70)] for k in range(4)]
    prompts = [[*begin, i] for begin in begins for i in range(2)]
    alone = [limited(FLOAT_ISAS[0]).generate(p, max_new_tokens=9) for p in prompts]
    for n_pages in (2, 3, 5):
        model = limited(FLOAT_ISAS[0], n_pages * PAGE_BYTES, prefix_cache_bytes=prefix_cache_bytes)
        assert model.generate(prompts, max_new_tokens=9) == alone


@needs_engine
def test_a_shared_prefix_without_room_fails_at_once_and_keeps_no_pages():
    """A list's resting jobs hold pages, so its donors must not wait for pages."""
    model = limited(FLOAT_ISAS[0], 2 * PAGE_BYTES)
    session = model.session()
    session.feed([1])
    prompt, no_stops = np.array(PROMPT, dtype=np.int32), np.zeros(0, dtype=np.int32)
    job = model._engine.job(prompt, 9, Plan(), 0, 0, no_stops)
    with pytest.raises(gpt2c.CacheMemoryError, match="the first tokens of a prompt"):
        job.prefill(69)
    assert job.sequence.length == 0
    assert model.kv_cache_bytes == PAGE_BYTES
    del session
    job.prefill(69)
    assert job.sequence.length == 69
    assert model.kv_cache_bytes == 2 * PAGE_BYTES


@needs_engine
def test_a_job_with_room_is_fed_although_shorter_prompts_have_none():
    """The rows of a step go to the oldest prompt and to the shortest ones, if these have room."""
    model = limited(FLOAT_ISAS[0], 4 * PAGE_BYTES)
    engine, no_stops = model._engine, np.zeros(0, dtype=np.int32)

    def job_of(n_tokens):
        prompt = np.arange(n_tokens, dtype=np.int32) % 50
        return engine.job(prompt, 9, Plan(), 0, 0, no_stops)

    session = model.session()
    session.feed(PROMPT + PROMPT)  # three pages
    with_room = job_of(40)
    with_room.prefill(5)  # the fourth page
    assert model.kv_cache_bytes == 4 * PAGE_BYTES
    waiters = [engine.shared_waiter() for _ in range(2)]  # two callers, whose jobs share steps
    # Its arrival counts from the first time. So it is the oldest, and the others cannot preempt it.
    waiters[1].add(with_room)
    waiters[1].remove(with_room)
    jobs = [job_of(200), *(job_of(20) for _ in range(20)), with_room]
    for index, job in enumerate(jobs):
        waiters[index % 2].add(job)
    while not with_room.new_ids():
        for waiter in waiters:
            for job in waiter.wait(0.01):
                job.raise_failure()  # returns if the job may still wait for room
                if job is not with_room:
                    waiter.add(job)
    for index, job in enumerate(jobs):
        waiters[index % 2].remove(job)


@needs_engine
def test_callers_wait_for_room_that_finished_texts_take():
    """The prefix cache may fill the limit; callers that ask at the same time all get on."""
    backend, size = FLOAT_ISAS[0], 64 * PAGE_BYTES
    prompts = [[*PROMPT[i:], i] for i in range(8)]
    alone = [limited(backend).generate(p, max_new_tokens=9) for p in prompts]
    model = limited(backend, 3 * PAGE_BYTES, prefix_cache_bytes=size)
    found = [None] * len(prompts)

    def call(i):
        found[i] = [model.generate(prompts[i], max_new_tokens=9) for _ in range(3)]

    in_threads(call, range(len(prompts)))
    assert found == [[text] * 3 for text in alone]


@needs_engine
def test_a_text_that_outgrows_the_limit_fails():
    model = limited(FLOAT_ISAS[0], 2 * PAGE_BYTES)
    with pytest.raises(gpt2c.CacheMemoryError):
        model.generate(PROMPT, max_new_tokens=200)
    gc.collect()
    assert model.kv_cache_bytes == 0
    assert len(model.generate(PROMPT, max_new_tokens=2)) == 2


# ---- the option ----


def test_values_of_the_option(backend):
    for bad in (0, -1, PAGE_BYTES - 1, 2**63):
        with pytest.raises(
            gpt2c.OptionError, match=f"kv_cache_bytes is {bad}; .* from {PAGE_BYTES} to"
        ):
            limited(backend, bad)
    for bad in (True, 1.5, "1000000"):
        with pytest.raises(gpt2c.OptionTypeError, match=re.escape("kv_cache_bytes is ")):
            limited(backend, bad)
    assert limited(backend, np.int64(PAGE_BYTES)).kv_cache_limit == PAGE_BYTES
    assert limited(backend, 2**63 - 1).generate([1], max_new_tokens=1)


def test_from_pretrained_and_the_command_take_the_option(capsys):
    from gpt2c.cli.main import main

    assert gpt2c.GPT2.from_pretrained(kv_cache_bytes=10**6).kv_cache_limit == 10**6
    assert main(["generate", "Once", "-n", "2", "--kv-cache-bytes", "1"]) != 0
    assert "kv_cache_bytes is 1; it must be from" in capsys.readouterr().err
    assert main(["generate", "Once", "-n", "2", "--kv-cache-bytes", "1000000"]) == 0


# ---- the default ----


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that describes a machine with 8 GiB of memory and these files."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**21}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)

    def describe(files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return describe


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 2**33),
        ({f"{V2}/memory.max": "1073741824\n"}, 2**30),
        ({f"{V2}/memory.max": "max\n"}, 2**33),
        ({f"{V2}/memory.max": "nonsense"}, 2**33),
        ({f"{V2}/memory.max": "68719476736"}, 2**33),  # more than the machine has
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/memory.max": "max\n",
                f"{V2}/a/memory.max": "2000000000\n",
                f"{V2}/memory.max": "3000000000\n",
                f"{V2}/c/memory.max": "1000000000\n",  # another group
            },
            2_000_000_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/x\n",
                f"{V1}/docker/x/memory.limit_in_bytes": "500000000\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
            },
            500_000_000,
        ),
        ({f"{V1}/memory.limit_in_bytes": "9223372036854771712\n"}, 2**33),
    ],
)
def test_usable_memory(machine, files, expected):
    assert usable_memory(machine(files)) == expected


def test_usable_memory_without_sysconf(machine, monkeypatch):
    root = machine({})
    monkeypatch.delattr(os, "sysconf")
    assert usable_memory(root) is None
    assert usable_memory(machine({f"{V2}/memory.max": "1000"})) == 1000


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_usable_memory_with_an_unknown_name(tmp_path, monkeypatch, error):
    def sysconf(name):
        raise error(name)

    monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    assert usable_memory(tmp_path) is None


def test_the_default_limit(machine, monkeypatch, model):
    engine = model._engine
    assert choose_cache_limit(None, engine, machine({})) == 2**32
    root = machine({f"{V2}/memory.max": "60000"})
    assert choose_cache_limit(None, engine, root) == 4 * PAGE_BYTES  # a full context
    assert choose_cache_limit(50000, engine, root) == 50000
    monkeypatch.delattr(os, "sysconf")
    assert choose_cache_limit(None, engine, root / "nowhere") == 0


def test_models_get_the_default_limit(model):
    assert model.kv_cache_limit == choose_cache_limit(None, model._engine)
