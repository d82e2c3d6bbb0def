"""Fixtures shared by the tests: every backend, random models, the data beside the checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

import gpt2c
from gpt2c import GPT2, GPT2Config
from gpt2c.config import tensor_shapes
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import from_arrays, open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
FORMATS = FIXTURES / "formats"
TRAINERS = FIXTURES / "trainers"
TINY = FIXTURES / "transformers" / "tiny"
TALES = Path(gpt2c.__file__).parent / "models" / "tales"

# The share of their random cases that tests run. tools/ci/sanitize.sh lowers it.
SHARE = float(os.environ.get("GPT2C_TEST_SHARE", "1"))


def cases(n: int) -> int:
    """Return how many random cases to run of the n that a full run has."""
    return max(1, round(SHARE * n))


# Fixed seeds and no deadline, so that a failure is reproducible in later runs and elsewhere.
settings.register_profile("gpt2c", derandomize=True, deadline=None, max_examples=cases(100))
settings.load_profile("gpt2c")

# Background jobs of scripts, nohup and some CI systems start programs with SIGINT ignored or
# blocked. Child processes inherit that and would not see the SIGINT that tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "pthread_sigmask"):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _instruction_sets() -> list[str]:
    try:
        from gpt2c.engine import _engine
    except ImportError:
        return []
    return [name for name, runs in _engine.instruction_sets() if runs]


ISAS = _instruction_sets()
needs_engine = pytest.mark.skipif(not ISAS, reason="the engine is not compiled")
if ISAS:
    # Let models with three or seven threads run on that many threads, even on fewer CPUs. The tests
    # of equal bits and of idle workers need this.
    from gpt2c.engine import _engine

    _engine.pretend_cpus(16)
# Pairs that differ only in their integer kernels. Tests of float kernels run the first of each pair
# where the CPU has it, and the second otherwise.
_SAME_FLOATS = {"avxvnni": "avx2", "avx512vnni": "avx512", "neondot": "neon", "neoni8mm": "neondot"}
FLOAT_ISAS = [i for i in ISAS if i not in {_SAME_FLOATS.get(other) for other in ISAS}]
BACKENDS = ["numpy", *FLOAT_ISAS]
CONFIG_DEFAULTS = {
    "vocab_size": 50,
    "n_positions": 40,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "eos_token_id": None,
    "bos_token_id": None,
}


def config_of(**options: Any) -> GPT2Config:
    """Return a small configuration: CONFIG_DEFAULTS, changed by the options."""
    return GPT2Config(**{**CONFIG_DEFAULTS, **options})


def random_weights(config: GPT2Config, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return weights large enough that every part of the model affects the logits."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = 0.3 * rng.standard_normal(shape)
        if "ln_" in name and name.endswith("weight"):
            values += 1
        weights[name] = values.astype(np.float32)
    return weights


def model_on(backend: str, config: GPT2Config, weights: Mapping[str, Any], **options: Any) -> GPT2:
    """Return a model on a backend: "numpy", or an instruction set of the compiled engine.

    It has no prefix cache, so that tests that compare two calls compute everything twice.
    """
    options = {"prefix_cache_bytes": 0, **options}
    checkpoint = from_arrays(config, weights)
    return on_backend(
        backend, lambda b: GPT2(checkpoint, MissingTokenizer("a test"), backend=b, **options)
    )


def on_backend(backend: str, make: Callable[[str], GPT2]) -> GPT2:
    """Return make("numpy"), or make("c") with GPT2C_ISA set to the instruction set `backend`."""
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


def load(path: Path, backend: str = "numpy", **options: Any) -> GPT2:
    """Load a checkpoint on a backend: "numpy", or an instruction set of the compiled engine."""
    return on_backend(backend, lambda b: GPT2.from_pretrained(path, backend=b, **options))


def arrays_of(path: Path, **options: Any) -> dict[str, NDArray[np.float32]]:
    """Read every tensor of a checkpoint."""
    with open_checkpoint(path, **options) as checkpoint:
        return checkpoint.read_all()


def assert_arrays_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that both have the same names, in the same order, and the same numbers."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def logit_atol(logits: NDArray[Any]) -> float:
    """Return the tolerance for two float32 computations that round in different orders.

    It is a few ULP of the largest logit.
    """
    return 16 * float(np.finfo(np.float32).eps) * float(np.abs(logits).max())


def assert_logits_close(found: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    """Check that the logits equal another library's float32 logits within `logit_atol`."""
    theirs = theirs.reshape(found.shape)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=logit_atol(theirs))


