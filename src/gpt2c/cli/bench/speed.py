"""Measure speed, its share of the machine's limits, start-up and memory for ``gpt2c bench``."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import Plan
from gpt2c.errors import OptionError
from gpt2c.files import replace_file
from gpt2c.formats.tensors import PackedSource
from gpt2c.look.plots import new_figure
from gpt2c.weights.loading import loaded_checkpoint

if TYPE_CHECKING:
    from gpt2c.config import GPT2Config
    from gpt2c.model import GPT2

PREFILL_TOKENS: Final = 512  # the length of the prompt whose prefill is measured
PROMPT_TOKENS: Final = 16  # the length of the prompts of batches and of fresh processes
DECODE_TOKENS: Final = 24  # measured tokens per run
DECODE_DEPTHS: Final = (16, 256, 1000)  # tokens in the KV cache before the measured tokens
BATCH_SIZES: Final = (8, 32)  # sequences
BATCH_TOKENS: Final = 64  # new tokens per sequence of a batch
_FLOAT_BYTES: Final = 4
_MIN_REPEAT_SECONDS: Final = 0.1  # a repeat has several runs if one run is shorter

# A program for a fresh process: it prints an empty line at its first token, then its peak memory.
_FRESH_PROGRAM = """
import json
import sys
import gpt2c
path, dtype, options_json, threads, n_prompt, n_new = *sys.argv[1:4], *map(int, sys.argv[4:])
options = {"dtype": dtype, "threads": threads, **json.loads(options_json)}
model = gpt2c.GPT2.from_pretrained(path or None, **options)
stream = model.stream(list(range(n_prompt)), max_new_tokens=n_new)
next(stream)
print(flush=True)
for _ in stream:
    pass
from gpt2c.cli.bench.speed import peak_bytes
print(peak_bytes() or "")
"""


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    `values` has one number per repeat. `bandwidth` and `fma` have the share of the machine's limits
    that each repeat reached, or are empty if that is unknown. The limits are measured before and
    after each repeat.
    """

    name: str
    unit: str  # "tok/s", "s" or "MB"
    values: list[float]
    bandwidth: list[float] = field(default_factory=list)
    fma: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)


def measure(
    model: GPT2, path: str | None, repeats: int, options: Mapping[str, Any] | None = None
) -> Iterator[Measurement]:
    """Yield each measurement as soon as it is made.

    `path` and `options` are the arguments of from_pretrained that the model was loaded with.

    Raises OptionError if the context is too short to measure anything.
    """
    n_positions = model.config.n_positions
    if n_positions < PROMPT_TOKENS + DECODE_TOKENS:
        raise OptionError(
            f"the model has a context of {n_positions} positions; bench needs "
            f"{PROMPT_TOKENS + DECODE_TOKENS}"
        )
    yield _measure_prefill(model, min(PREFILL_TOKENS, n_positions), repeats)
    for depth in DECODE_DEPTHS:
        if depth + DECODE_TOKENS <= n_positions:
            yield _measure_decode(model, depth, repeats)
    for size in BATCH_SIZES:
        yield _measure_batch(model, size, repeats)
    yield from _measure_fresh_process(model, path, repeats, options or {})


def _measure_prefill(model: GPT2, n: int, repeats: int) -> Measurement:
    ids = _random_ids(model, n)
    engine = model._engine

    def run() -> float:
        return _timed(lambda: engine.run([job_without_eos(model, ids, 1)], 1))

    flops = _flops(model.config, 0, n) + _lm_head_flops(model.config)
    return _measure_speed(f"prompt of {n}", model, repeats, run, n, 0, flops)


