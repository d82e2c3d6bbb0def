"""Careless or hostile calls that used to crash, give a wrong result or raise a bare error."""

from __future__ import annotations

import copy
import os
import pickle
import random
import signal
import threading
import time

import numpy as np
import pytest
from conftest import FIXTURES, config_of, in_threads, model_on, random_weights

import gpt2c
from gpt2c import GPT2, Tokenizer
from gpt2c.generate.prompts import check_ids

HUGE = 10**5000  # more digits than Python prints


@pytest.fixture
def model(backend):
    config = config_of()
    return model_on(backend, config, random_weights(config))


def test_ids_are_copied_before_they_are_checked(model):
    ids = np.array([1, 2, 3], dtype=np.int32)
    checked = check_ids(ids, 50, "here")
    assert not np.shares_memory(ids, checked)
    expected = model.generate([1, 2, 3], max_new_tokens=5)
    stream = model.stream(ids, max_new_tokens=5)
    ids[:] = 2**30
    assert list(stream) == expected


def test_two_threads_do_not_corrupt_a_session(model):
    session = model.session()

    def work(token):
        for _ in range(10):
            try:
                session.feed([token])
            except gpt2c.OptionError:
                time.sleep(0)

    in_threads(work, (1, 2))
    fresh = model.session()
    fresh.feed(session.ids)
    # NumPy's last bits may differ with the shape.
    np.testing.assert_allclose(session.feed([3]), fresh.feed([3]), atol=1e-4)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_after_an_interrupt_a_sessions_ids_match_its_cache(model):
    rng = random.Random(0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(150):
            session = model.session()
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
                while True:
                    session.feed([1, 2, 3])
                    if len(session) > 30:
                        session.rollback(21)
            except KeyboardInterrupt:
                pass
            assert len(session.ids) == len(session) <= 40
            assert session.ids == [1, 2, 3] * (len(session) // 3)  # no partial feed
            session.rollback(len(session))
            session.feed([4, 5])  # the session stays usable
            assert session.ids == [4, 5]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_copy_and_pickle(model):
    session = model.session()
    session.feed([1, 2, 3])
    for other in (copy.copy(session), copy.deepcopy(session)):
        other.feed([4])
        assert session.ids == [1, 2, 3]
        assert other.ids == [1, 2, 3, 4]
    assert copy.copy(model) is model
    assert copy.deepcopy(model) is model
    for thing in (session, model):
        with pytest.raises(gpt2c.OptionTypeError, match="cannot be pickled"):
            pickle.dumps(thing)


def test_close_waits_for_running_calls(model):
    prompts = [[i % 50] * 3 for i in range(30)]
    expected = model.generate(prompts, max_new_tokens=30)
    running = threading.Event()
    results = []

    class Signalling(list):  # iterated when the call begins
        def __iter__(self):
            running.set()
            return super().__iter__()

    def work():
        try:
            results.append(model.generate(Signalling(prompts), max_new_tokens=30, batch_size=2))
        except gpt2c.ClosedError:
            results.append("closed")

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    time.sleep(0.005)
    model.close()
    thread.join()
    assert results in ([expected], ["closed"])  # the call ran to its end or did not begin
    assert model.n_bytes == 0


def test_every_call_after_close_raises_closed_error(model):
    session = model.session()
    model.close()
    for call in (
        lambda: model.generate([1], max_new_tokens=0),
        lambda: model.generate([]),
        lambda: model.stream([1], max_new_tokens=0),
        lambda: model.stream([1]),
        lambda: session.feed([], all=True),
        lambda: model.logits([]),
        lambda: model.session(),
    ):
        with pytest.raises(gpt2c.ClosedError):
            call()


def test_a_tokenizer_does_not_close_a_descriptor():
    read, write = os.pipe()
    with pytest.raises(gpt2c.OptionTypeError):
        Tokenizer.from_files(read, read)
    os.fstat(read)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("path", [5, 1.5, [], b"/x", True])
def test_only_paths_name_a_model(path):
    with pytest.raises(gpt2c.OptionTypeError, match="the model is"):
        GPT2.from_pretrained(path)


def test_an_empty_path_is_not_the_current_folder(monkeypatch):
    monkeypatch.chdir(FIXTURES / "sort-nano")
    with pytest.raises(gpt2c.CheckpointNotFoundError, match="empty"):
        GPT2.from_pretrained("")


def test_a_broken_link_to_a_tokenizer_is_an_error(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(FIXTURES / "sort-nano" / name)
    (tmp_path / "vocab.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "merges.txt").symlink_to(tmp_path / "nowhere")
    broken = GPT2.from_pretrained(tmp_path)
    with pytest.raises(gpt2c.TokenizerError, match=r"vocab\.json"):
        broken.generate("a")


def test_errors_about_values_that_cannot_be_printed(model):
    nested: list = []
    for _ in range(20_000):
        nested = [nested]

    class Mute:
        def __repr__(self):
            raise RuntimeError

    for call in (
        lambda: model.generate([1], max_new_tokens=HUGE),
        lambda: model.generate([HUGE]),
        lambda: model.session().rollback(HUGE),
        lambda: model.generate([1], temperature=HUGE),
        lambda: model.generate([1], seed=HUGE, temperature=1),
        lambda: model.generate([1], max_new_tokens=nested),
        lambda: model.generate([[1, nested]]),
        lambda: model.generate([1], max_new_tokens=Mute()),
        lambda: model.generate([Mute()]),
        lambda: gpt2c.GPT2Config(n_embd=HUGE),
        lambda: GPT2.from_pretrained(threads=HUGE),
        lambda: GPT2.from_pretrained(backend=Mute()),
    ):
        with pytest.raises(gpt2c.Error) as caught:
            call()
        assert len(str(caught.value)) < 400
    with pytest.raises(gpt2c.Error) as caught:
        model.generate([1], max_new_tokens="x" * 10**6)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "options",
    [
        {"seed": np.array(3.5), "temperature": 1},
        {"truncate": np.array([3, 4])},
        {"truncate": 5},
        {"temperature": np.timedelta64(3)},
        {"temperature": np.complex64(1)},
        {"temperature": np.bool_(True)},
        {"top_k": np.timedelta64(3)},
    ],
)
def test_odd_numpy_values_are_type_errors(model, options):
    with pytest.raises(gpt2c.OptionTypeError):
        model.generate([1], **options)


def test_numpy_numbers_are_accepted(model):
    expected = model.generate([1], temperature=1.0, seed=3, max_new_tokens=5)
    for seed in (np.array(3), np.uint8(3), np.int64(3)):
        for one in (np.float16(1), np.float32(1), np.float64(1), np.int8(1)):
            new = model.generate([1], temperature=one, seed=seed, max_new_tokens=np.int16(5))
            assert new == expected
    assert GPT2.from_pretrained(threads=np.int64(2)).threads in (1, 2)
    for tiny in (1e-46, 1e-300):
        greedy = model.generate([1], max_new_tokens=5)
        assert model.generate([1], temperature=tiny, seed=1, max_new_tokens=5) == greedy


def test_any_sequence_of_seeds(model):
    options = {"temperature": 1.0, "max_new_tokens": 5}
    expected = model.generate([[1]] * 3, seed=[0, 1, 2], **options)
    for seeds in (range(3), (0, 1, 2), np.arange(3)):
        assert model.generate([[1]] * 3, seed=seeds, **options) == expected
    with pytest.raises(gpt2c.OptionTypeError):
        model.generate([1], seed="1", **options)


def test_timedeltas_are_not_ids(model):
    with pytest.raises(gpt2c.OptionTypeError):
        model.generate([np.timedelta64(3, "s")])
    with pytest.raises(gpt2c.OptionTypeError):
        model.session().feed([np.timedelta64(3, "s")])


def test_lists_that_change_when_read_are_read_once(model):
    class Growing(list):
        n = 1

        def __iter__(self):
            self.n += 1
            return iter([[1]] * self.n)

    assert all(model.generate(Growing([[1]]), max_new_tokens=1))

    class Liar(int):
        def __lt__(self, other):
            return False

        def __le__(self, other):
            return True

        __ge__ = __gt__ = __le__

    for ids in ([Liar(2**70)], [Liar(-5)]):
        with pytest.raises(gpt2c.OptionError, match="token 0 is"):
            model.generate(ids)
