"""The choice of the engine, and the messages when it cannot run."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
from conftest import ISAS, TINY, config_of, needs_engine, random_weights

import gpt2c
from gpt2c import GPT2
from gpt2c.weights.checkpoint import from_arrays
from gpt2c.weights.tokenizer_files import tokenizer_of


@needs_engine
def test_auto_picks_the_fastest_instruction_set(monkeypatch):
    monkeypatch.delenv("GPT2C_BACKEND", raising=False)
    monkeypatch.delenv("GPT2C_ISA", raising=False)
    assert GPT2.from_pretrained(TINY).backend == ISAS[-1]


@needs_engine
def test_the_environment_sets_the_backend_only_for_auto(monkeypatch):
    monkeypatch.setenv("GPT2C_BACKEND", "numpy")
    assert GPT2.from_pretrained(TINY).backend == "numpy"
    assert GPT2.from_pretrained(TINY, backend="c").backend == ISAS[-1]
    monkeypatch.setenv("GPT2C_BACKEND", "c")
    assert GPT2.from_pretrained(TINY).backend == ISAS[-1]
    monkeypatch.setenv("GPT2C_BACKEND", "fortran")
    with pytest.raises(gpt2c.OptionError, match="GPT2C_BACKEND is 'fortran'"):
        GPT2.from_pretrained(TINY)


@needs_engine
def test_the_environment_forces_an_instruction_set(monkeypatch):
    for isa in ISAS:
        monkeypatch.setenv("GPT2C_ISA", isa)
        assert GPT2.from_pretrained(TINY).backend == isa
    monkeypatch.setenv("GPT2C_ISA", "avx9000")
    with pytest.raises(gpt2c.OptionError, match=r"avx9000.*may be .*scalar"):
        GPT2.from_pretrained(TINY)


def test_without_the_engine_auto_warns_once_and_runs(no_engine, monkeypatch):
    monkeypatch.delenv("GPT2C_BACKEND", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = GPT2.from_pretrained(TINY)
    assert model.backend == "numpy"
    assert model.generate([1], max_new_tokens=3)
    (warning,) = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert issubclass(warning.category, gpt2c.Gpt2cWarning)
    assert "GPT2C_BUILD=require pip install" in str(warning.message)
    assert warning.filename == __file__  # the warning points at the user's own line


def test_backend_c_without_the_engine_raises_with_the_reinstall_command(no_engine, monkeypatch):
    with pytest.raises(gpt2c.BackendError, match="GPT2C_BUILD=require pip install"):
        GPT2.from_pretrained(TINY, backend="c")
    monkeypatch.setenv("GPT2C_BACKEND", "c")
    with pytest.raises(RuntimeError):
        GPT2.from_pretrained(TINY)


@needs_engine
def test_a_cpu_without_any_supported_instruction_set_falls_back(monkeypatch):
    from gpt2c.engine import _engine

    monkeypatch.delenv("GPT2C_BACKEND", raising=False)
    monkeypatch.delenv("GPT2C_ISA", raising=False)
    monkeypatch.setattr(_engine, "instruction_sets", lambda: [("scalar", False)])
    with pytest.warns(RuntimeWarning, match="FMA"):
        assert GPT2.from_pretrained(TINY).backend == "numpy"


@pytest.mark.parametrize("options", [{"backend": "cuda"}, {"dtype": "float8"}, {"threads": 0}])
def test_errors_name_the_invalid_option(options):
    (name,) = options
    with pytest.raises(gpt2c.OptionError, match=f"{name} is"):
        GPT2.from_pretrained(TINY, **options)


def test_float64_runs_on_numpy():
    model = GPT2.from_pretrained(TINY, dtype="float64")
    assert model.backend == "numpy"
    with pytest.raises(gpt2c.OptionError, match="float64"):
        GPT2.from_pretrained(TINY, dtype="float64", backend="c")


def test_import_is_light_and_prints_nothing():
    program = (
        "import sys, gpt2c; m = gpt2c.GPT2.from_pretrained(sys.argv[1]);"
        "m.generate([1], max_new_tokens=2); m.close();"
        "heavy = {'torch', 'transformers', 'tokenizers', 'huggingface_hub', 'tiktoken', "
        "'safetensors'};"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(TINY)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_engine
def test_engine_refuses_nonsense_without_crashing():
    """Even the private module raises Python errors for wrong types and half-made objects."""
    import numpy as np

    from gpt2c.engine import _engine
    from gpt2c.engine.protocol import Plan, Stage

    def job_of(name, **values):
        return model.job(ids, 1, Plan((Stage(name, **values),)), 0, 0, stops)

    outside, values = np.array([0, 5], dtype=np.int32), np.zeros(1, dtype=np.float32)
    config = gpt2c.GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2)
    model = _engine.Model(config, ISAS[0], 2)
    ids = np.zeros(2, dtype=np.int32)
    stops = np.zeros(0, dtype=np.int32)
    for make in (
        lambda: _engine.Sequence.__new__(_engine.Sequence),
        lambda: _engine.Sequence(None),
        lambda: _engine.Model(None, ISAS[0], 1),
        lambda: _engine.Model(config, None, 1),
        lambda: _engine.Model(config, "avx9000", 1),
        lambda: _engine.Model(config, ISAS[0], 0),
        lambda: _engine.Model(config, ISAS[0], 257),
        lambda: model.load("wte.weight", None, 0),
        lambda: model.load("wte.weight", np.zeros((2, 3), dtype=np.float32), 0),
        lambda: model.load("wte.weight", np.zeros((2, 4), dtype=np.float32), 4),
        lambda: model.load("h.1.ln_1.weight", np.zeros((1, 4), dtype=np.float32), 0),
        lambda: model.load("h.x.ln_1.weight", np.zeros((1, 4), dtype=np.float32), 0),
        lambda: model.load("nothing", np.zeros((1, 4), dtype=np.float32), 0),
        lambda: model.job(None, 1, Plan(), 0, 0, stops),
        lambda: model.job(ids, 0, Plan(), 0, 0, stops),
        lambda: model.job(np.zeros(9, dtype=np.int32), 1, Plan(), 0, 0, stops),
        lambda: model.job(ids, 1, None, 0, 0, stops),
        lambda: model.job(ids + 9, 1, Plan(), 0, 0, stops),
        lambda: model.job(ids, 1, Plan(), 0, 0, stops, 129),
        lambda: model.job(ids, 1, Plan(), 0, 0, stops, -1),
        lambda: job_of("nothing"),
        lambda: job_of("top_k", count=0),
        lambda: job_of("suppress_tokens", ids=outside),
        lambda: job_of("logit_bias", ids=ids, values=values),
        lambda: job_of("bad_words", ids=np.array([2, 1], dtype=np.int32)),
        lambda: job_of("bad_words", ids=np.array([0], dtype=np.int32)),
        lambda: job_of("bad_words", ids=np.array([1, 5], dtype=np.int32)),
        lambda: job_of("dry", count=1, ids=outside),
        lambda: model.job(ids, 1, Plan(), 0, 0, stops).advance(values, values),
        lambda: model.apply_stages(Plan(), values, ids, stops),
        lambda: model.job(ids, 1, Plan(), 0, 0, stops).scores(),
        lambda: model.score([], [], [], 0),
        lambda: model.score([model.sequence()], [ids], [np.zeros(3, dtype=np.int32)], 0),
        lambda: model.score([model.sequence()], [ids], [outside], 0),
        lambda: model.score([model.sequence()], [ids], [ids], 129),
        lambda: model.score([model.sequence()], [ids[:0]], [ids[:0]], 0),
        lambda: model.score([None], [ids], [ids], 0),
        lambda: model.sequence().feed(np.full(2, 7, dtype=np.int32), 1),
        lambda: model.sequence().feed(np.zeros(5, dtype=np.int32), 1),
        lambda: model.sequence().feed(np.zeros(0, dtype=np.int32), 1),
        lambda: model.sequence().truncate(1),
        lambda: model.run([None], 1),
        lambda: model.run([], 1),
        lambda: model.run(None, 1),
    ):
        with pytest.raises((TypeError, ValueError, KeyError, AttributeError, RuntimeError)):
            make()
    twice = model.job(ids, 2, Plan(), 0, 0, stops)
    with pytest.raises(gpt2c.OptionError):
        model.run([twice, twice], 1)
    model.run([twice], 5)
    logits = np.zeros(5, dtype=np.float32)
    with pytest.raises(gpt2c.OptionError):  # the job has all its tokens
        twice.advance(logits, logits)
    waiting = model.job(ids, 2, Plan(), 0, 0, stops)
    waiting.next_logits()
    with pytest.raises(gpt2c.OptionError):
        waiting.next_logits()
    assert twice.finish_reason == "length"
    with pytest.raises(gpt2c.OptionError):
        model.run([twice], 1)


def test_generating_from_ids_builds_no_tokenizer(monkeypatch):
    """GPT-2's own tokenizer takes longer to build than a short completion."""
    monkeypatch.setattr(gpt2c.Tokenizer, "gpt2", lambda: pytest.fail("the tokenizer was built"))
    config = config_of(vocab_size=50257, n_layer=0, n_embd=3)
    checkpoint = from_arrays(config, random_weights(config))
    assert tokenizer_of(checkpoint) is None
    model = gpt2c.GPT2(checkpoint, None)
    assert len(model.generate([1, 2], max_new_tokens=2)) == 2
    monkeypatch.undo()
    assert model.tokenizer.encode("Hello world") == [15496, 995]
