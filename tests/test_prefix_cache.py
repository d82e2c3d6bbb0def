"""The prefix cache: what it keeps and finds, and that no result depends on it."""

from __future__ import annotations

import gc
import linecache
import os
import sys
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
from conftest import config_of, in_threads, model_on, needs_engine, random_weights
from test_forks import in_child

import gpt2c
from gpt2c.engine.protocol import PAGE_POSITIONS
from gpt2c.schedule import prefix_cache
from gpt2c.schedule.prefix_cache import MIN_SHARED_PREFIX, PrefixCache, common_prefix

CONFIG = config_of(n_positions=200)
WEIGHTS = random_weights(CONFIG)
RNG = np.random.default_rng(0)
PROMPT = RNG.integers(0, 50, 70).tolist()
LARGE = 2**24


def model_with(backend, n_bytes=LARGE, **options):
    return model_on(backend, CONFIG, WEIGHTS, prefix_cache_bytes=n_bytes, **options)


@pytest.fixture
def model(backend):
    return model_with(backend)


@pytest.fixture
def plain(backend):
    """A model without a prefix cache, to compare with."""
    return model_on(backend, CONFIG, WEIGHTS)


@pytest.fixture
def copied(monkeypatch):
    """Record how many tokens the cache gave at each call of copy_longest."""
    lengths = []
    copy_longest = PrefixCache.copy_longest

    def spy(self, ids, longer_than=0, space=0):
        sequence = copy_longest(self, ids, longer_than, space)
        lengths.append(sequence.length if sequence is not None else 0)
        return sequence

    monkeypatch.setattr(PrefixCache, "copy_longest", spy)
    return lengths


def fed(engine, ids):
    sequence = engine.sequence()
    sequence.feed(np.array(ids, dtype=np.int32), 0)
    return sequence


def put(cache, engine, ids):
    cache.put(np.array(ids, dtype=np.int32), fed(engine, ids))


def copied_length(cache, ids):
    """Return the length of the sequence that the cache gives for a prompt."""
    sequence = cache.copy_longest(np.array(ids, dtype=np.int32))
    return sequence.length if sequence is not None else 0


