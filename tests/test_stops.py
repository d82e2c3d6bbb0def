"""Stop strings, max_time, callbacks, logits processors, streams, and sliding contexts."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import numpy as np
import pytest
from conftest import cases, config_of, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.measure import scoring
from gpt2c.schedule.stops import Stops, StopString, Watcher
from gpt2c.weights.checkpoint import from_arrays
from gpt2c.weights.loading import load_engine

CONFIG = config_of()
WEIGHTS = random_weights(CONFIG)
SAMPLED = {"temperature": 1.0, "seed": 5}


class Letters:
    """A tokenizer of 50 tokens: one to three letters from a to d, the two bytes of é, spaces."""

    n_vocab = 50
    eot_id = None
    tokens = (
        [b"a", b"b", b"c", b"d", b"\xc3", b"\xa9"]
        + [x + y for x in (b"a", b"b", b"c", b"d") for y in (b"a", b"b", b"c", b"d")]
        + [x + y + b"b" for x in (b"a", b"b", b"c", b"d") for y in (b"a", b"b", b"c", b"d")]
        + [b" "] * 12
    )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens[id] for id in ids)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")


@pytest.fixture
def model(backend):
    model = model_on(backend, CONFIG, WEIGHTS)
    model.tokenizer = Letters()  # type: ignore[assignment]
    return model


# ---- stop strings ----


def test_a_stop_string_ends_the_text_before_it(model):
    whole = model.generate("ab", max_new_tokens=30, **SAMPLED)
    for stop in (whole[3:5], whole[7:12], whole[0], whole[-2:]):
        done = model.complete("ab", max_new_tokens=30, stop_strings=stop, **SAMPLED)
        assert done.text == whole[: whole.index(stop)]
        assert done.finish_reason == "stop"
        # No more ids are returned than the text needs.
        assert model.tokenizer.decode(done.ids).startswith(done.text)
        assert len(model.tokenizer.decode(done.ids[:-1])) < len(done.text) or not done.ids
        assert done.ids == model.generate([0, 1], max_new_tokens=30, **SAMPLED)[: len(done.ids)]
        assert model.generate([0, 1], max_new_tokens=30, stop_strings=stop, **SAMPLED) == done.ids
    unmet = model.complete("ab", max_new_tokens=30, stop_strings=["zz", "yy"], **SAMPLED)
    assert (unmet.text, unmet.finish_reason) == (whole, "length")


@settings(max_examples=cases(300))
@given(
    ids=st.lists(st.integers(0, 49), max_size=25),
    strings=st.lists(st.text("abcd é", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_watcher_equals_a_search_of_the_whole_text(ids, strings):
    """The token-by-token watcher equals a search of the whole text, and safe ids stay safe."""
    letters = Letters()
    raw = [string.encode() for string in strings]
    whole = letters.decode_bytes(ids)
    watcher = Watcher(Stops(tuple(map(StopString, raw)), letters.token_bytes), 0)
    shown: list[int] = []
    reason = None
    n_pushed = 0
    for id in ids:
        reason = watcher.push(id)
        n_pushed += 1
        assert watcher.ids[: len(shown)] == shown
        shown = watcher.ids[: watcher.n_safe_ids]
        if reason:
            break
        safe = letters.decode_bytes(shown)
        assert not any(string in safe for string in raw)
        # Text that is held back could be the beginning of a stop string.
        held = letters.decode_bytes(ids[len(shown) : n_pushed])
        assert not held or any(
            (safe + held).endswith(string[:n]) for string in raw for n in range(1, len(string))
        )
    found = [whole.find(string) for string in raw if string in whole]
    if not found:
        assert reason is None
        return
    assert reason == "stop"
    # The first token that completes any stop string ends the text. If it completes several, the
    # text ends where the first of them begins.
    seen = letters.decode_bytes(ids[:n_pushed])
    assert not any(s in letters.decode_bytes(ids[: n_pushed - 1]) for s in raw)
    assert watcher.end == min(seen.find(string) for string in raw if string in seen)
    kept = letters.decode_bytes(watcher.ids)
    assert kept[: watcher.end] == seen[: watcher.end]
    assert not watcher.ids or len(letters.decode_bytes(watcher.ids[:-1])) < watcher.end


def test_a_long_stop_string_takes_linear_time():
    """A text whose prefixes all begin the stop string takes linear, not quadratic, time."""
    watcher = Watcher(Stops((StopString(b"a" * 100_000),), lambda id: b"a"), 0)
    for _ in range(99_999):
        assert watcher.push(0) is None
    assert watcher.n_safe_ids == 0
    assert watcher.push(0) == "stop"
    assert (watcher.ids, watcher.end) == ([], 0)


@settings(max_examples=cases(25), deadline=None)
@given(
    stops=st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_stream_pieces_join_to_the_text_without_the_stop_string(stops, seed):
    model = model_on("numpy", CONFIG, WEIGHTS)
    model.tokenizer = Letters()  # type: ignore[assignment]
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": seed, "stop_strings": stops}
    text = model.generate("ab", **options)
    pieces = list(model.stream("ab", **options))
    assert "".join(pieces) == text
    assert not any(stop in text for stop in stops)
    assert list(model.stream([0, 1], **options)) == model.generate([0, 1], **options)


def test_sequences_of_a_batch_stop_independently(model):
    prompts = ["ab", "c", "dd", "ab"]
    options = {"max_new_tokens": 25, "stop_strings": ["ab", "dc"], "temperature": 1.0}
    alone = [model.complete(p, seed=n, **options) for n, p in enumerate(prompts)]
    assert model.complete(prompts, seed=[0, 1, 2, 3], **options) == alone
    assert list(model.complete(iter(prompts), seed=[0, 1, 2, 3], batch_size=2, **options)) == alone
    assert {done.finish_reason for done in alone} == {"stop"}


def test_stop_token_ids(model):
    ids = model.generate([1, 2], max_new_tokens=20, **SAMPLED)
    stop = ids[5]
    done = model.complete([1, 2], max_new_tokens=20, stop_token_ids=[stop, 49], **SAMPLED)
    assert done.ids == ids[: ids.index(stop)]
    assert (done.finish_reason, done.end_id) == ("stop", stop)
    short = model.complete([1, 2], max_new_tokens=2, stop_token_ids=[stop], **SAMPLED)
    assert (short.finish_reason, short.end_id) == ("length", None)
    n_min = ids.index(stop) + 3
    longer = model.complete(
        [1, 2], max_new_tokens=30, min_new_tokens=n_min, stop_token_ids=[stop], **SAMPLED
    )
    assert len(longer.ids) >= n_min
    assert stop not in longer.ids


# ---- time and callbacks ----


def test_max_time_ends_every_sequence(model):
    done = model.complete([[1], [2]], max_new_tokens=30, max_time=0)
    assert [(d.ids, d.finish_reason) for d in done] == [([], "time")] * 2
    slow = model.complete(
        [1], max_new_tokens=30, max_time=0.1, callback=lambda index, ids: time.sleep(0.03)
    )
    assert slow.finish_reason == "time"
    assert 1 <= len(slow.ids) < 30
    assert slow.ids == model.generate([1], max_new_tokens=30)[: len(slow.ids)]
    assert model.complete([1], max_new_tokens=5, max_time=1e6).finish_reason == "length"


def test_a_callback_sees_every_token_and_may_stop(model):
    seen: list[tuple[int, list[int]]] = []
    prompts = [[1, 2], [3], [4]]

    def callback(index, ids):
        seen.append((index, ids))
        return index == 1 and len(ids) == 3

    done = model.complete(prompts, max_new_tokens=6, callback=callback, batch_size=2)
    plain = model.generate(prompts, max_new_tokens=6)
    assert [d.finish_reason for d in done] == ["length", "callback", "length"]
    assert [d.ids for d in done] == [plain[0], plain[1][:3], plain[2]]
    for index, n in ((0, 6), (1, 3), (2, 6)):
        assert [ids for i, ids in seen if i == index] == [plain[index][: k + 1] for k in range(n)]


def test_a_prompt_changed_during_the_call_has_no_effect(model):
    """The result belongs to the prompt as it was when the call began."""
    ids, prompts, buffer = [5, 6, 7], [[5, 6], [7]], [1]
    plain = model.generate([5, 6, 7], max_new_tokens=3)
    assert model.generate(ids, max_new_tokens=3, callback=lambda *_: ids.clear()) == plain
    many = model.generate(prompts, max_new_tokens=3, callback=lambda *_: prompts.clear())
    assert many == model.generate([[5, 6], [7]], max_new_tokens=3)

    def one_buffer():
        for ids in ([5, 6], [7, 8, 9]):
            buffer[:] = ids
            yield buffer
            buffer.clear()

    done = model.complete(one_buffer(), logprobs=0, echo=True, max_new_tokens=2)
    assert [len(d.prompt_logprobs) for d in done] == [2, 3]


@pytest.mark.parametrize(
    "options",
    [{}, {"stop_strings": ["zz"]}, {"max_time": 50}, {"overflow": "slide"}, {"batch_size": 2}],
)
def test_close_waits_for_running_calls(model, options):
    closed = []

    def callback(index, ids):
        model.close()
        closed.append(index)

    prompts = [[1, 2], [3], [4] * 20, [5]]
    plain = model.generate(prompts, max_new_tokens=25, **options)
    assert model.generate(prompts, max_new_tokens=25, callback=callback, **options) == plain
    assert closed
    with pytest.raises(gpt2c.ClosedError):
        model.generate([1])


def test_close_waits_for_running_scores(model, monkeypatch):
    texts = [[1, 2, 3, 4, 5]] * 600
    expected = [score.total for score in model.score(texts)]
    run, runs = scoring._GroupRunner._run_group, []

    def run_and_close(runner, group):
        run(runner, group)
        runs.append(group)
        model.close()

    monkeypatch.setattr(scoring._GroupRunner, "_run_group", run_and_close)
    assert [score.total for score in model.score(texts)] == expected
    assert len(runs) > 2
    with pytest.raises(gpt2c.ClosedError):
        model.score(texts)


def test_an_exception_in_a_callback_is_raised(model):
    def callback(index, ids):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        model.generate([1], callback=callback)
    assert len(model.generate([1], max_new_tokens=3)) == 3


def test_logits_processor(model):
    calls = []

    def only_even(ids, logits):
        calls.append(list(ids))
        logits[1::2] = -np.inf
        return logits

    ids = model.generate([1, 2], max_new_tokens=8, logits_processor=only_even)
    assert all(id % 2 == 0 for id in ids)
    assert calls == [[1, 2, *ids[:n]] for n in range(8)]
    same = {"max_new_tokens": 12, "temperature": 0.9, "top_k": 9, "repetition_penalty": 1.2}
    prompts = [[1, 2], [3] * 20, [4]]
    plain = model.generate(prompts, seed=3, **same)
    assert model.generate(prompts, seed=3, logits_processor=lambda i, x: x, **same) == plain
    assert list(
        model.stream([1, 2], seed=3, logits_processor=lambda i, x: x.tolist(), **same)
    ) == plain[0]  # fmt: skip
    for wrong in (
        lambda i, x: x[:-1],
        lambda i, x: "no",
        lambda i, x: x * np.nan,
        lambda i, x: [10**400] * 50,
        lambda i, x: x * 1j,
    ):
        with pytest.raises(gpt2c.OptionError, match="logits_processor returned"):
            model.generate([1], logits_processor=wrong)


def test_options_that_exclude_every_token(model):
    nothing = {"logits_processor": lambda ids, logits: np.full_like(logits, -np.inf)}
    for options in ({}, {"temperature": 1.0}, {"repetition_penalty": 1.2}):
        with pytest.raises(gpt2c.OptionError, match="no token to choose"):
            model.generate([1], **nothing, **options)
    large = {"logits_processor": lambda ids, logits: logits.astype(float) + 1e300}
    assert len(model.generate([1], max_new_tokens=2, **large)) == 2
    with pytest.raises(gpt2c.OptionError, match="leave no token to choose at position 1"):
        model.generate([1], suppress_tokens=list(range(50)))
    with pytest.raises(gpt2c.OptionError, match=r"prompt 1: .* no token"):
        model.generate([[2], [1]], no_repeat_ngram_size=2, bad_words=[[1, n] for n in range(50)])


# ---- log-probabilities of completions ----


def test_logprobs_equal_scores(model):
    prompt = [1, 2, 3]
    options = {"max_new_tokens": 8, "repetition_penalty": 1.3, "top_k": 5, **SAMPLED}
    done = model.complete(prompt, logprobs=4, echo=True, **options)
    assert done.ids == model.generate(prompt, **options)
    score = model.score([*prompt, *done.ids])
    # These are the model's own log-probabilities: options do not change them. NumPy may round
    # differently.
    rtol = 1e-5 if model.backend == "numpy" else 0
    np.testing.assert_allclose(done.logprobs, score.logprobs[3:], rtol=rtol)
    np.testing.assert_allclose(done.prompt_logprobs, score.logprobs[:3], rtol=rtol)
    logits = model.logits([*prompt, *done.ids])
    for n, top in enumerate([*done.prompt_top_logprobs[1:], *done.top_logprobs]):
        assert list(top) == np.argsort(-logits[n], kind="stable")[:4].tolist()
        assert list(top.values()) == sorted(top.values(), reverse=True)
    assert done.prompt_top_logprobs[0] == {}


def test_logprobs_of_batches_and_empty_completions(model):
    prompts = [[1, 2], [3], list(range(30))]
    together = model.complete(prompts, logprobs=2, max_new_tokens=4)
    alone = [model.complete(p, logprobs=2, max_new_tokens=4) for p in prompts]
    if model.backend != "numpy":
        assert together == alone
    assert [d.ids for d in together] == [d.ids for d in alone]
    more = model.complete([5], logprobs=60, max_new_tokens=1)
    assert len(more.top_logprobs[0]) == 50  # the whole vocabulary
    none = model.complete([5, 6], logprobs=0, echo=True, max_new_tokens=0)
    assert (none.ids, none.logprobs, none.top_logprobs) == ([], [], [])
    assert len(none.prompt_logprobs) == 2


def test_no_prompt_is_scored_after_max_time(model):
    done = model.complete([[1, 2, 3]] * 2, logprobs=0, echo=True, max_time=0)
    assert [(d.finish_reason, d.prompt_logprobs) for d in done] == [("time", None)] * 2


def test_a_prompt_that_the_time_limit_left_unscored_ends_with_time(model):
    options = {"max_new_tokens": 0, "logprobs": 0}
    late = model.complete([1, 2, 3], echo=True, max_time=0, **options)
    assert late.finish_reason == "time"
    assert late.prompt_logprobs is None
    assert model.complete([1, 2, 3], echo=True, **options).finish_reason == "length"
    assert model.complete([1, 2, 3], max_time=0, **options).finish_reason == "length"


# ---- several completions of a prompt ----


def test_num_return_sequences(model):
    prompts = [[1] * 20, [2, 3]]
    options = {"max_new_tokens": 10, "temperature": 1.2, "seed": 7}
    many = model.generate(prompts, num_return_sequences=4, **options)
    assert [len(samples) for samples in many] == [4, 4]
    assert len({tuple(ids) for samples in many for ids in samples}) == 8
    assert [samples[0] for samples in many] == model.generate(prompts, **options)
    assert model.generate(prompts[0], num_return_sequences=4, **options) == many[0]
    assert list(model.generate(iter(prompts), num_return_sequences=4, **options)) == many
    assert model.generate(prompts[1], num_return_sequences=1, **options) == many[1][:1]
    done = model.complete(prompts[1], num_return_sequences=2, logprobs=1, echo=True, **options)
    assert [d.sample for d in done] == [0, 1]
    assert done[0].prompt_logprobs[1:] == done[1].prompt_logprobs[1:]
    assert len(done[0].prompt_logprobs) == 2


def test_samples_share_the_cache_of_their_prompt(isa, monkeypatch):
    from gpt2c.schedule import batching

    fed = []
    create = batching.Continuation.__init__

    def spy(self, engine, prefixes, request, sequence=None):
        fed.append(len(request.ids) - (sequence.length if sequence else 0))
        create(self, engine, prefixes, request, sequence)

    monkeypatch.setattr(batching.Continuation, "__init__", spy)
    model = model_on(isa, CONFIG, WEIGHTS)
    model.generate([1] * 30, num_return_sequences=5, max_new_tokens=2, **SAMPLED)
    assert fed == [30, 1, 1, 1, 1]


# ---- beyond the context ----


def test_slide_restarts_from_the_last_half_of_the_context(model):
    prompt = [1, 2, 3]
    options = {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.1}
    done = model.complete(prompt, max_new_tokens=100, overflow="slide", logprobs=0, **options)
    assert (len(done.ids), len(done.logprobs), done.finish_reason) == (100, 100, "length")
    text = list(prompt)
    while len(text) < len(prompt) + 100:
        window = text if len(text) == len(prompt) else text[-20:]
        left = len(prompt) + 100 - len(text)
        text += model.generate(window, max_new_tokens=left, **options)
    assert done.ids == text[len(prompt) :]
    assert list(model.stream(prompt, max_new_tokens=100, overflow="slide", **options)) == done.ids
    assert model.complete(prompt, max_new_tokens=100, **options).finish_reason == "context"
    long = list(range(45))
    assert model.generate(long, max_new_tokens=5, overflow="slide") == model.generate(
        long[-20:], max_new_tokens=5
    )


@pytest.mark.parametrize("overflow", ["slide", "crop"])
def test_going_on_in_a_context_of_one(backend, overflow):
    config = config_of(n_positions=1)
    model = model_on(backend, config, random_weights(config))
    assert len(model.generate([1], max_new_tokens=7, overflow=overflow)) == 7


def test_a_slide_in_a_context_of_one_draws_with_the_same_noise(backend):
    """What follows a slide is what generate returns for the tokens that are left."""
    config = config_of(n_positions=1)
    model = model_on(backend, config, random_weights(config))
    options = {"do_sample": True, "seed": 6, "eos_token_id": None}
    ids = model.generate([1], max_new_tokens=5, overflow="slide", **options)
    text = [1]
    for _ in range(5):
        text += model.generate(text[-1:], max_new_tokens=1, **options)
    assert ids == text[1:]


def test_crop_sees_the_last_context_at_every_token(model):
    """The loop of nanoGPT's generate: each token comes from the last n_positions tokens."""
    n = model.config.n_positions
    for prompt in ([1, 2, 3], list(range(n)), list(range(n + 5))):
        text = list(prompt)
        for _ in range(60):
            text.append(int(model.logits(text[-n:])[-1].argmax()))
        done = model.complete(prompt, max_new_tokens=60, overflow="crop", logprobs=0)
        assert done.ids == text[len(prompt) :]
        assert (len(done.logprobs), done.finish_reason) == (60, "length")
        assert list(model.stream(prompt, max_new_tokens=60, overflow="crop")) == done.ids


