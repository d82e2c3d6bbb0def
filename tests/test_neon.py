"""ARM NEON in an emulator gives the same bits as this machine.

Needs Debian's packages gcc-aarch64-linux-gnu and qemu-user (tools/ci/neon.sh installs them).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from conftest import ISAS, ROOT, config_of
from golden_models import CONFIGS, ids_of, weights_of

from gpt2c import GPT2Config

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SOURCES = [ROOT / name for name in run_path(str(ROOT / "csrc/sources.py"))["c_sources"]("linux")]
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
# The emulator's CPUs, from Arm's manuals: the Cortex-A72 has neither extension, the Cortex-A76 has
# dot products. "max" has everything that the emulator knows.
CPUS = {
    "cortex-a72": ["scalar", "neon"],
    "cortex-a76": ["scalar", "neon", "neondot"],
    "max": ["scalar", "neon", "neondot", "neoni8mm"],
}
# Instruction words with the bits of their registers masked out (Arm's manual, A64: SDOT (vector),
# USDOT (vector) and USMMLA (vector), all for 128 bits).
WORDS = {0x4E809400: "sdot", 0x4E809C00: "usdot", 0x4E80AC00: "usmmla"}
NO_REGISTERS = 0xFFE0FC00

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f"{COMPILER} and {EMULATOR} are missing (tools/ci/neon.sh installs them)",
    ),
]


def build(compiler: str, to: Path, *flags: str) -> Path:
    sources = [*SOURCES, ROOT / "tests/c/engine_bits.c"]
    command = [compiler, *FLAGS, *flags, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(to)]
    subprocess.run([*command, "-lm", "-lpthread"], check=True)
    return to


def output(*command: str | int | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """Return engine_bits for AArch64."""
    return build(COMPILER, tmp_path_factory.mktemp("there") / "engine_bits", "-static")


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> str:
    """Return what engine_bits prints on this machine, on every instruction set."""
    here = build("cc", tmp_path_factory.mktemp("here") / "engine_bits")
    digests = output(here, ISAS[0], 1)
    assert "logits 2 64 " in digests
    for isa in ISAS:
        assert output(here, isa, 2) == digests
    return digests


@pytest.mark.parametrize(
    ("isa", "threads"),
    [("scalar", 1), ("neon", 1), ("neon", 3), ("neondot", 2), ("neoni8mm", 1), ("neoni8mm", 3)],
)
def test_neon_has_the_same_bits_as_this_machine(there, expected, isa, threads):
    assert output(EMULATOR, "-cpu", "max", there, isa, threads) == expected


def model_file(config: GPT2Config, dtype: str) -> bytes:
    """Return a model of golden_models.py, and its token ids, as engine_bits.c reads them."""
    from gpt2c.engine._engine import ENUMS

    c, is_quantised, n_scales = config, dtype != "float32", 16
    parts = [
        struct.pack(
            "<14if", ENUMS["dtypes"][dtype], ENUMS["dtypes"]["int8" if is_quantised else dtype],
            is_quantised, n_scales, c.vocab_size, c.n_positions, c.n_embd, c.n_layer, c.n_head,
            c.inner, ENUMS["activations"][c.activation], c.tie_word_embeddings,
            c.scale_attn_weights, c.scale_attn_by_inverse_layer_idx, c.layer_norm_epsilon,
        ),
        ids_of(config).astype("<i4").tobytes(),
    ]  # fmt: skip
    weights = weights_of(config)
    parts.append(struct.pack("<i", len(weights)))
    for name, values in weights.items():
        _, layer, tensor = name.split(".", 2) if name.startswith("h.") else ("", 0, name)
        shape = np.atleast_2d(values).shape
        parts.append(struct.pack("<4i", ENUMS["tensors"][tensor], int(layer), *shape))
        parts.append(values.astype("<f4").tobytes())
    return b"".join(parts)


@pytest.mark.skipif(not ISAS, reason="the engine is not compiled")
@pytest.mark.parametrize("isa", CPUS["max"])
def test_neon_has_the_recorded_bits(there, tmp_path, isa):
    record = json.loads((ROOT / "tests/golden_bits.json").read_text())
    path = tmp_path / "model"
    for dtype in ("float32", "int8", "int4"):
        for name, options in CONFIGS.items():
            path.write_bytes(model_file(config_of(**options), dtype))
            command = [EMULATOR, "-cpu", "max", there, isa, "2", path]
            logits = subprocess.run(command, check=True, capture_output=True).stdout
            assert hashlib.sha256(logits).hexdigest() == record[dtype][f"{name}, logits"]


@pytest.mark.parametrize("cpu", CPUS)
def test_each_cpu_runs_the_sets_that_it_supports(there, cpu):
    """The last one is the one that the engine chooses (test_backend.py)."""
    assert output(EMULATOR, "-cpu", cpu, there).split() == CPUS[cpu]


@pytest.mark.parametrize("cpu", [cpu for cpu in CPUS if cpu != "max"])
def test_a_cpu_refuses_the_sets_that_it_lacks(there, cpu):
    for isa in [isa for isa in CPUS["max"] if isa not in CPUS[cpu]]:
        refused = subprocess.run([EMULATOR, "-cpu", cpu, there, isa, "1"], capture_output=True)
        assert refused.returncode == 2


@pytest.mark.parametrize("cpu", CPUS)
def test_the_fastest_set_runs_its_instructions_on_its_cpu(there, expected, tmp_path, cpu):
    log = tmp_path / "log"  # the code that the emulator has translated, and therefore run
    isa = CPUS[cpu][-1]
    assert output(EMULATOR, "-cpu", cpu, "-d", "in_asm", "-D", log, there, isa, 1) == expected
    words = re.findall(r"^0x[0-9a-f]+: +([0-9a-f]{8})\b", log.read_text(), re.MULTILINE)
    assert len(words) > 10000
    used = {WORDS.get(int(word, 16) & NO_REGISTERS) for word in words} - {None}
    assert used == {"neon": set(), "neondot": {"sdot"}, "neoni8mm": {"usdot", "usmmla"}}[isa]
