"""Which engine runs a model: the compiled one, or NumPy; and on which instruction set."""

from __future__ import annotations

import os
from collections.abc import Callable

from gpt2c.checks.options import choice
from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import BackendError, FallbackWarning, OptionError, warn

REINSTALL = "GPT2C_BUILD=require pip install --force-reinstall ."
BACKENDS = ("auto", "c", "numpy")
DTYPES = ("auto", "float32", "float64", "int8", "int4")
QUANTIZED = ("int8", "int4")


def new_model(
    config: GPT2Config, packing: str | None, dtype: str, backend: str, n_threads: int
) -> EngineModel:
    """Return an engine's model whose weights are not loaded yet.

    packing is what the checkpoint was quantised to, "int8" or "int4", or None.
    Raises OptionError, and BackendError where the backend cannot run.
    """
    choice("backend", backend, BACKENDS)
    choice("dtype", dtype, DTYPES)
    if backend == "auto":
        named = os.environ.get("GPT2C_BACKEND") or "auto"
        backend = choice("GPT2C_BACKEND", named, BACKENDS)
    if dtype == "auto":
        dtype, may_widen = packing or "float32", True
    else:
        may_widen = False
    if dtype == "float64" and backend == "c":
        raise OptionError("dtype is 'float64', which runs on backend='numpy' alone")
    if may_widen and backend == "numpy":
        dtype = "float32"
    if dtype in QUANTIZED and backend == "numpy":
        raise OptionError(f"dtype is {dtype!r}, which runs on the compiled engine alone")
    if dtype != "float64" and backend != "numpy":
        engine = compiled_engine(required=backend == "c" or (dtype in QUANTIZED and not may_widen))
        if engine is not None:
            return engine(config, n_threads, dtype)
    from gpt2c.engine import numpy_engine  # here because its import is a tenth of ours

    return numpy_engine.Model(config, "float32" if dtype in QUANTIZED else dtype)


def compiled_engine(required: bool) -> Callable[[GPT2Config, int, str], EngineModel] | None:
    """What makes a model on the compiled engine; None, with a warning, where it cannot run."""
    try:
        isa = choose_isa()
    except BackendError as error:
        if required:
            raise
        warn(f"{error}; running on NumPy, far slower", FallbackWarning)
        return None
    from gpt2c.engine._engine import Model

    return lambda config, n_threads, dtype: Model(config, isa, n_threads, dtype)


def instruction_sets() -> list[tuple[str, bool]]:
    """Names of the compiled instruction sets, slowest first, each with whether it runs here.

    Raises BackendError where the compiled engine is not installed.
    """
    try:
        from gpt2c.engine import _engine
    except ImportError as error:
        raise BackendError(
            f"gpt2c's compiled engine is not installed ({error}). "
            f"With a C compiler at hand, reinstall it from a clone: {REINSTALL}"
        ) from None
    return _engine.instruction_sets()


def choose_isa() -> str:
    """The fastest instruction set that runs here, or the one that GPT2C_ISA names.

    Raises OptionError where GPT2C_ISA names none, BackendError where none runs.
    """
    sets = dict(instruction_sets())
    supported = [name for name, runs in sets.items() if runs]
    forced = os.environ.get("GPT2C_ISA")
    if forced:
        if forced not in supported:
            why = "this CPU cannot run it" if forced in sets else "there is no such name"
            raise OptionError(
                f"GPT2C_ISA is {forced!r}: {why}; here it may be {', '.join(supported) or 'none'}"
            )
        return forced
    if not supported:
        raise BackendError(
            "gpt2c's compiled engine needs a CPU with fused multiply-add (FMA), which this one "
            "lacks"
        )
    return supported[-1]