@pytest.fixture(scope="session")
def tales() -> GPT2:
    """The embedded model, on the fastest engine."""
    return GPT2.from_pretrained()


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package behave as if it had been installed without a compiler."""
    monkeypatch.setitem(sys.modules, "gpt2c.engine._engine", None)
    monkeypatch.delattr(gpt2c.engine, "_engine", raising=False)


@pytest.fixture
def no_preferences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the environment variables that choose a backend."""
    monkeypatch.delenv("GPT2C_BACKEND", raising=False)
    monkeypatch.delenv("GPT2C_ISA", raising=False)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn: NumPy, and the instruction sets of the fixture `isa`."""
    return str(request.param)


_NONE = [pytest.param("none", marks=pytest.mark.skip("not compiled"))]


@pytest.fixture(params=FLOAT_ISAS or _NONE)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of the compiled engine that has its own float kernels, in turn."""
    return str(request.param)


@pytest.fixture(params=ISAS or _NONE)
def any_isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of the compiled engine in turn, for tests of integer kernels."""
    return str(request.param)


def in_threads(work: Callable[[Any], object], arguments: Iterable[Any]) -> None:
    """Call work(argument) in a thread for each argument at the same time; wait for all."""
    threads = [threading.Thread(target=work, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def import_lazy_modules() -> None:
    """Import the modules that gpt2c imports at their first use.

    For programs that interrupt calls: if Ctrl-C arrives while Python makes a module's dataclasses,
    CPython ends the process with the status of SIGINT, even if the program catches the interrupt.
    """
    measure = ("measure.options", "measure.texts")
    for name in ("look.probing", *measure, "schedule.beams", "schedule.searching"):
        import_module(f"gpt2c.{name}")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until condition() is true; fail after 20 seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing happened in 20 seconds"
        time.sleep(0.002)


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the processes that share weights, which the test alone uses.

    No file is too new to be shared.
    """
    folder = tmp_path / "lists"
    monkeypatch.setenv("GPT2C_SHARED_FOLDER", str(folder))
    monkeypatch.setattr("gpt2c.weights.sharing.key._TICK", 0)
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """subprocess.Popen; the process is killed at the end of the test, passed or failed."""
    started: list[subprocess.Popen[Any]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()  # does nothing if the process has ended and was waited for
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # close() flushes to a process that is gone
                    pipe.close()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two descriptors of a pseudo-terminal: the test's, to read output, and the program's.

    The fixture closes them; the test must not.
    """
    pty = pytest.importorskip("pty")
    try:
        ours, theirs = pty.openpty()
    except OSError as reason:
        pytest.skip(f"no pseudo-terminals here: {reason}")
    yield ours, theirs
    os.close(theirs)
    os.close(ours)


def shared_data() -> Path | None:
    """Return the folder of models and texts beside the checkout, or None if it is missing."""
    from_environment = os.environ.get("GPT2C_SHARED")
    folder = (
        Path(from_environment)
        if from_environment
        else Path(__file__).resolve().parents[2] / "shared"
    )
    return folder / "data" if (folder / "data").is_dir() else None


def shared_file(path: str) -> Path:
    """Return a file or folder of the shared data, or skip the test where it is missing."""
    folder = shared_data()
    if folder is None or not (folder / path).exists():
        pytest.skip(f"the folder shared/ with data/{path} is not beside the checkout")
    return folder / path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data."""
    return shared_file("")