def _measure_decode(model: GPT2, depth: int, repeats: int) -> Measurement:
    engine = model._engine
    ids = _random_ids(model, depth)

    def run() -> float:
        job = job_without_eos(model, ids, DECODE_TOKENS + 1)
        engine.run([job], 1)
        return _timed(lambda: engine.run([job], DECODE_TOKENS))

    n_bytes = DECODE_TOKENS * (
        _weight_bytes(model) + _cache_bytes(model, depth + DECODE_TOKENS // 2)
    )
    flops = _flops(model.config, depth, DECODE_TOKENS) + DECODE_TOKENS * _lm_head_flops(
        model.config
    )
    return _measure_speed(f"decode at {depth}", model, repeats, run, DECODE_TOKENS, n_bytes, flops)


def _measure_batch(model: GPT2, size: int, repeats: int) -> Measurement:
    engine = model._engine
    n = min(BATCH_TOKENS, model.config.n_positions - PROMPT_TOKENS)

    def run() -> float:
        jobs = [
            job_without_eos(model, _random_ids(model, PROMPT_TOKENS, seed), n)
            for seed in range(size)
        ]
        return _timed(lambda: engine.run(jobs, n))

    c = model.config
    n_bytes = n * (_weight_bytes(model) + size * _cache_bytes(model, PROMPT_TOKENS + n // 2))
    flops = size * (_flops(c, 0, PROMPT_TOKENS + n - 1) + n * _lm_head_flops(c))
    return _measure_speed(f"batch of {size}", model, repeats, run, size * n, n_bytes, flops)


def _measure_fresh_process(
    model: GPT2, path: str | None, repeats: int, options: Mapping[str, Any]
) -> Iterator[Measurement]:
    n_new = min(128, model.config.n_positions - PROMPT_TOKENS)
    command = [sys.executable, "-c", _FRESH_PROGRAM, path or "", model.dtype, json.dumps(options)]
    command += [str(model.threads), str(PROMPT_TOKENS)]
    seconds, megabytes = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        with subprocess.Popen([*command, str(n_new)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seconds.append(time.perf_counter() - begin)
            if last := process.stdout.read().strip():
                megabytes.append(int(last) / 1e6)
    yield Measurement("first token of a fresh process", "s", seconds)
    if megabytes:
        yield Measurement(f"peak memory after {n_new} tokens", "MB", megabytes)


def peak_bytes() -> int:
    """Return this process's peak resident memory, in bytes; 0 if the system does not say."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["VmHWM"].split()[0]) << 10
    except OSError:  # not Linux; on Linux, ru_maxrss can include the memory of the parent
        pass
    if sys.platform == "win32":
        from gpt2c.engine.windows import peak_resident_bytes

        return peak_resident_bytes() or 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _measure_speed(
    name: str,
    model: GPT2,
    repeats: int,
    run: Callable[[], float],
    n_tokens: int,
    n_bytes: float,
    flops: float,
) -> Measurement:
    """Warm up with one run, then measure each repeat between two measurements of the limits.

    `run` returns its duration in seconds. `n_tokens`, `n_bytes` and `flops` are the tokens, the
    bytes read and the float operations of one run. For 0 bytes, no bandwidth is reported.
    """
    runs_per_repeat = math.ceil(_MIN_REPEAT_SECONDS / max(run(), 1e-6))
    speeds, bandwidth, fma = [], [], []
    before = _measure_limits(model)
    for _ in range(repeats):
        seconds = sum(run() for _ in range(runs_per_repeat)) / runs_per_repeat
        after = _measure_limits(model)
        max_bandwidth, max_fma = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        before = after
        speeds.append(n_tokens / seconds)
        if n_bytes and math.isfinite(max_bandwidth):
            bandwidth.append(n_bytes / seconds / max_bandwidth)
        if math.isfinite(max_fma):
            fma.append(flops / seconds / max_fma)
    return Measurement(name, "tok/s", speeds, bandwidth, fma)


def _measure_limits(model: GPT2) -> tuple[float, float]:
    """Return the machine's streaming bandwidth in bytes/s and its FMA rate in flop/s.

    Each rate is the median of three measurements, because another process may disturb one.
    """
    engine = model._engine
    return (
        statistics.median(engine.stream_rate() for _ in range(3)),
        statistics.median(engine.multiply_add_rate() for _ in range(3)),
    )


def _timed(run: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def job_without_eos(model: GPT2, ids: NDArray[np.int32], n_new: int) -> Any:
    """Return a greedy job that generates n_new tokens after `ids`, whatever the EOS token."""
    return model._engine.job(ids, n_new, Plan(), 0, 0, np.empty(0, dtype=np.int32))


def _random_ids(model: GPT2, n: int, seed: int = 0) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.config.vocab_size, n, dtype=np.int32)


# ---- bytes read and float operations ----


def _n_block_weights(c: GPT2Config) -> int:
    """Return the number of weights in the matrices of all blocks."""
    return c.n_layer * (4 * c.n_embd * c.n_embd + 2 * c.n_embd * c.inner)


def _weight_bytes(model: GPT2) -> int:
    """Return the bytes of the matrices that each token reads, as they are stored."""
    c = model.config
    if model.dtype in ("int8", "int4"):
        sources = loaded_checkpoint(model._engine, c).tensors
        # An untied wte.weight, the first tensor, is only looked up.
        matrices = list(sources.values())[0 if c.tie_word_embeddings else 1 :]
        return sum(math.prod(s.packed_shape) for s in matrices if isinstance(s, PackedSource))
    return _FLOAT_BYTES * (_n_block_weights(c) + c.vocab_size * c.n_embd)


def _cache_bytes(model: GPT2, n: int) -> int:
    """Return the bytes of the keys and values of n positions."""
    c, element_bytes = model.config, 2 if model.dtype in ("int8", "int4") else _FLOAT_BYTES
    return element_bytes * 2 * c.n_layer * c.n_embd * n


def _lm_head_flops(c: GPT2Config) -> int:
    """Count the float operations that compute one token's logits."""
    return 2 * c.vocab_size * c.n_embd


def _flops(c: GPT2Config, begin: int, n: int) -> int:
    """Count the float operations of n tokens from position `begin`, without lm_head."""
    attended = n * begin + n * (n + 1) // 2  # the attended positions, summed over the tokens
    return 2 * _n_block_weights(c) * n + 4 * c.n_layer * c.n_embd * attended


# ---- output ----


def header() -> str:
    """Return the table's header."""
    return f"{'':32}{'median':>12}  {'min .. max':>20}  {'of bandwidth':>12}  {'of FMA peak':>11}"


def line(m: Measurement) -> str:
    """Return a measurement as a line of the table."""
    digits = 2 if m.unit == "s" else 0
    min_max = f"{min(m.values):,.{digits}f} .. {max(m.values):,.{digits}f}"
    median = f"{m.median:,.{digits}f} {m.unit}"
    bandwidth, fma = _median_percent(m.bandwidth), _median_percent(m.fma)
    return f"{m.name:32}{median:>12}  {min_max:>20}  {bandwidth:>12}  {fma:>11}"


def _median_percent(shares: list[float]) -> str:
    return f"{statistics.median(shares):.0%}" if shares else ""


def json_fields(m: Measurement) -> dict[str, Any]:
    """Return a measurement's fields and its median, for JSON."""
    return {**asdict(m), "median": m.median}


def plot(measurements: list[Measurement], title: str, path: str) -> None:
    """Draw speeds and their shares of the machine's limits; write a PNG file to `path`.

    Raises MissingDependencyError without matplotlib, and OSError if the file cannot be written.
    """
    figure = new_figure("constrained")
    speeds = [m for m in measurements if m.unit == "tok/s"]
    names = [m.name for m in speeds]
    figure.set_size_inches(10, 0.6 * len(speeds) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title)
    bars = left.barh(names, [m.median for m in speeds], color="tab:blue")
    left.bar_label(bars, fmt="{:,.0f}", padding=3)
    left.margins(x=0.15)
    left.set_xlabel("tokens per second")
    left.invert_yaxis()
    for shares, label, offset in (
        ([m.bandwidth for m in speeds], "streaming bandwidth", -0.2),
        ([m.fma for m in speeds], "FMA peak", 0.2),
    ):
        percent = [100 * statistics.median(s) if s else 0 for s in shares]
        right.barh([i + offset for i in range(len(speeds))], percent, 0.4, label=label)
    right.axvline(100, color="gray", linewidth=1)
    right.set_xlabel("% of this machine's limit")
    right.legend(loc="lower right")
    temporary = Path(f"{path}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    replace_file(temporary, Path(path))
