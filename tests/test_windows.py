"""The C core, compiled for Windows, gives the same bits as this machine under Wine.

Needs Debian's package wine64 and the package ziglang, whose C compiler makes programs for Windows
(tools/ci/wine.sh installs both).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from c_programs import build, build_engine_bits, check_recorded_bits, digests_here, sources
from conftest import ISAS, ROOT
from test_os import CHECKS

WINE = Path("/usr/lib/wine/wine64")
COMPILER = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (WINE.exists() and importlib.util.find_spec("ziglang")),
        reason="wine64 and ziglang are missing (tools/ci/wine.sh installs them)",
    ),
    pytest.mark.skipif(not ISAS, reason="the engine is not compiled"),
]


@pytest.fixture(scope="module", autouse=True)
def wine(tmp_path_factory):
    """Make an empty installation of Windows, whose server runs until the tests end."""
    server = WINE.with_name("wineserver64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINEPREFIX", str(tmp_path_factory.mktemp("windows")))
        patch.setenv("WINEDEBUG", "-all")
        # Without pipes, because the services of Windows keep the first program's output open.
        subprocess.run([server, "--persistent"], check=True)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([WINE, "wineboot", "--init"], check=True, **quiet)
        yield
        subprocess.run([server, "--kill"], check=True)


def on_windows(*command: str | int | Path) -> str:
    """Return what a program for Windows prints, with Unix's line ends."""
    done = subprocess.run([WINE, *map(str, command)], check=True, capture_output=True)
    return done.stdout.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """Return engine_bits for Windows."""
    return build_engine_bits(
        COMPILER, "win-amd64", tmp_path_factory.mktemp("there") / "engine_bits.exe"
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> str:
    return digests_here(tmp_path_factory.mktemp("here"))


def test_windows(tmp_path):
    core = [path for path in sources("win-amd64") if path.parent.name == "os"]
    program = build(COMPILER, [ROOT / "tests/c/os_checks.c", *core], tmp_path / "os_checks.exe")
    assert on_windows(program).splitlines() == CHECKS


def test_windows_runs_the_sets_that_this_machine_runs(there):
    assert on_windows(there).split() == ISAS


@pytest.mark.parametrize(("isa", "threads"), [*((isa, 2) for isa in ISAS), ("scalar", 1)])
def test_windows_has_the_same_bits_as_this_machine(there, expected, isa, threads):
    assert on_windows(there, isa, threads) == expected


@pytest.mark.parametrize("isa", ISAS)
def test_windows_has_the_recorded_bits(there, tmp_path, isa):
    check_recorded_bits([WINE, there], isa, tmp_path)
