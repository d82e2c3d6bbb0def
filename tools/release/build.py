"""Builds the sdist, and from it the wheel of every target, with the C compiler of "ziglang".

build.sh runs this in an environment of its own. setup.py itself builds each wheel, with its own C
flags; this script only gives it another compiler and platform.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from abi3info import DATAS, FUNCTIONS
from abi3info.models import PyVersion
from targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON = PyVersion(3, 11)  # as Py_LIMITED_API in setup.py

# Python's own pyconfig.h describes the machine that Python was built on. Of its many macros, the
# headers of the limited API use only these.
PYCONFIG = """\
#define _GNU_SOURCE 1
#define SIZEOF_INT __SIZEOF_INT__
#define SIZEOF_LONG __SIZEOF_LONG__
#define SIZEOF_LONG_LONG __SIZEOF_LONG_LONG__
#define SIZEOF_SIZE_T __SIZEOF_SIZE_T__
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define SIZEOF_WCHAR_T __SIZEOF_WCHAR_T__
#define SIZEOF_PID_T 4
#define HAVE_STDDEF_H 1
#define HAVE_WCHAR_H 1
#ifdef _WIN32
#define MS_WINDOWS 1
#define MS_WIN64 1
#define HAVE_DECLSPEC_DLL 1
#define Py_ENABLE_SHARED 1
#else
#define HAVE_UNISTD_H 1
#define HAVE_SYS_TIME_H 1
#define HAVE_SYS_SELECT_H 1
#define HAVE_SYS_STAT_H 1
#endif
"""
# No debug information: it names folders of this machine. The rest is what CPython's own builds use.
CFLAGS = "-g0 -fwrapv -DNDEBUG"


def run(command: list[str], **options: object) -> None:
    """Run a command; print its output only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, **options)  # fmt: skip
    if done.returncode:
        print(done.stdout)
        sys.exit(f"build: failed: {shlex.join(command)}")


def zig() -> str:
    """Return the path of the compiler."""
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).with_name("zig"))


def commit_time() -> str:
    """Return the time of the last commit, in seconds: the time of all files in the archives."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_headers(folder: Path) -> None:
    """Copy this Python's headers, with a pyconfig.h that holds on every target."""
    shutil.copytree(sysconfig.get_path("include"), folder)
    (folder / "pyconfig.h").write_text(PYCONFIG)


def make_import_library(target: Target, folder: Path) -> None:
    """Make the import library of python3.dll: the stable ABI of the oldest supported Python."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["LIBRARY python3.dll", "EXPORTS"]
    for symbols, suffix in ((FUNCTIONS, ""), (DATAS, " DATA")):
        lines += [
            f"{symbol.name}{suffix}"
            for symbol, entry in sorted(symbols.items(), key=lambda item: item[0].name)
            if entry.added <= OLDEST_PYTHON and (not entry.ifdef or entry.ifdef.windows is True)
        ]
    definition = folder / "python3.def"
    definition.write_text("\n".join(lines) + "\n")
    machine = {"x86_64": "i386:x86-64", "aarch64": "arm64"}[target.machine]
    run([zig(), "dlltool", "-m", machine, "-d", str(definition), "-l", str(folder / "python3.lib")])


def make_sdist(out: Path) -> Path:
    """Make the sdist and return its path."""
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(out), str(ROOT)])
    (sdist,) = out.glob("*.tar.gz")
    return sdist


def environment_of(target: Target, work: Path) -> dict[str, str]:
    """Return the environment in which setup.py builds for the target."""
    compiler = f"{zig()} cc -target {target.zig}"
    link = "-shared -s"
    if target.system == "macos":
        # Without a name of its own, the extension would carry its path on this machine.
        link += f" -Wl,-undefined,dynamic_lookup -Wl,-install_name,@rpath/{target.extension}"
    if target.system == "windows":
        make_import_library(target, work / target.name)
        link += f" {work / target.name / 'python3.lib'}"
    config = work / f"{target.name}.cfg"
    # All targets share the C file that Cython writes to build_temp.
    config.write_text(f"[build]\nbuild_base={work / target.name}\nbuild_temp={work / 'objects'}\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("LDFLAGS", "CPPFLAGS")}
    return environment | {
        "CC": f"{compiler} -I{work / 'include'}",
        "CFLAGS": CFLAGS,
        "LDSHARED": f"{compiler} {link}",
        "_PYTHON_HOST_PLATFORM": target.host_platform,
        "DIST_EXTRA_CONFIG": str(config),
        "GPT2C_BUILD": "require",
    }


def build_wheel(target: Target, tree: Path, work: Path, out: Path) -> None:
    """Build the wheel of one target in an unpacked sdist."""
    environment = environment_of(target, work)
    run([sys.executable, "setup.py", "build"], cwd=tree, env=environment)
    # setuptools names it as on this machine.
    (extension,) = (work / target.name).glob("lib.*/gpt2c/engine/_engine*.so")
    extension.rename(extension.with_name(target.extension))
    for left_over in extension.parent.glob("*.lib"):  # the linker leaves one for Windows
        left_over.unlink()
    run(
        [sys.executable, "setup.py", "bdist_wheel", "--skip-build", "--plat-name", target.tag,
         "--bdist-dir", str(work / target.name / "wheel"), "--dist-dir", str(out)],
        cwd=tree, env=environment,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder for the sdist and the wheels")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    work, out = options.work.resolve(), options.out.resolve()
    os.environ["SOURCE_DATE_EPOCH"] = commit_time()
    make_headers(work / "include")
    sdist = make_sdist(out)
    print(f"built {sdist.name}", flush=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "tree", filter="data")
    (tree,) = (work / "tree").iterdir()
    for name in options.targets or TARGETS:
        build_wheel(TARGETS[name], tree, work, out)
        print(f"built the wheel for {name}", flush=True)


if __name__ == "__main__":
    main()