def test_crop_draws_each_token_with_its_own_noise(backend):
    """Equal logits at every step: equal noise would draw the same id again and again."""
    config = config_of(n_positions=4, n_layer=0)
    weights = {name: np.zeros_like(w) for name, w in random_weights(config).items()}
    model = model_on(backend, config, weights)
    options = {"do_sample": True, "seed": 4, "overflow": "crop", "eos_token_id": None}
    ids = model.generate([1], max_new_tokens=300, **options)
    # 300 draws from all ids alike. For each id the count is binomial: mean 300 / n, and more than
    # the mean + 6 standard deviations has a probability below 1e-6.
    p = 1 / config.vocab_size
    assert max(map(ids.count, ids)) < 300 * p + 6 * (300 * p * (1 - p)) ** 0.5 + 1
    first, second = (
        model.complete([1], max_new_tokens=300, num_return_sequences=2, **options)[i].ids
        for i in (0, 1)
    )
    assert first == ids != second


def test_eos_token_id_of_a_call(model):
    """The call's EOS tokens take the place of the model's; None leaves none."""
    endless = model.generate([1, 2, 3], max_new_tokens=30, eos_token_id=None)
    assert len(endless) == 30
    for ends in (endless[10], [endless[10]], np.array([endless[10], endless[20]])):
        done = model.complete([1, 2, 3], max_new_tokens=30, eos_token_id=ends)
        end = min(map(endless.index, np.atleast_1d(ends)))
        assert (done.ids, done.end_id) == (endless[:end], endless[end])
        assert done.finish_reason == "stop"
    longer = model.complete([1, 2, 3], max_new_tokens=30, eos_token_id=endless[0], min_new_tokens=5)
    assert endless[0] not in longer.ids[:5]
    for wrong in (-1, 10**9, 1.5, "x y z", True):
        errors = (gpt2c.OptionError, gpt2c.OptionTypeError, gpt2c.TokenizerError)
        with pytest.raises(errors, match=r"eos_token_id|okenizer"):
            model.generate([1], eos_token_id=wrong)


