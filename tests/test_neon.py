"""ARM NEON in an emulator gives the same bits as this machine.

Needs Debian's packages gcc-aarch64-linux-gnu and qemu-user (tools/ci/neon.sh installs them).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from c_programs import build_engine_bits, check_recorded_bits, digests_here, output
from conftest import ISAS

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
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


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """Return engine_bits for AArch64."""
    folder = tmp_path_factory.mktemp("there")
    flags = ("-static", "-lm", "-lpthread")
    return build_engine_bits([COMPILER], "linux-aarch64", folder / "engine_bits", *flags)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> str:
    return digests_here(tmp_path_factory.mktemp("here"))


@pytest.mark.parametrize(
    ("isa", "threads"),
    [("scalar", 1), ("neon", 1), ("neon", 3), ("neondot", 2), ("neoni8mm", 1), ("neoni8mm", 3)],
)
def test_neon_has_the_same_bits_as_this_machine(there, expected, isa, threads):
    assert output(EMULATOR, "-cpu", "max", there, isa, threads) == expected


@pytest.mark.skipif(not ISAS, reason="the engine is not compiled")
@pytest.mark.skipif(not ISAS, reason="the engine is not compiled")
@pytest.mark.parametrize("isa", CPUS["max"])
def test_neon_has_the_recorded_bits(there, tmp_path, isa):
    check_recorded_bits([EMULATOR, "-cpu", "max", there], isa, tmp_path)


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
