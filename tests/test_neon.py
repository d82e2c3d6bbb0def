"""ARM NEON in an emulator gives the same bits as this machine.

Needs Debian's packages gcc-aarch64-linux-gnu and qemu-user (tools/ci/neon.sh installs them).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ISAS, ROOT

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]


def build(compiler: str, to: Path, *flags: str) -> Path:
    sources = [*ROOT.glob("csrc/**/*.c"), ROOT / "tests/c/engine_bits.c"]
    command = [compiler, *FLAGS, *flags, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(to)]
    subprocess.run([*command, "-lm", "-lpthread"], check=True)
    return to


def digests(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"{COMPILER} and {EMULATOR} are missing (tools/ci/neon.sh installs them)",
)
def test_neon_has_the_same_bits_as_this_machine(tmp_path):
    here = build("cc", tmp_path / "here")
    there = build(COMPILER, tmp_path / "there", "-static")
    expected = digests(here, ISAS[0], 1)
    assert "logits 2 64 " in expected
    for isa in ISAS:
        assert digests(here, isa, 2) == expected
    for isa, threads in (("scalar", 1), ("neon", 1), ("neon", 3), ("neondot", 2)):
        assert digests(EMULATOR, there, isa, threads) == expected
