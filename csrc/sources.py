"""The C core's files for one operating system: python csrc/sources.py [PLATFORM]

PLATFORM is a name as sysconfig.get_platform() returns it, such as linux-aarch64, macosx-11.0-arm64
or win-amd64. Without it, the platform is the one that this Python builds for. Prints a path per
line, relative to the folder of csrc.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

CSRC = Path(__file__).resolve().parent

# The beginning of a platform's name -> the files of os/ that it compiles. "" stands for the other
# POSIX systems.
OS_FILES = {
    "linux": ("posix", "futex", "linux", "mapping"),
    "macosx": ("posix", "condition", "darwin", "no_mapping"),
    "win": ("windows", "windows_cpus", "no_mapping"),
    "mingw": ("windows", "windows_cpus", "no_mapping"),
    "": ("posix", "condition", "unix", "no_mapping"),
}


def os_files(platform: str) -> tuple[str, ...]:
    """Return the names of the files of os/, without the suffix."""
    return next(files for name, files in OS_FILES.items() if platform.startswith(name))


def c_sources(platform: str | None = None) -> list[str]:
    """Return the C files, relative to the folder of csrc.

    The platform is named as sysconfig.get_platform() names it; None is the one that this Python
    builds for.
    """
    chosen = os_files(sysconfig.get_platform() if platform is None else platform)
    return [
        path.relative_to(CSRC.parent).as_posix()
        for path in sorted(CSRC.rglob("*.c"))
        if path.parent.name != "os" or path.stem in chosen
    ]


if __name__ == "__main__":
    print("\n".join(c_sources(*sys.argv[1:])))