def assert_is_whole(cache):
    """Check what must hold between two calls."""
    keys = cache._keys
    assert keys == sorted(keys)
    assert set(keys) == set(cache._sequences)
    assert not any(b.startswith(a) for a, b in pairwise(keys))
    assert cache._n_pages == sum(-(-len(t) // 4 // PAGE_POSITIONS) for t in keys)
    assert cache._n_pages <= cache._max_pages
    assert all(s.length == len(t) // 4 for t, s in cache._sequences.items())


# ---- what it finds ----


def test_the_longest_prefix_is_found(backend):
    """Random texts over two ids, compared with a search through all of them."""
    engine = model_with(backend, 0)._engine
    cache = PrefixCache(engine, LARGE)
    kept = []
    stem = [1] * MIN_SHARED_PREFIX
    for _ in range(60):
        ids = [*stem, *RNG.integers(0, 2, RNG.integers(0, 7)).tolist()]
        expected = max((common_prefix_of(ids[:-1], text) for text in kept), default=0)
        assert copied_length(cache, ids) == (expected if expected >= MIN_SHARED_PREFIX else 0)
        put(cache, engine, ids)
        kept.append(ids)
        assert_is_whole(cache)
    assert copied_length(cache, [*stem, 7]) == MIN_SHARED_PREFIX
    assert copied_length(cache, [2, *stem]) == 0


def common_prefix_of(a, b):
    return common_prefix(np.array(a), np.array(b))


def test_a_taken_sequence_is_independent(model, plain):
    engine, cache = model._engine, model._prefixes
    put(cache, engine, PROMPT)
    for n in (17, 60, 70):
        sequence = cache.copy_longest(np.array([*PROMPT[:n], 3, 4], dtype=np.int32))
        assert sequence.length == n
        logits = sequence.feed(np.array([5, 6], dtype=np.int32), 1)
        expected = fed(plain._engine, PROMPT[:n]).feed(np.array([5, 6], dtype=np.int32), 1)
        if model.backend == "numpy":  # its bits depend on the chunks
            np.testing.assert_allclose(logits, expected, atol=1e-4)
        else:
            assert np.array_equal(logits, expected)
    assert copied_length(cache, PROMPT) == 69  # the last id is fed, to get the logits after it


def test_spaces_share_nothing(model):
    engine, cache = model._engine, model._prefixes
    ids = np.array(PROMPT, dtype=np.int32)
    for space in (1, 2**31 - 1, 0):
        cache.put(ids, fed(engine, ids), space)
        cache.put(ids[:40], fed(engine, ids[:40]), space)  # a prefix of the text before
    assert len(cache._keys) == 3
    assert cache._n_pages == 3 * -(-len(ids) // PAGE_POSITIONS)
    longer = np.array([*PROMPT, 5], dtype=np.int32)
    for space in (0, 1, 2**31 - 1):
        assert cache.copy_longest(longer, space=space).length == len(ids)
    assert cache.copy_longest(longer, space=2) is None
    cache.clear()
    assert cache._n_pages == 0
    cache.put(ids, fed(engine, ids), 3)
    assert copied_length(cache, longer) == 0


def test_short_texts_are_not_kept(model):
    engine, cache = model._engine, model._prefixes
    put(cache, engine, PROMPT[:15])
    assert cache.n_bytes == 0
    model.generate(PROMPT[:9], max_new_tokens=6)
    assert cache.n_bytes == 0
    put(cache, engine, PROMPT[:16])
    assert cache.n_bytes == engine.page_bytes
    assert copied_length(cache, PROMPT[:16]) == 0
    assert copied_length(cache, PROMPT[:17]) == 16


def test_a_longer_text_replaces_its_prefix(model):
    engine, cache = model._engine, model._prefixes
    put(cache, engine, PROMPT[:20])
    put(cache, engine, PROMPT[:70])
    assert cache.n_bytes == 2 * engine.page_bytes
    put(cache, engine, PROMPT[:30])
    assert cache.n_bytes == 2 * engine.page_bytes
    assert_is_whole(cache)


def test_a_donor_that_shares_more_is_preferred(model, plain, copied):
    model.generate(PROMPT[:30], max_new_tokens=1)
    prompts = [[*PROMPT[:50], 1], [*PROMPT[:50], 2]]
    assert model.generate(prompts, max_new_tokens=3) == plain.generate(prompts, max_new_tokens=3)
    plain_takes = [0, 0]
    assert copied == [0, 30, 0, *plain_takes]


# ---- what it forgets ----


def test_the_least_recently_used_text_goes_first(backend):
    engine = model_with(backend, 0)._engine
    cache = PrefixCache(engine, 3 * engine.page_bytes + 1)
    a, b, c, d = ([i] * 20 for i in range(4))
    for text in (a, b, c):
        put(cache, engine, text)
    assert copied_length(cache, a) == 19
    put(cache, engine, d)
    assert [copied_length(cache, text) for text in (a, b, c, d)] == [19, 0, 19, 19]
    put(cache, engine, a[:18])  # covered: counts as a use
    put(cache, engine, [4] * 70)  # two pages
    assert [copied_length(cache, text) for text in (a, c, d, [4] * 70)] == [19, 0, 0, 69]
    assert_is_whole(cache)


def test_pages_are_limited_and_freed(backend):
    model = model_with(backend, 0)
    engine = model._engine
    cache = PrefixCache(engine, 2 * engine.page_bytes)
    for length in (20, 100, 150, 64, 65, 199):
        put(cache, engine, RNG.integers(0, 50, length).tolist())
        assert cache.n_bytes <= 2 * engine.page_bytes
        assert model.kv_cache_bytes <= cache.n_bytes
        assert_is_whole(cache)
    text = [7] * 150
    put(cache, engine, text)
    assert copied_length(cache, text) == 128  # the first two pages
    assert cache.evict(1) == 2 * engine.page_bytes
    assert cache.evict(1) == 0
    gc.collect()
    assert model.kv_cache_bytes == 0
    put(cache, engine, text)
    cache.clear()
    assert copied_length(cache, text) == 0
    gc.collect()
    assert model.kv_cache_bytes == 0


def test_zero_turns_it_off(backend):
    model = model_with(backend, 0)
    model.generate(PROMPT, max_new_tokens=9)
    assert model._prefixes.n_bytes == 0
    assert model.kv_cache_bytes == 0


def test_values_of_the_option(backend):
    for bad in (-1, 2**63):
        with pytest.raises(gpt2c.OptionError, match=f"prefix_cache_bytes is {bad}"):
            model_with(backend, bad)
    for bad in (True, None, 1.5, "64"):
        with pytest.raises(gpt2c.OptionTypeError, match="prefix_cache_bytes is "):
            model_with(backend, bad)


def test_closing_drops_the_texts(backend):
    model = model_with(backend)
    model.generate(PROMPT, max_new_tokens=9)
    assert model._prefixes.n_bytes
    stream = model.stream(PROMPT, max_new_tokens=20)
    next(stream)
    with model._engine.held():
        model.close()
        assert model._prefixes.n_bytes == 0
        put(model._prefixes, model._engine, PROMPT)
        assert model._prefixes.n_bytes == 0
    with pytest.raises(gpt2c.ClosedError):
        list(stream)


def test_a_model_is_freed_when_dropped(backend):
    model = model_with(backend)
    model.generate(PROMPT, max_new_tokens=9)
    engine = weakref.ref(model._engine)
    gc.collect()
    gc.disable()
    try:
        del model
        assert engine() is None
    finally:
        gc.enable()


def test_a_full_cache_makes_room(backend):
    """Kept texts never make a call fail that fits in the KV cache without them."""
    n_pages = -(-CONFIG.n_positions // PAGE_POSITIONS)
    page = model_with(backend, 0)._engine.page_bytes
    model = model_with(backend, kv_cache_bytes=n_pages * page)

    def fill():
        for i in range(6):
            model.generate([i] * 40, max_new_tokens=1)
        assert model._prefixes.n_bytes

    long = [i % 49 for i in range(CONFIG.n_positions)]
    fill()
    model.session().feed(long)
    fill()
    model.score(long)
    fill()
    model.forward(long, capture="logits")
    fill()
    assert len(model.generate(long[:40], max_new_tokens=20, num_beams=2)) == 20
    fill()
    assert len(model.generate(long[:100], max_new_tokens=100)) == 100
    both = [long[:100], long[50:150]]
    if backend == "numpy":
        with pytest.raises(gpt2c.CacheMemoryError):
            model.generate(both, max_new_tokens=100)
    else:  # the running batch waits for room
        alone = [model_with(backend, 0).generate(p, max_new_tokens=100) for p in both]
        assert model.generate(both, max_new_tokens=100) == alone


# ---- no result depends on it ----

CALLS = {
    "greedy": {},
    "sampled": {"temperature": 1.5, "top_k": 20, "seed": 5},
    "logprobs": {"logprobs": 3},
    "echo": {"logprobs": 3, "echo": True},
    "samples": {"temperature": 1.0, "seed": 1, "num_return_sequences": 3, "logprobs": 0},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "mirostat": {"mirostat_tau": 3.0, "seed": 2},
    "stops": {"stop_token_ids": [3, 4, 5]},
    "processor": {"logits_processor": lambda ids, logits: logits + np.arange(50)},
    "slide": {"overflow": "slide", "max_new_tokens": 260},
    "no drafts": {"draft": None},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "logprobs": 1},
    "beams with echo": {"num_beams": 2, "logprobs": 1, "echo": True},
}


def results(model, prompts, options):
    """Return a call's results without the counts of passes and drafts."""
    done = model.complete(prompts, **{"max_new_tokens": 12, **options})
    flat = [c for each in done for c in (each if isinstance(each, list) else [each])]
    return [
        (c.new, c.finish_reason, c.logprobs, c.top_logprobs, c.prompt_logprobs, c.sequence_score)
        for c in flat
    ]


@pytest.mark.parametrize("name", CALLS)
def test_calls_give_the_same_bits(name, isa):
    model = model_with(isa)
    plain = model_on(isa, CONFIG, WEIGHTS)
    prompts = [PROMPT, PROMPT[:40], [*PROMPT[:50], 1, 2, 3], PROMPT[20:]]
    expected = results(plain, prompts, CALLS[name])
    assert results(model, prompts, CALLS[name]) == expected
    assert model._prefixes.n_bytes
    assert results(model, prompts, CALLS[name]) == expected  # now all prompts are in the cache
    one = [results(model, [prompt], CALLS[name]) for prompt in prompts]
    assert [r for each in one for r in each] == [
        r for prompt in prompts for r in results(plain, [prompt], CALLS[name])
    ]
    assert_is_whole(model._prefixes)


def test_numpy_gives_the_same_ids(copied):
    model, plain = model_with("numpy"), model_on("numpy", CONFIG, WEIGHTS)
    for _ in range(2):
        found = model.generate(PROMPT, max_new_tokens=12)
        assert found == plain.generate(PROMPT, max_new_tokens=12)
    assert copied == [0, 0, 69, 0]


@pytest.mark.parametrize("kind", ["packing", "lookup", "model"])
@needs_engine
def test_drafts_give_the_same_bits(kind, isa):
    """A draft model's 4-bit copy writes to the sequence that the cache then keeps."""
    model, plain = model_with(isa), model_on(isa, CONFIG, WEIGHTS)
    draft = model_with(isa) if kind == "model" else kind
    expected = plain.generate(PROMPT, max_new_tokens=100, draft=None)
    for _ in range(2):
        options = {"draft": draft, "num_assistant_tokens": 4}
        assert model.generate(PROMPT, max_new_tokens=100, **options) == expected
    longer = [*PROMPT, *expected]
    assert copied_length(model._prefixes, [*longer, 1]) >= len(longer) - 1
    found = model.generate(longer, max_new_tokens=20, draft=None)
    assert found == plain.generate(longer, max_new_tokens=20, draft=None)


def test_streams_take_and_put(model, plain, copied):
    expected = plain.generate(PROMPT, max_new_tokens=12)
    for _ in range(2):
        assert list(model.stream(PROMPT, max_new_tokens=12)) == expected
    assert copied == [0, 0, 69]


def test_echo_puts_but_does_not_take(model, copied):
    for _ in range(2):
        model.complete(PROMPT, max_new_tokens=2, logprobs=1, echo=True)
    assert copied == []
    model.complete(PROMPT, max_new_tokens=2, logprobs=1)
    assert copied == [69]


def test_beam_searches_take_and_put_the_prompt(model, copied):
    for _ in range(2):
        model.generate(PROMPT, max_new_tokens=4, num_beams=3)
    assert copied == [0, 69]
    assert len(model._prefixes._keys[0]) == 4 * len(PROMPT)


def test_a_failed_call_puts_nothing(backend):
    weights = {name: w.copy() for name, w in WEIGHTS.items()}
    weights["wte.weight"][7] = np.nan
    model = model_on(backend, CONFIG, weights, prefix_cache_bytes=LARGE)
    with pytest.raises(gpt2c.NumericalError):
        model.generate([7] * 30, max_new_tokens=3)
    assert model._prefixes.n_bytes == 0


# ---- threads, forks and signals ----


def test_threads_that_use_a_small_cache(backend):
    model = model_with(backend, 4 * model_with(backend, 0)._engine.page_bytes)
    plain = model_on(backend, CONFIG, WEIGHTS)
    prompts = [[*PROMPT[: 16 + 4 * i], i] for i in range(12)]
    expected = [plain.generate(p, max_new_tokens=4) for p in prompts]
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for i in rng.integers(0, len(prompts), 12):
            if model.generate(prompts[i], max_new_tokens=4) != expected[i]:
                wrong.append(i)
            if rng.random() < 0.1:
                model._prefixes.evict(1)

    in_threads(work, range(4))
    assert not wrong
    assert_is_whole(model._prefixes)
    model._prefixes.clear()
    gc.collect()
    assert model.kv_cache_bytes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_begins_with_an_empty_cache(model):
    expected = model.generate(PROMPT, max_new_tokens=6)
    ended = threading.Event()

    def work():
        while not ended.is_set():
            model.generate(PROMPT, max_new_tokens=1)

    thread = threading.Thread(target=work)

    def check():
        cache = model._prefixes
        assert copied_length(cache, PROMPT) == 0
        assert cache.n_bytes == 0
        for _ in range(2):
            assert model.generate(PROMPT, max_new_tokens=6) == expected
        assert copied_length(cache, PROMPT) == 69
        assert_is_whole(cache)

    in_child(check)
    if model.backend != "numpy":  # its BLAS does not survive a fork during a call
        thread.start()
        try:
            for _ in range(5):
                in_child(check)
        finally:
            ended.set()
            thread.join()
    assert copied_length(model._prefixes, PROMPT) == 69


def at_each_line(call, react):
    """Make calls; run `react` before the first line of prefix_cache.py, then the second, ..."""
    for n_lines in range(1000):
        left = n_lines

        def trace(frame, event, arg):
            nonlocal left
            if frame.f_code.co_filename != prefix_cache.__file__:
                return None
            # Leaving a block comes back to its `with`, but no signal handler can run there.
            line = linecache.getline(prefix_cache.__file__, frame.f_lineno)
            if event == "line" and not line.lstrip().startswith("with "):
                left -= 1
                if left == -1:
                    sys.settrace(None)
                    react()
            return trace

        sys.settrace(trace)
        try:
            call(n_lines)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if left >= 0:
            return n_lines
    raise AssertionError("the call never ended")


def test_an_interrupt_at_any_line(backend):
    engine = model_with(backend, 0)._engine
    cache = PrefixCache(engine, 2 * engine.page_bytes)
    texts = [[i] * 20 for i in range(3)]
    sequences = [fed(engine, text) for text in texts]

    def call(n):
        for text, sequence in zip(texts, sequences, strict=True):
            ids = np.array(text, dtype=np.int32)
            cache.put(ids, sequence)
            cache.copy_longest(ids)
        cache.evict(1)

    def interrupt():
        raise KeyboardInterrupt

    n_lines = at_each_line(lambda n: (call(n), assert_is_whole(cache)), interrupt)
    assert n_lines > 50
    call(0)
    assert_is_whole(cache)
    assert copied_length(cache, texts[2]) == 19


def test_a_signal_handler_that_uses_the_cache_at_any_line(backend):
    """It must not wait for the lock that its own thread has."""
    engine = model_with(backend, 0)._engine
    cache = PrefixCache(engine, 2 * engine.page_bytes)
    texts = [[i] * 20 for i in range(4)]
    sequences = [fed(engine, text) for text in texts]

    def call(n):
        for text, sequence in zip(texts[:3], sequences, strict=False):
            ids = np.array(text, dtype=np.int32)
            cache.put(ids, sequence)
            cache.copy_longest(ids)
        cache.evict(1)
        assert_is_whole(cache)

    def handler():
        ids = np.array(texts[3], dtype=np.int32)
        cache.put(ids, sequences[3])
        cache.copy_longest(ids)
        cache.evict(1)
        cache.clear()

    assert at_each_line(call, handler) > 50
