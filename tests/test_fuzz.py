"""A short fuzz with fixed seeds; tools/soak/fuzz.py runs as many inputs as you ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("resource")  # the fuzzer limits its memory and time by Unix's calls
from fuzzing import KINDS, FindingError, run

import gpt2c
from gpt2c import GPT2

# AddressSanitizer is a few times slower.
SHARE = 6 if "ASAN_OPTIONS" in os.environ else 1
N_INPUTS = {"checkpoints": 6000 // SHARE, "tokenizers": 4000 // SHARE, "api": 6000 // SHARE}


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_errors_are_raised(kind: str) -> None:
    counts = run(kind, seed=7, n_inputs=N_INPUTS[kind])
    accepted = sum(count for name, count in counts.items() if name.endswith("accepted"))
    # Neither too few nor too many mutations are accepted.
    assert 0.03 < accepted / counts.total() < 0.6
    assert len(counts) >= 10


@pytest.mark.skipif(SHARE > 1, reason="AddressSanitizer reserves more addresses than the limit")
def test_the_soak_script_prints_its_seed_and_result_last() -> None:
    script = Path(__file__).parents[1] / "tools" / "soak" / "fuzz.py"
    command = [sys.executable, script, "api", "tokenizers", "--inputs", "150", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("fuzz api tokenizers: seed 3, 300 inputs in ")
    assert last.endswith(": nothing found")


def test_a_foreign_exception_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A foreign exception is a finding, and its input is kept."""

    def raises(*_: object) -> None:
        raise KeyError("foreign")

    monkeypatch.setattr("gpt2c.weights.checkpoint.llmc._header", raises)
    with pytest.raises(FindingError, match="KeyError: 'foreign'"):
        run("checkpoints", seed=7, n_inputs=500, keep=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 1


# Past findings: each used to raise a foreign exception or take unbounded memory.
PAST: dict[str, Callable[[GPT2], object]] = {
    "an array for a flag of encode": lambda m: m.tokenizer.encode(
        "<|endoftext|>", special=np.ones(8)
    ),
    "an array for a flag of feed": lambda m: m.session().feed([19, 48], all=np.arange(8)),
    "a trillion ids": lambda m: m.tokenizer.decode(range(2**40)),
    "a trillion stages": lambda m: m.generate("the", sampler_order=range(2**40)),
    "a trillion seeds": lambda m: m.generate("the", seed=range(2**40)),
    "a trillion stop ids": lambda m: m.generate("the", stop_token_ids=range(2**40)),
}


@pytest.mark.parametrize("name", PAST)
def test_past_findings(name: str) -> None:
    with pytest.raises(gpt2c.Error):
        PAST[name](GPT2.from_pretrained())


def test_prompts_of_ten_megabytes() -> None:
    model = GPT2.from_pretrained()
    for prompt in ("the king " * 1_100_000, "a" * 10_000_000, " " * 10_000_000, "\0é" * 3_000_000):
        with pytest.raises(gpt2c.ContextError):
            model.generate(prompt)