def test_eos_token_id_replaces_the_models_own(backend):
    free = model_on(backend, config_of(eos_token_id=None), WEIGHTS)
    ids = free.generate([1, 2], max_new_tokens=20)
    model = model_on(backend, config_of(eos_token_id=ids[5]), WEIGHTS)
    assert model.generate([1, 2], max_new_tokens=20) == ids[: ids.index(ids[5])]
    assert model.generate([1, 2], max_new_tokens=20, eos_token_id=None) == ids
    assert model.generate([1, 2], max_new_tokens=20, eos_token_id=[]) == ids
    other = next(id for id in ids[6:] if id != ids[5])
    assert model.generate([1, 2], max_new_tokens=20, eos_token_id=other) == ids[: ids.index(other)]


# ---- async ----


def collect(model, prompt, **options):
    async def run():
        return [piece async for piece in model.stream_async(prompt, **options)]

    return asyncio.run(run())


def test_async_pieces_equal_the_streams(model):
    options = {"max_new_tokens": 12, "stop_strings": ["dd"], **SAMPLED}
    assert collect(model, [1, 2], **options) == list(model.stream([1, 2], **options))
    assert collect(model, "ab", **options) == list(model.stream("ab", **options))
    with pytest.raises(gpt2c.OptionError, match="temperature is -1"):
        model.stream_async([1], temperature=-1)


