"""Captures and edits match the oracle; a capture has the same bits as other calls."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, ISAS, cases, config_of, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c import GPT2, ContextError, OptionError, OptionTypeError
from gpt2c.engine.protocol import BLOCK_POINTS, MODEL_POINTS
from gpt2c.look.probing import POINTS
from gpt2c.oracle.reference import gpt2

CONFIG = config_of(n_positions=70)
# Longer than one page of the KV cache.
IDS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 67)


@pytest.fixture(params=BACKENDS)
def model(request):
    return model_on(request.param, CONFIG, random_weights(CONFIG))


def point_names(config):
    return [*MODEL_POINTS, *(f"h.{i}.{p}" for i in range(config.n_layer) for p in BLOCK_POINTS)]


def oracle(config, ids, change=lambda name, value: None):
    """Return every step of the float64 oracle; `change` may edit each in place."""
    weights = {name: w.astype(np.float64) for name, w in random_weights(config).items()}
    steps = {}

    def record(name, value):
        change(name, value)
        steps[name] = value.copy()

    gpt2(np.asarray(ids), weights, config, visit=record)
    return steps


def assert_near(found, wanted):
    """Compare within float32's rounding: weights with deviation 0.3 give activations up to 10."""
    finite = np.isfinite(wanted)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(np.isfinite(found), finite)
    scale = np.abs(wanted[finite]).max()
    atol = 3e-5 * max(scale, 1)
    np.testing.assert_allclose(found[finite], wanted[finite], rtol=0, atol=atol)


def test_every_point_equals_the_oracle(model):
    steps = oracle(CONFIG, IDS)
    seen = model.forward(IDS, capture=point_names(CONFIG))
    assert list(seen) == point_names(CONFIG)
    for name, value in seen.items():
        assert value.dtype == np.float32
        assert_near(value, steps[name])


