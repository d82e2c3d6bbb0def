"""Installation from wheel and sdist, with and without a compiler. Needs the package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import FIXTURES, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree"),
]

# What the message without a compiler advises.
WHEEL_ADVICE = "pip install --only-binary gpt2c gpt2c"

# Runs the installed package, not the sources.
PROGRAM = """
import sys, warnings, gpt2c
warnings.simplefilter("error" if sys.argv[2] == "c" else "ignore")
model = gpt2c.GPT2.from_pretrained(sys.argv[1])
print(gpt2c.__version__, model.backend, model.generate([2, 0, 1, 0, 2, 1]))
assert gpt2c.Tokenizer.gpt2().encode("hello world") == [31373, 995]
assert "site-packages" in gpt2c.__file__
"""


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return its stdout and stderr; pip prints a build's output to stderr."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def wheel_of(source: Path, folder: Path, mode: str, **environment: str) -> tuple[Path, str]:
    output = run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", folder, source,
        GPT2C_BUILD=mode, **environment,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel, output


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The sdist of this tree, a wheel built from it, and an sdist made after that build.

    The README's first command builds in a clone in the same way.
    """
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "install", "-q", "build")
    sdist = sdist_of(ROOT, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "tree", filter="data")
    (tree,) = (folder / "tree").iterdir()
    wheel, _ = wheel_of(tree, folder / "wheel", "require")
    return {"sdist": sdist, "wheel": wheel, "sdist_after": sdist_of(tree, folder / "after")}


def sdist_of(source: Path, folder: Path) -> Path:
    command = (sys.executable, "-m", "build", "-q", "--sdist", "-o", folder, source)
    run(*command, GPT2C_BUILD="require")
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def names_in(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def installed(wheel: Path, folder: Path) -> Path:
    """Install the wheel in a fresh environment and return its python."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel)
    return python


def test_one_wheel_for_every_python_from_3_11(built):
    assert re.match(r"gpt2c-[0-9.]+-cp311-abi3-", built["wheel"].name)


def test_wheel_and_sdist_hold_the_package(built):
    package = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "gpt2c").rglob("*")
        if path.suffix
        in (".py", ".pyi", ".typed", ".bpe", ".md", ".json", ".safetensors", ".toml", ".txt")
        or path.name == "py.typed"
    }
    in_wheel = set(zipfile.ZipFile(built["wheel"]).namelist())
    assert package <= in_wheel
    assert not {name for name in in_wheel if name.endswith((".pyx", ".pxi", ".c", ".h"))}
    in_sdist = names_in(built["sdist"])
    assert {f"src/{name}" for name in package} <= in_sdist
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "src", "tests", "docs", "tools"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    assert set(tracked) <= in_sdist
    assert not {name for name in in_sdist if name.endswith("_engine.c")}


def test_a_build_in_the_tree_does_not_change_the_sdist(built):
    assert names_in(built["sdist_after"]) == names_in(built["sdist"])


def test_wheel_of_the_sdist_runs(built, tmp_path):
    python = installed(built["wheel"], tmp_path / "env")
    output = run(python, "-W", "error", "-c", PROGRAM, FIXTURES / "sort-nano", "c")
    version, backend, *ids = output.split(maxsplit=2)
    assert backend != "numpy"
    assert ids == ["[0, 0, 1, 1, 2, 2]\n"]
    assert f"-{version}-" in built["wheel"].name


@pytest.mark.parametrize("mode", ["auto", "skip"])
def test_without_a_compiler_it_installs_on_numpy(built, tmp_path, mode):
    wheel, output = wheel_of(built["sdist"], tmp_path, mode, CC="no-such-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    if mode == "auto":
        assert "gpt2c: the engine could not be built" in output
        assert "no-such-compiler" in output.split("the compiler's last lines:")[1]
        assert WHEEL_ADVICE in output
    python = installed(wheel, tmp_path / "env")
    output = run(python, "-c", PROGRAM, FIXTURES / "sort-nano", "numpy", GPT2C_BACKEND="")
    assert "numpy [0, 0, 1, 1, 2, 2]" in output
    warned = subprocess.run(
        [python, "-W", "always", "-c", "import gpt2c, sys; gpt2c.GPT2.from_pretrained(sys.argv[1])",
         str(FIXTURES / "sort-nano")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert warned.stderr.count("FallbackWarning") == 1


def test_require_without_a_compiler_fails(built, tmp_path):
    with pytest.raises(AssertionError, match="no-such-compiler") as failed:
        wheel_of(built["sdist"], tmp_path, "require", CC="no-such-compiler")
    assert WHEEL_ADVICE in str(failed.value)


def test_unknown_mode_is_refused(built, tmp_path):
    with pytest.raises(AssertionError, match="GPT2C_BUILD is 'perhaps'"):
        wheel_of(built["sdist"], tmp_path, "perhaps")