def test_the_event_loop_is_not_blocked(backend):
    """Another task runs while a long prompt is fed."""
    config = config_of(n_positions=1024, n_embd=192, n_layer=4)
    model = model_on(backend, config, random_weights(config))

    async def run(**options):
        n_turns = 0

        async def tick():
            nonlocal n_turns
            while True:
                await asyncio.sleep(0.001)
                n_turns += 1

        ticking = asyncio.create_task(tick())
        async for _ in model.stream_async([1] * 900, max_new_tokens=1, **options):
            pass
        ticking.cancel()
        return n_turns

    assert asyncio.run(run()) >= 5
    assert asyncio.run(run(logits_processor=lambda ids, logits: logits)) >= 5


def test_closing_an_async_stream_stops_the_work(model):
    lengths = []

    def callback(index, ids):
        lengths.append(len(ids))
        time.sleep(0.005)

    async def run():
        pieces = model.stream_async([1], max_new_tokens=39, callback=callback)
        async for _ in pieces:
            break
        await pieces.aclose()
        n = len(lengths)
        await asyncio.sleep(0.05)
        return n

    n = asyncio.run(run())
    assert len(lengths) == n <= 2


def test_cancelling_the_task_stops_the_work(model):
    begun = threading.Event()

    def callback(index, ids):
        begun.set()
        time.sleep(0.02)

    async def run():
        async def consume():
            async for _ in model.stream_async([1], max_new_tokens=39, callback=callback):
                pass

        task = asyncio.create_task(consume())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    model.close()  # no call is running
    with pytest.raises(gpt2c.ClosedError):
        model.generate([1])


