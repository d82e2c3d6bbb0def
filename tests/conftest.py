"""Fixtures that several tests share: every backend, random models, the data beside the project."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from gpt2c import GPT2, GPT2Config
from gpt2c.config import tensor_shapes
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import from_arrays

FIXTURES = Path(__file__).parent / "fixtures"

# A failure must come again in the next run and on other machines: no random seed, no deadline.
settings.register_profile("gpt2c", derandomize=True, deadline=None)
settings.load_profile("gpt2c")

# A background job of a script, nohup and some CI systems start programs with SIGINT ignored (or
# blocked), and their children inherit that: nobody would notice the Ctrl-C that tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _instruction_sets() -> list[str]:
    try:
        from gpt2c.engine import _engine
    except ImportError:
        return []
    return [name for name, runs in _engine.instruction_sets() if runs]


ISAS = _instruction_sets()
if ISAS:
    # Models of three or seven threads run on as many, however few CPUs there are: tests of bits and
    # of waiting need them all.
    from gpt2c.engine import _engine

    _engine.pretend_cpus(16)
# Of those that share all but their integer kernels the last, which runs wherever it can.
_SAME_FLOATS = {"avxvnni": "avx2", "avx512vnni": "avx512", "neondot": "neon"}
FLOAT_ISAS = [i for i in ISAS if i not in {_SAME_FLOATS.get(other) for other in ISAS}]
BACKENDS = ["numpy", *FLOAT_ISAS]
SHAPES = {
    "vocab_size": 50,
    "n_positions": 40,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "eos_token_id": None,
    "bos_token_id": None,
}


def config_of(**options: Any) -> GPT2Config:
    return GPT2Config(**{**SHAPES, **options})


def random_weights(config: GPT2Config, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights large enough that every part of the model matters to the logits."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = 0.3 * rng.standard_normal(shape)
        if "ln_" in name and name.endswith("weight"):
            values += 1
        weights[name] = values.astype(np.float32)
    return weights


def model_on(backend: str, config: GPT2Config, weights: Mapping[str, Any], **options: Any) -> GPT2:
    """A model on "numpy" or on a named instruction set of the compiled engine."""
    checkpoint = from_arrays(config, weights)
    return on_backend(
        backend, lambda b: GPT2(checkpoint, MissingTokenizer("a test"), backend=b, **options)
    )


def on_backend(backend: str, make: Callable[[str], GPT2]) -> GPT2:
    if backend == "numpy":
        return make("numpy")
    before = os.environ.get("GPT2C_ISA")
    os.environ["GPT2C_ISA"] = backend
    try:
        return make("c")
    finally:
        if before is None:
            del os.environ["GPT2C_ISA"]
        else:
            os.environ["GPT2C_ISA"] = before


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn: NumPy, and every instruction set that this CPU has."""
    return str(request.param)


_NONE = [pytest.param("none", marks=pytest.mark.skip("not compiled"))]


@pytest.fixture(params=FLOAT_ISAS or _NONE)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of the compiled engine that has float kernels of its own, in turn."""
    return str(request.param)


@pytest.fixture(params=ISAS or _NONE)
def any_isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of the compiled engine in turn, for what integer kernels compute."""
    return str(request.param)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """subprocess.Popen, but no process outlives the test, however that ends."""
    started: list[subprocess.Popen[Any]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()  # nothing where it has ended and was waited for
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # what nobody will read is still to be written
                    pipe.close()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal's two descriptors: the one that sees what programs show, and theirs.

    They are closed after the test, not in it.
    """
    pty = pytest.importorskip("pty")
    try:
        ours, theirs = pty.openpty()
    except OSError as reason:
        pytest.skip(f"there are no pseudo-terminals here: {reason}")
    yield ours, theirs
    os.close(theirs)
    os.close(ours)


def shared_data() -> Path | None:
    """The folder of models and texts that lies beside the project's checkout, where it does."""
    named = os.environ.get("GPT2C_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder / "data" if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_data()
    if folder is None:
        pytest.skip("the folder shared/ with models and texts is not beside the checkout")
    return folder
