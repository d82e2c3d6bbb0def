"""Each function of csrc/os/os.h, with the files of every system that this machine can run."""

from __future__ import annotations

import shutil
import sys

import pytest
from c_programs import build, output
from conftest import ROOT

CHECKS = [
    "aligned memory", "arenas", "discarding", "offering", "mapping", "threads and locks",
    "wake-ups", "sleeping", "clocks", "CPUs",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="compiles Linux's files")
@pytest.mark.parametrize(
    "files",
    [
        ("posix", "futex", "linux", "mapping"),
        ("posix", "condition", "linux", "no_mapping"),  # macOS sleeps by condition
        ("posix", "condition", "unix", "no_mapping"),
    ],
    ids="-".join,
)
def test_the_operating_system(tmp_path, files):
    sources = [ROOT / "tests/c/os_checks.c", *(ROOT / f"csrc/os/{name}.c" for name in files)]
    program = build(["cc"], sources, tmp_path / "os_checks", "-lpthread")
    assert output(program).splitlines() == CHECKS