def test_a_cancelled_job_returns_soon(isa):
    from gpt2c.engine.protocol import Plan

    config = config_of(n_positions=1024, n_embd=192, n_layer=4)
    model = model_on(isa, config, random_weights(config))
    ids, no_stops = np.array([1], dtype=np.int32), np.empty(0, dtype=np.int32)
    job = model._engine.job(ids, 1000, Plan(), 0, 0, no_stops)

    def cancel():
        while job.n_tokens == 0:
            time.sleep(1e-4)
        job.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    model._engine.run([job], 1000)
    canceller.join()
    assert job.finish_reason is None
    assert 0 < job.n_tokens < 1000


# ---- progress ----


def test_progress_counts_prompts(model, capsys):
    pytest.importorskip("tqdm")
    plain = model.generate([[1], [2], [3]], max_new_tokens=3)
    assert model.generate([[1], [2], [3]], max_new_tokens=3, progress=True) == plain
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert shown.out == ""
    assert list(model.generate(iter([[1], [2]]), max_new_tokens=3, progress=True)) == plain[:2]


def test_progress_without_tqdm_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with pytest.raises(gpt2c.MissingDependencyError, match=r"gpt2c\[progress\]"):
        model.generate([[1]], progress=True)


# ---- text options on the embedded model ----


