"""Choose the engine that runs a model, compiled or NumPy's, and its instruction set."""

from __future__ import annotations

import os
from collections.abc import Callable

from gpt2c.checks.options import choice
from gpt2c.config import GPT2Config
from gpt2c.engine.memory import choose_cache_limit
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import BackendError, FallbackWarning, OptionError, warn

INSTALL_WHEEL = "pip install --force-reinstall --only-binary gpt2c gpt2c"
REINSTALL = "GPT2C_BUILD=require pip install --force-reinstall ."
BACKENDS = ("auto", "c", "numpy")
DTYPES = ("auto", "float32", "float64", "int8", "int4")
QUANTIZED = ("int8", "int4")


def new_model(
    config: GPT2Config,
    quantized_dtype: str | None,
    dtype: str,
    backend: str,
    n_threads: int,
    kv_cache_bytes: int | None = None,
) -> EngineModel:
    """Return a model on the chosen engine. Its weights are not loaded yet.

    quantized_dtype is the quantised dtype of the checkpoint, "int8" or "int4", or None;
    kv_cache_bytes is the limit of the KV cache, or None for the default.
    Raises OptionError for wrong options, and BackendError if the backend cannot run.
    """
    model = _new_model(config, quantized_dtype, dtype, backend, n_threads)
    model.cache_limit = choose_cache_limit(kv_cache_bytes, model)
    return model


def _new_model(
    config: GPT2Config, quantized_dtype: str | None, dtype: str, backend: str, n_threads: int
) -> EngineModel:
    choice("backend", backend, BACKENDS)
    choice("dtype", dtype, DTYPES)
    if backend == "auto":
        from_environment = os.environ.get("GPT2C_BACKEND") or "auto"
        backend = choice("GPT2C_BACKEND", from_environment, BACKENDS)
    may_dequantise = dtype == "auto"
    if may_dequantise:
        dtype = quantized_dtype or "float32"
    if dtype == "float64" and backend == "c":
        raise OptionError("dtype is 'float64', which only backend='numpy' supports")
    if may_dequantise and backend == "numpy":
        dtype = "float32"
    if dtype in QUANTIZED and backend == "numpy":
        raise OptionError(f"dtype is {dtype!r}, which only the compiled engine supports")
    if dtype != "float64" and backend != "numpy":
        make_model = compiled_model_maker(
            required=backend == "c" or (dtype in QUANTIZED and not may_dequantise)
        )
        if make_model is not None:
            return make_model(config, n_threads, dtype)
    from gpt2c.engine import numpy_engine  # lazily: a tenth of gpt2c's import time

    return numpy_engine.Model(config, "float32" if dtype in QUANTIZED else dtype)


def compiled_model_maker(required: bool) -> Callable[[GPT2Config, int, str], EngineModel] | None:
    """Return a function that makes models on the compiled engine.

    Its arguments are the configuration, the number of threads and the dtype. If the engine cannot
    run, raise BackendError if it is required, or else warn and return None.
    """
    try:
        isa = choose_isa()
    except BackendError as error:
        if required:
            raise
        warn(f"{error}; running on NumPy, which is far slower", FallbackWarning)
        return None
    from gpt2c.engine._engine import Model

    return lambda config, n_threads, dtype: Model(config, isa, n_threads, dtype)


def instruction_sets() -> list[tuple[str, bool]]:
    """Return the compiled instruction sets, slowest first: (name, whether this CPU can run it).

    Raises BackendError if the compiled engine is not installed.
    """
    try:
        from gpt2c.engine import _engine
    except ImportError as error:
        raise BackendError(
            f"gpt2c's compiled engine is not installed ({error}). Install gpt2c's wheel, which "
            f"includes it: {INSTALL_WHEEL}. Or, with a C compiler, install it from a clone: "
            f"{REINSTALL}"
        ) from None
    return _engine.instruction_sets()


def choose_isa() -> str:
    """Return the fastest instruction set that this CPU can run, or the one that GPT2C_ISA names.

    Raises OptionError if GPT2C_ISA names one that is unknown or that this CPU cannot run, and
    BackendError if the CPU can run none.
    """
    sets = dict(instruction_sets())
    supported = [name for name, runs in sets.items() if runs]
    forced = os.environ.get("GPT2C_ISA")
    if forced:
        if forced not in supported:
            why = "this CPU cannot run it" if forced in sets else "this name is unknown"
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
