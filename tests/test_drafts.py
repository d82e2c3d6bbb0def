"""Speculative decoding: ids and log-probabilities equal those of plain decoding, bit for bit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    FLOAT_ISAS,
    ISAS,
    cases,
    config_of,
    in_threads,
    model_on,
    needs_engine,
    random_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import ClosedError, ContextError, NumericalError, OptionError, OptionTypeError
from gpt2c.generate import drafting
from gpt2c.generate import options as generation

pytestmark = needs_engine

CONFIG = config_of(vocab_size=60, n_positions=90, n_embd=36, n_layer=2, n_head=3)
SAMPLING = {
    "greedy": {},
    "sampled": {"temperature": 0.7, "seed": 11},
    "filters": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 5},
    "penalties": {
        "temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "seed": 2,
        "no_repeat_ngram_size": 3, "logit_bias": {3: 2.0},
    },
    "mirostat": {"mirostat_tau": 3.0, "seed": 8},
    "dry": {"dry_multiplier": 0.8, "temperature": 0.5, "seed": 1},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.05, "seed": 4},
    "greedy, penalties": {"repetition_penalty": 1.3, "min_new_tokens": 5},
}  # fmt: skip


def sharp_weights(config, seed):
    """Return weights with logits far enough apart that most drafts of a 4-bit copy are right."""
    weights = random_weights(config, seed)
    weights["wte.weight"] *= 3
    return weights


@pytest.fixture(autouse=True)
def pack_small_models(monkeypatch):
    """Pack even small models for drafting, and draft only where a test asks for it."""
    monkeypatch.setattr(drafting, "_MIN_PACKING_BYTES", 0)
    monkeypatch.setitem(generation.DEFAULTS, "draft", None)


def result_of(completion):
    """Return the part of a completion that must not depend on drafts."""
    c = completion
    return (c.ids, c.finish_reason, c.logprobs, c.top_logprobs, c.prompt_logprobs, c.seed)


def drafts_of(model, seed):
    other = model_on(
        model.backend, config_of(**{**shape_of(model), "n_layer": 1}), sharp_weights_of(model, seed)
    )
    return ["auto", "packing", "lookup", other]


def shape_of(model):
    c = model.config
    return {"vocab_size": c.vocab_size, "n_positions": c.n_positions, "n_embd": c.n_embd,
            "n_head": c.n_head}  # fmt: skip


def sharp_weights_of(model, seed):
    return sharp_weights(config_of(**{**shape_of(model), "n_layer": 1}), seed)


prompt_lists = st.lists(
    st.lists(st.integers(0, 59), min_size=1, max_size=40), min_size=1, max_size=5
)


@settings(max_examples=cases(60))
@given(
    seed=st.integers(0, 1000),
    sampling=st.sampled_from(sorted(SAMPLING)),
    prompts=prompt_lists,
    dtype=st.sampled_from(["float32", "float32", "int8"]),
    n_tokens=st.sampled_from([None, 1, 2, 3, 7, 24]),
    batch_size=st.sampled_from([1, 2, 64]),
    max_new_tokens=st.integers(1, 60),
    isa=st.sampled_from(FLOAT_ISAS or [""]),
    which=st.integers(0, 3),
    stop=st.sampled_from([[], [1, 2, 3], list(range(0, 60, 3))]),
    slides=st.booleans(),
)
def test_ids_and_logprobs_equal_plain_decoding(
    seed, sampling, prompts, dtype, n_tokens, batch_size, max_new_tokens, isa, which, stop, slides
):
    weights = sharp_weights(CONFIG, seed)
    model = model_on(isa, CONFIG, weights, dtype=dtype)
    options = {
        **SAMPLING[sampling], "max_new_tokens": max(max_new_tokens, 5), "logprobs": 2,
        "stop_token_ids": stop, "overflow": "slide" if slides else "stop",
    }  # fmt: skip
    plain = [result_of(model.complete(p, **options)) for p in prompts]
    draft = drafts_of(model, seed)[which]
    drafted = model.complete(
        prompts, draft=draft, num_assistant_tokens=n_tokens, batch_size=batch_size, **options
    )
    assert [result_of(c) for c in drafted] == plain
    for c in drafted:
        assert 0 <= c.accepted <= c.drafted
        # A pass yields the accepted tokens and one more, which may be a stop token that is not
        # part of the ids.
        assert c.passes + c.accepted - 1 <= len(c.ids) <= c.passes + c.accepted
    streamed = list(
        model.stream(prompts[0], draft=draft, num_assistant_tokens=n_tokens,
                     **{k: v for k, v in options.items() if k != "logprobs"})
    )  # fmt: skip
    assert streamed == plain[0][0]


def test_drafts_are_made_and_accepted(isa):
    """Without this test, the tests above could pass without any drafted token."""
    config = config_of(vocab_size=60, n_positions=200, n_embd=64, n_head=2)
    model = model_on(isa, config, sharp_weights(config, 3))
    prompt = [5, 6, 7]
    plain = model.complete(prompt, max_new_tokens=120)
    assert (plain.passes, plain.drafted, plain.accepted) == (120, 0, 0)
    packed = model.complete(prompt, max_new_tokens=120, draft="packing", num_assistant_tokens=4)
    assert packed.ids == plain.ids
    assert packed.accepted > 60
    same = model.complete(prompt, max_new_tokens=120, draft=model, num_assistant_tokens=5)
    # The model is its own draft model: every draft of five tokens is accepted.
    assert same.accepted == same.drafted
    assert same.passes <= 120 // 6 + 2
    repeating = model.complete(
        plain.ids[:40] * 2, max_new_tokens=20, draft="lookup", num_assistant_tokens=8
    )
    assert repeating.drafted >= 8


def test_lookup_drafts_repeated_text():
    """The model always generates the next higher id, modulo n."""
    n = 50
    config = config_of(vocab_size=n, n_positions=300, n_embd=n, n_head=1, n_layer=0,
                       tie_word_embeddings=False)  # fmt: skip
    weights = random_weights(config)
    weights["wpe.weight"][:] = 0
    weights["wte.weight"] = np.eye(n, dtype=np.float32)
    weights["lm_head.weight"] = np.roll(np.eye(n, dtype=np.float32), 1, axis=0)
    weights["ln_f.weight"][:], weights["ln_f.bias"][:] = 1, 0
    model = model_on(ISAS[-1], config, weights)
    prompt = [i % n for i in range(60)]
    done = model.complete(prompt, max_new_tokens=100, draft="lookup", num_assistant_tokens=24)
    assert done.ids == [(60 + i) % n for i in range(100)]
    assert done.accepted == done.drafted > 90
    assert done.passes <= 6


def test_stops_apply_within_a_draft():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    plain = model.complete([1, 2], max_new_tokens=60, logprobs=0)
    seen: list[list[int]] = []

    def stop_after_ten(_, ids):
        seen.append(ids)
        return len(ids) == 10

    options = {"draft": model, "num_assistant_tokens": 7, "max_new_tokens": 60, "logprobs": 0}
    done = model.complete([1, 2], callback=stop_after_ten, **options)
    assert (done.ids, done.finish_reason) == (plain.ids[:10], "callback")
    assert done.logprobs == plain.logprobs[:10]
    assert seen == [plain.ids[: i + 1] for i in range(10)]  # called after every token
    late = model.complete([1, 2], max_time=1e-9, **options)
    assert (late.ids, late.finish_reason) == ([], "time")
    full = model.complete(list(range(60)), **{**options, "max_new_tokens": 1000})
    assert full.finish_reason == "context"
    assert len(full.ids) == CONFIG.n_positions - 60 + 1


def test_a_logits_processor_disables_drafts():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    done = model.complete(
        [1, 2], draft=model, num_assistant_tokens=3, logits_processor=lambda ids, x: x
    )
    assert done.drafted == 0
    assert done.ids == model.complete([1, 2]).ids


def test_a_nan_has_the_same_message_with_drafts():
    weights = sharp_weights(CONFIG, 0)
    weights["wpe.weight"][30:] = np.nan
    model = model_on(ISAS[-1], CONFIG, weights)
    messages = set()
    for options in ({}, {"draft": "packing", "num_assistant_tokens": 7}):
        with pytest.raises(NumericalError) as error:
            model.complete([1, 2, 3], max_new_tokens=60, **options)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_the_packing_is_made_only_for_long_completions(isa):
    model = model_on(isa, CONFIG, sharp_weights(CONFIG, 0))
    n_bytes = model.n_bytes
    model.generate([1, 2], max_new_tokens=5, draft="auto")
    model.generate([1, 2], max_new_tokens=50)
    assert model.n_bytes == n_bytes
    # A stream runs step by step, so the engine sees that the sequence is long before it ends.
    list(model.stream([1, 2], max_new_tokens=50, draft="auto"))
    assert model.n_bytes > n_bytes
    # A weight has 4.5 bits instead of 32; small models also pad panels and groups.
    config = config_of(vocab_size=4096, n_embd=256, n_head=4, n_layer=4)
    model = model_on(isa, config, random_weights(config))
    n_bytes = model.n_bytes
    model.generate([1, 2], max_new_tokens=2, draft="packing", num_assistant_tokens=1)
    assert 0.13 * n_bytes < model.n_bytes - n_bytes <= 0.16 * n_bytes


def test_closing_a_draft_model_while_it_drafts():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    expected = model.generate([1, 2], max_new_tokens=50)
    for _ in range(20):
        other = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
        closer = threading.Thread(target=other.close)
        pieces = model.stream([1, 2], max_new_tokens=50, draft=other, num_assistant_tokens=3)
        ids = [next(pieces)]
        closer.start()
        try:
            ids += list(pieces)
            assert ids == expected
        except ClosedError:
            pass
        closer.join()
    # The drafter does not use its memory of the previous draft model for the next one.
    again = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 1))
    assert model.generate([1, 2], max_new_tokens=50, draft=again) == expected


def test_threads_share_a_model_and_its_drafts():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    prompts = [[i, i + 1, i + 2] for i in range(8)]
    expected = [model.generate(p, max_new_tokens=60) for p in prompts]
    results: dict[int, list[int]] = {}

    def work(i):
        results[i] = model.generate(
            prompts[i], max_new_tokens=60, draft="packing", num_assistant_tokens=1 + i
        )

    in_threads(work, range(8))
    assert [results[i] for i in range(8)] == expected


def test_a_draft_model_with_a_shorter_context():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    short = config_of(**{**shape_of(model), "n_positions": 20})
    other = model_on(ISAS[-1], short, sharp_weights(short, 0))
    done = model.complete([1, 2], max_new_tokens=60, draft=other, num_assistant_tokens=4)
    assert done.ids == model.generate([1, 2], max_new_tokens=60)
    long = model.complete(list(range(40)), max_new_tokens=30, draft=other, num_assistant_tokens=4)
    assert long.ids == model.generate(list(range(40)), max_new_tokens=30)


def test_invalid_drafts():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    int4_model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0), dtype="int4")
    on_numpy = model_on("numpy", CONFIG, sharp_weights(CONFIG, 0))
    wide = config_of(**{**shape_of(model), "vocab_size": 61})
    other = model_on(ISAS[-1], wide, random_weights(wide))
    for draft, error in (
        ("int4", OptionError), (3, OptionTypeError), (True, OptionTypeError), (other, OptionError),
        (on_numpy, OptionError),
    ):  # fmt: skip
        with pytest.raises(error, match="draft is"):
            model.generate([1], draft=draft)
    with pytest.raises(OptionError, match=r"draft is 'packing'.*int4 itself"):
        int4_model.generate([1], draft="packing")
    assert int4_model.generate([1], draft="auto") == int4_model.generate([1])
    for draft in ("packing", "lookup", model):
        with pytest.raises(OptionError, match="compiled engine"):
            on_numpy.generate([1], draft=draft)
    assert on_numpy.generate([1], draft="auto") == on_numpy.generate([1])
    for n in (0, 25, -1):
        with pytest.raises(OptionError, match="num_assistant_tokens"):
            model.generate([1], draft="auto", num_assistant_tokens=n)
    with pytest.raises(OptionError, match="without a draft"):
        model.generate([1], num_assistant_tokens=3, draft=None)
    with pytest.raises(ContextError):
        model.generate(list(range(50)) * 3, draft="auto")


def test_an_unreferenced_draft_model_is_freed():
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    other = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 1))
    engine = weakref.ref(other._engine)
    model.generate([1, 2], draft=other, num_assistant_tokens=2)
    del other
    gc.collect()
    assert engine() is None
    third = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 2))
    done = model.generate([1, 2], draft=third, num_assistant_tokens=2)
    assert done == model.generate([1, 2])


def test_drafts_are_the_default(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(drafting, "_MIN_PACKING_BYTES", 0)
    model = model_on(ISAS[-1], CONFIG, sharp_weights(CONFIG, 0))
    n_bytes = model.n_bytes
    plain = model.generate([1, 2], max_new_tokens=50, draft=None)
    assert model.n_bytes == n_bytes
    assert list(model.stream([1, 2], max_new_tokens=50)) == plain
    assert model.n_bytes > n_bytes
    assert model.complete([1, 2], max_new_tokens=50, num_assistant_tokens=4).drafted > 0


_LIMITED_MEMORY = """
import gc, resource, sys
from conftest import ISAS, config_of, model_on, random_weights
from gpt2c.generate import drafting
drafting._MIN_BYTES = 0
config = config_of(vocab_size=4096, n_embd=512, n_head=4, n_layer=16)
model = model_on(ISAS[-1], config, random_weights(config))
plain = model.generate([1, 2], max_new_tokens=30, draft="lookup")
n_bytes = model.n_bytes
gc.collect()  # memory freed later would make room
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (8 << 20)  # the packing takes over 30 MB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(2):
    assert model.generate([1, 2], max_new_tokens=30) == plain
assert model.n_bytes == n_bytes
try:
    model.generate([1, 2], max_new_tokens=30, draft="packing")
except MemoryError as error:
    sys.exit(0 if "drafts" in str(error) else f"{error}")
sys.exit("there was room")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
def test_drafting_is_skipped_without_memory_for_the_packing():
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED_MEMORY], cwd=Path(__file__).parent, capture_output=True,
        text=True, check=False,
        # Each thread that allocates reserves 128 MB of address space and returns half of it later.
        # NumPy's threads start during the test. The space that they return would make room.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