def test_text_options_with_a_real_vocabulary():
    model = GPT2.from_pretrained()
    options = {"max_new_tokens": 60, "temperature": 0.8, "seed": 2}
    plain = model.generate("Once upon a time", **options)
    word = next(w for w in ("the", "and", "a") if f" {w} " in plain)
    text = model.generate("Once upon a time", bad_words=[word], **options)
    assert f" {word} " not in text
    biased = model.generate("The", max_new_tokens=5, logit_bias={" king": 1000})
    assert biased == " king king king king king"
    assert " king" not in model.generate("The", suppress_tokens=[" king"], **options)
    loop = model.generate("Once upon a time", max_new_tokens=120)
    dry = model.generate("Once upon a time", max_new_tokens=120, dry_multiplier=2.0)
    assert _longest_repeat(dry) < _longest_repeat(loop)
    with pytest.raises(gpt2c.OptionError, match="tokens, not one"):
        model.generate("The", suppress_tokens=["hippopotamus of the"])


def _longest_repeat(text: str) -> int:
    words = text.split()
    grams = lambda n: [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]  # noqa: E731
    return max(n for n in range(60) if len(set(grams(n))) < len(grams(n)) or n == 0)


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=needs_engine)])
def test_a_loading_bar_counts_every_parameter(backend: str) -> None:
    class Bar:
        n = 0

        def add(self, n: int) -> None:
            self.n += n

    config, bar = config_of(n_embd=64, n_head=4), Bar()
    checkpoint = from_arrays(config, random_weights(config))
    load_engine(checkpoint, "float32", backend, 1, bar=bar)  # type: ignore[arg-type]
    assert bar.n == 4 * config.n_parameters


