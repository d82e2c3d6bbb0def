"""Builds the extension ``gpt2c.engine._engine``: one abi3 module for Python 3.11 and later, and a
module for each version of free-threaded Python, which has no stable ABI before 3.15.

GPT2C_BUILD=require  a failed build fails the installation (tests, CI and releases)
GPT2C_BUILD=auto     (default) a failed build installs gpt2c on NumPy alone
GPT2C_BUILD=skip     no build: gpt2c runs on NumPy alone
"""

import os
import runpy
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# isort: split
from distutils.command.install_data import install_data  # setuptools provides distutils

sys.path.insert(0, "src")
from gpt2c.cli.version import commit_of_clone  # needs only the standard library

MODE = os.environ.get("GPT2C_BUILD", "auto")
if MODE not in ("require", "auto", "skip"):
    sys.exit(f"GPT2C_BUILD is {MODE!r}; it must be 'require', 'auto' or 'skip'")

# These come after the environment's CFLAGS and override them. Contraction, fast math and link-time
# optimisation would change the bits that gpt2c promises, or use instructions that the CPU lacks.
# Each csrc/kernels/isa/NAME.c chooses its instruction set by pragma (TARGET_BEGIN).
COMPILE_ARGS = [
    "-std=c11",
    "-O2",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-lto",
    "-fvisibility=hidden",
]
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
ADVICE = """\
gpt2c: building the engine needs a C compiler: gcc or clang (not Microsoft's). Either install one
gpt2c: and run the command again, or install a wheel, which needs none. There are wheels for
gpt2c: Linux, macOS and Windows on x86-64 and 64-bit ARM, for Python 3.11 and later:
gpt2c:     pip install --upgrade pip && pip install --only-binary gpt2c gpt2c"""
SHOWN_LINES = 15  # of the compiler's output, if the build fails
# With sanitizers, a compiler takes up to 700 MB.
MAX_COMPILERS = 4


def extension() -> Extension:
    sources = runpy.run_path("csrc/sources.py")["c_sources"]()
    return Extension(
        "gpt2c.engine._engine",
        sources=["src/gpt2c/engine/_engine.pyx", *sources],
        include_dirs=["csrc"],
        depends=[
            "src/gpt2c/engine/_capi.pxd",
            *(str(p) for p in Path("src/gpt2c/engine").glob("*.pxi")),
            *(str(p) for p in Path("csrc").rglob("*.h")),
        ],
        define_macros=[] if IS_FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=COMPILE_ARGS,
        py_limited_api=not IS_FREE_THREADED,
    )


def usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def captured_output(log: Path):
    """Redirect the output of this process and of its compilers to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
    os.close(saved[0])
    os.close(saved[1])


class BuildEngine(build_ext):
    """build_ext that, with "auto", continues without the engine if the build fails."""

    def initialize_options(self) -> None:
        """Write Cython's C file to build/, because an sdist would include it if it lay in src/."""
        super().initialize_options()
        self.cython_c_in_temp = True

    def run(self) -> None:
        if MODE == "require":
            try:
                super().run()
            except Exception:
                print(ADVICE, flush=True)
                raise
            return
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "build.log")
            try:
                with captured_output(log):
                    super().run()
            except Exception as error:
                self.install_without_engine(error, log.read_text(errors="replace"))
            else:
                sys.stdout.write(log.read_text(errors="replace"))

    def build_extensions(self) -> None:
        """Compile several C files at a time, each on a CPU of its own."""
        compile_some = self.compiler.compile
        with ThreadPoolExecutor(min(usable_cpus(), MAX_COMPILERS)) as pool:

            def compile_all(sources: list[str], **options: Any) -> list[str]:
                objects = pool.map(lambda source: compile_some([source], **options), sources)
                return [path for paths in objects for path in paths]

            self.compiler.compile = compile_all
            super().build_extensions()

    def install_without_engine(self, error: Exception, output: str) -> None:
        print(f"gpt2c: the engine could not be built ({error}); the compiler's last lines:")
        print("\n".join(output.splitlines()[-SHOWN_LINES:]))
        print(ADVICE)
        print("gpt2c: installing without it: everything runs on NumPy, far slower.")
        self.extensions = []
        self.distribution.ext_modules = []


COMMIT_FILE = Path("gpt2c", "data", "commit.txt")  # read by src/gpt2c/cli/version.py


def write_commit(folder: Path) -> None:
    """Write the clone's commit into a copy of the package, in `folder`.

    Outside of a clone, keep the file that came with a source distribution.
    """
    commit, file = commit_of_clone(Path.cwd()), folder / COMMIT_FILE
    if commit is not None or not Path("src", COMMIT_FILE).exists():
        file.unlink(missing_ok=True)  # of an earlier build, or a hard link
    if commit is not None:
        file.write_text(commit + "\n", encoding="ascii")


class PythonFiles(build_py):
    """build_py that records the commit, except in an editable installation, which asks git."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib))


class SourceDistribution(sdist):
    """sdist that records the commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir, "src"))


class Data(install_data):
    """install_data that makes the man page; data_files names only its folder.

    setuptools does not run it for an editable installation.
    """

    def run(self) -> None:
        page = Path(self.get_finalized_command("build").build_temp, "gpt2c.1")
        page.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "tools/man_page.py", str(page)], check=True)
        self.data_files = [("share/man/man1", [str(page)])]
        super().run()


class Wheel(bdist_wheel):
    """bdist_wheel that tags a wheel without the engine as pure Python."""

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command == "build" and not self.distribution.ext_modules:
            self.root_is_pure = True

    def get_tag(self) -> tuple[str, str, str]:
        if not self.distribution.ext_modules:
            return "py3", "none", "any"
        return super().get_tag()


setup(
    ext_modules=[] if MODE == "skip" else [extension()],
    cmdclass={
        "bdist_wheel": Wheel,
        "build_ext": BuildEngine,
        "build_py": PythonFiles,
        "install_data": Data,
        "sdist": SourceDistribution,
    },
    data_files=[("share/man/man1", [])],  # Data makes the file
    options={} if IS_FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