def test_a_point_without_a_block_means_all_blocks(model):
    seen = model.forward(IDS, capture=["probs", "h.1.probs", "h.0.probs", "q", "h.1.q"])
    assert seen["probs"].shape == (2, 3, 67, 67)
    np.testing.assert_array_equal(seen["probs"][1], seen["h.1.probs"])
    np.testing.assert_array_equal(seen["probs"][0], seen["h.0.probs"])
    np.testing.assert_array_equal(seen["q"][1], seen["h.1.q"])
    np.testing.assert_allclose(seen["probs"].sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", POINTS)
def test_capture_of_some_positions(model, name):
    whole = model.forward(IDS, capture=name)[name]
    some = model.forward(IDS, capture=name, positions=[0, 5, -2])[name]
    axis = {"logits": 0, "embed": 0, "ln_f": 0}.get(name, 1)
    if name in ("q", "k", "v", "scores", "probs"):
        axis = 2
    np.testing.assert_array_equal(some, whole.take([0, 5, 65], axis=axis))
    for position in (-1, np.int64(66)):
        last = model.forward(IDS, capture=name, positions=position)[name]
        np.testing.assert_array_equal(last, whole.take([66], axis=axis))


def test_logits_are_captured_by_default(model):
    seen = model.forward(IDS)
    assert list(seen) == ["logits"]
    assert_near(seen["logits"], oracle(CONFIG, IDS)["logits"])


def test_a_text_is_encoded():
    model = GPT2.from_pretrained()
    ids = model.tokenizer.encode("Once upon a time")
    np.testing.assert_array_equal(model.forward("Once upon a time")["logits"], model.logits(ids))


# ---- the same bits ----

shapes = st.builds(
    lambda head_dim, n_head, **options: config_of(
        n_embd=head_dim * n_head, n_head=n_head, **options
    ),
    head_dim=st.sampled_from([1, 7, 16, 32, 64]),
    n_head=st.integers(1, 4),
    n_positions=st.just(300),
    n_layer=st.integers(0, 2),
    n_inner=st.one_of(st.none(), st.integers(1, 70)),
    activation_function=st.sampled_from(["gelu_new", "relu", "tanh"]),
    scale_attn_by_inverse_layer_idx=st.booleans(),
    tie_word_embeddings=st.booleans(),
)


@needs_engine
@settings(max_examples=cases(60))
@given(
    config=shapes,
    n=st.sampled_from([1, 2, 3, 64, 65, 300]),
    names=st.sets(st.sampled_from(POINTS)),
    isa=st.sampled_from(ISAS),
    dtype=st.sampled_from(["float32", "int8", "int4"]),
    threads=st.integers(1, 3),
    edits=st.booleans(),
)
def test_captures_change_no_bit(config, n, names, isa, dtype, threads, edits):
    """Captures, and edits that return their input, do not change the logits."""
    model = model_on(isa, config, random_weights(config), dtype=dtype, threads=threads)
    ids = np.random.default_rng(n).integers(0, config.vocab_size, n)
    edit = dict.fromkeys(names, lambda value: value) if edits else None
    seen = model.forward(ids, capture=["logits", *names], edit=edit)
    np.testing.assert_array_equal(seen["logits"], model.logits(ids))


@needs_engine
def test_same_captured_bits_on_every_instruction_set_and_alone():
    weights = random_weights(CONFIG)
    first = model_on(ISAS[0], CONFIG, weights).forward(IDS, capture=POINTS)
    for isa in ISAS:
        model = model_on(isa, CONFIG, weights, threads=2)
        for name, value in model.forward(IDS, capture=POINTS).items():
            np.testing.assert_array_equal(value, first[name])
            np.testing.assert_array_equal(model.forward(IDS, capture=name)[name], value)


# ---- edits ----


@pytest.mark.parametrize("name", point_names(CONFIG))
def test_the_rest_is_computed_from_an_edit(model, name):
    """The edit negates every second number, or replaces a probability p by 1 - p."""

    def changed(value):
        result = value.copy()
        half = (slice(None),) * (value.ndim - 1) + (slice(0, None, 2),)
        result[half] = 1 - value[half] if name.endswith("probs") else -value[half]
        return result

    def change(step, value):
        if step == name:
            value[...] = changed(value)
            if name.endswith(("scores", "probs")):
                value[:, ~np.tri(len(IDS), dtype=bool)] = -np.inf if "scores" in name else 0

    steps = oracle(CONFIG, IDS, change)
    names = [name, "resid_post", "logits"]
    seen = model.forward(IDS, capture=names, edit={name: changed})
    assert_near(seen[name], steps[name])
    assert_near(seen["logits"], steps["logits"])
    for block, value in enumerate(seen["resid_post"]):
        assert_near(value, steps[f"h.{block}.resid_post"])


def test_an_array_is_broadcast_to_the_point(model):
    mean = np.arange(CONFIG.n_embd)
    seen = model.forward(IDS, capture=["mlp_out", "logits"], edit={"h.1.mlp_out": mean, "q": 0})
    np.testing.assert_array_equal(seen["mlp_out"][1], np.broadcast_to(mean, (67, CONFIG.n_embd)))
    assert np.abs(seen["mlp_out"][0] - mean).max() > 1
    # Zero queries make attention uniform over the previous positions.
    probs = model.forward(IDS, capture="h.0.probs", edit={"h.0.q": 0})["h.0.probs"]
    even = np.tri(67) / np.arange(1, 68)[:, None]
    np.testing.assert_allclose(probs, np.broadcast_to(even, probs.shape), rtol=1e-6)


def test_patching_a_whole_point_from_another_prompt(model):
    other = IDS[::-1].copy()
    kept = model.forward(other, capture=["h.0.resid_post", "logits"])
    patched = model.forward(IDS, edit={"h.0.resid_post": kept["h.0.resid_post"]})
    np.testing.assert_array_equal(patched["logits"], kept["logits"])


def test_edited_scores_stay_causal(model):
    seen = model.forward(IDS, capture=["h.0.scores", "h.0.probs"], edit={"h.0.scores": 0.0})
    later = ~np.tri(67, dtype=bool)
    assert (seen["h.0.scores"][:, later] == -np.inf).all()
    assert (seen["h.0.probs"][:, later] == 0).all()
    assert (seen["h.0.scores"][:, ~later] == 0).all()


def test_an_edit_may_change_its_argument_in_place_and_keep_it(model):
    kept = []

    def zero_second(value):
        kept.append(value)
        value[1] = 0
        return value

    seen = model.forward(IDS, capture=["resid_pre", "logits"], edit={"resid_pre": zero_second})
    assert [value.shape for value in kept] == [(67, CONFIG.n_embd)] * 2
    for value, captured in zip(kept, seen["resid_pre"], strict=True):
        np.testing.assert_array_equal(value, captured)
        assert not value[1].any()
        assert value[0].any()


def test_an_exception_in_an_edit_is_raised(model):
    def fail(value):
        raise KeyboardInterrupt("here")

    for name in ("embed", "h.0.scores", "h.1.mlp_act", "ln_f", "logits"):
        with pytest.raises(KeyboardInterrupt, match="here"):
            model.forward(IDS, edit={name: fail})
    before = model.logits(IDS)
    np.testing.assert_array_equal(model.forward(IDS)["logits"], before)


def test_an_edit_may_use_the_model(model):
    seen = {}

    def look(value):
        seen["logits"] = model.logits(IDS[:5])
        seen["again"] = model.forward(IDS[:5])["logits"]
        return value

    model.forward(IDS, edit={"h.0.probs": look})
    np.testing.assert_array_equal(seen["logits"], model.logits(IDS[:5]))
    if model.backend != "numpy":
        np.testing.assert_array_equal(seen["again"], seen["logits"])


def test_a_model_closed_by_an_edit_finishes_the_call(model):
    before = model.forward(IDS)["logits"]

    def close(value):
        model.close()
        return value

    np.testing.assert_array_equal(model.forward(IDS, edit={"embed": close})["logits"], before)


@needs_engine
def test_an_edit_that_raises_stops_every_thread():
    """Regression test: a late thread used to find the call finished while others still ran."""
    program = textwrap.dedent("""
        from conftest import ISAS, config_of, model_on, random_weights

        def fail(value):
            raise ZeroDivisionError

        config = config_of()
        model = model_on(ISAS[-1], config, random_weights(config), threads=4)
        for name in ["h.0.resid_pre", "h.1.resid_pre"] * 1000:
            try:
                model.forward([1, 2, 3], edit={name: fail})
            except ZeroDivisionError:
                continue
            raise SystemExit("no exception")
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, timeout=120, check=False
    )
    assert done.returncode == 0


@pytest.mark.filterwarnings("error")
def test_values_beyond_float32_become_infinite(model):
    seen = model.forward(IDS, capture="embed", edit={"embed": np.float64(1e300)})
    assert (seen["embed"] == np.inf).all()


def test_a_point_named_twice_is_kept_once(model):
    model.forward(IDS, capture="probs")
    tracemalloc.start()
    seen = model.forward(IDS, capture=["probs"] * 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(seen) == ["probs"]
    assert peak < 20 * seen["probs"].nbytes


# ---- errors ----


class ConvertsToNothing:
    """Like a torch tensor with requires_grad."""

    def __array__(self, *_):
        raise RuntimeError("it asks for a gradient")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capture": "resid"}, "'resid' is not a point.*did you mean resid_"),
        ({"capture": "h.0.reisd_mid"}, "did you mean resid_mid"),
        ({"capture": ["h.2.q"]}, "names block '2'; this model's blocks are 0 to 1"),
        ({"capture": ["h.-1.q"]}, "names block '-1'; this model's blocks are 0 to 1"),
        ({"capture": ["h..q"]}, "names block ''; this model's"),
        ({"capture": ["h.99999999999.q"]}, "0 to 1"),
        ({"capture": ["h.0.embed"]}, "not a point"),
        ({"edit": {"nothing": 0}}, "edit: 'nothing' is not a point"),
        ({"edit": {"q": 0, "h.1.q": 0}}, "names the point h.1.q twice"),
        (
            {"edit": {"embed": lambda x: x[:5]}},
            r"embed gave shape \(5, 24\); .* to shape \(67, 24\)",
        ),
        ({"edit": {"h.1.q": lambda x: None}}, r"edit of h.1.q gave None.* \(3, 67, 8\)"),
        ({"edit": {"embed": "zero"}}, "gave 'zero'"),
        ({"edit": {"embed": "3"}}, "gave '3'; expected real numbers"),
        ({"edit": {"embed": 1j}}, "gave 1j.*complex128"),
        ({"edit": {"embed": lambda x: x + 1j}}, r"gave shape \(67, 24\).*complex64"),
        ({"edit": {"embed": [None] * 24}}, "gave .None"),
        ({"edit": {"embed": np.datetime64(3, "s")}}, "datetime64"),
        ({"edit": {"embed": 10**400}}, "gave 10000"),
        ({"edit": {"embed": ConvertsToNothing()}}, "it asks for a gradient"),
        ({"positions": [67]}, "from -67 to 66"),
        ({"positions": [3, 2]}, "ascending"),
        ({"positions": [2, 2]}, "without duplicates"),
    ],
)
def test_errors_name_the_point(model, options, message):
    with pytest.raises(OptionError, match=message):
        model.forward(IDS, **options)


@pytest.mark.parametrize(
    "options",
    [{"capture": 3}, {"capture": [3]}, {"edit": ["embed"]}, {"edit": {3: 0}}, {"positions": 1.5},
     {"positions": "ab"}, {"positions": [True]}],
)  # fmt: skip
def test_wrong_types_are_refused(model, options):
    with pytest.raises(OptionTypeError):
        model.forward(IDS, **options)


def test_wrong_prompts_are_refused(model):
    with pytest.raises(OptionError, match="ids is empty"):
        model.forward([])
    with pytest.raises(ContextError, match="71 tokens are more than the context's 70"):
        model.forward([0] * 71)


# ---- weights ----


def test_weights_equal_those_of_the_checkpoint(model):
    for name, weight in random_weights(CONFIG).items():
        found = model.weight(name)
        np.testing.assert_array_equal(found, weight)
        found[...] = 0  # a copy
        np.testing.assert_array_equal(model.weight(name), weight)
    with pytest.raises(OptionError, match=r"no tensor 'wte.weights'.*did you mean wte\.weight"):
        model.weight("wte.weights")


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_weight_of_a_tied_or_untied_head(is_tied):
    config = config_of(tie_word_embeddings=is_tied)
    weights = random_weights(config)
    model = model_on("numpy", config, weights)
    wanted = weights["wte.weight" if is_tied else "lm_head.weight"]
    np.testing.assert_array_equal(model.weight("lm_head.weight"), wanted)


# ---- the example ----


def test_the_examples_of_the_page_run():
    page = (Path(__file__).parents[1] / "docs" / "probing.md").read_text("utf-8")
    shown = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names = {}
    exec("\n".join(shown), names)
    assert names["seen"]["resid_post"].shape[0] == names["model"].config.n_layer


def test_the_example_matches_the_models_logits(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    path = Path(__file__).parents[1] / "docs" / "examples" / "look_inside.py"
    spec = importlib.util.spec_from_file_location("look_inside", path)
    look_inside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(look_inside)
    model = GPT2.from_pretrained()
    ids = model.tokenizer.encode("Once upon a time")
    best, probs = look_inside.logit_lens(model, ids)
    logits = model.logits(ids)
    np.testing.assert_array_equal(best[-1], logits.argmax(-1))
    total = np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    np.testing.assert_allclose(probs[-1], 1 / total, rtol=1e-4)  # ln_f is rounded twice
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["look_inside.py", "Once upon a time"])
    look_inside.main()
    for name in ("logit_lens.png", "attention.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@needs_engine
@pytest.mark.skipif(sys.platform == "win32", reason="os.kill cannot send SIGINT here")
@pytest.mark.skipif(
    "tsan" in os.environ.get("LD_PRELOAD", ""), reason="ThreadSanitizer delays signals"
)
def test_ctrl_c_is_noticed_without_captures():
    """A call without captures polls for signals between blocks, not only after the last one."""
    program = textwrap.dedent("""
        import os, signal, sys, threading, time
        from conftest import ISAS, config_of, model_on, random_weights
        config = config_of(n_positions=512, n_embd=128, n_head=4, n_layer=40)
        model = model_on(ISAS[0], config, random_weights(config), threads=2)
        ids = [1] * 512
        begin = time.perf_counter()
        model.forward(ids, positions=-1)
        whole = time.perf_counter() - begin
        threading.Timer(whole / 10, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.perf_counter()
        try:
            model.forward(ids, positions=-1)
        except KeyboardInterrupt:
            print((time.perf_counter() - begin) / whole)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    # The signal comes after 1/10 of the call, and a block takes 1/40; allow for a busy machine.
    assert float(done.stdout) < 0.7