def test_a_slow_load_shows_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    GPT2.from_pretrained(progress=True)
    assert capsys.readouterr().err == ""  # a load of under two seconds shows no bar
    monkeypatch.setattr("gpt2c.progress._DELAY", 0)
    GPT2.from_pretrained()
    assert capsys.readouterr().err == ""
    GPT2.from_pretrained(progress=True)
    assert "loading: " in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["generate", "Once", "-n", "1"]) == 0
    assert "loading: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(gpt2c.MissingDependencyError, match=r"gpt2c\[progress\]"):
        GPT2.from_pretrained(progress=True)


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_the_token_that_ends_a_text_has_a_score(backend, draft):
    """Also where the context is full, so that no longer text could be scored."""
    config = config_of(n_positions=20)
    model = model_on(backend, config, random_weights(config))
    prompt = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    if backend == "numpy":
        draft = None
    free = model.complete(prompt, max_new_tokens=12, logprobs=3, draft=draft)
    assert len(free.ids) == 12  # the last of which no position could feed
    for place, stop in enumerate(free.ids):
        if stop in free.ids[:place]:
            continue
        done = model.complete(
            prompt, max_new_tokens=12, stop_token_ids=[stop], logprobs=3, draft=draft
        )
        assert (done.ids, done.end_id) == (free.ids[:place], stop)
        assert done.end_logprob == free.logprobs[place]
        assert done.end_top_logprobs == free.top_logprobs[place]
        without = model.complete(prompt, max_new_tokens=12, stop_token_ids=[stop])
        assert (without.end_id, without.end_logprob, without.end_top_logprobs) == (stop, None, None)
    assert (free.end_logprob, free.end_top_logprobs) == (None, None)
