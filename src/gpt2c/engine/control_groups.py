"""Linux control groups, with which containers and services limit this process.

A process may be in groups of version 1, of version 2, or of both. A group's limits hold for the
groups inside it.
"""

from __future__ import annotations

from pathlib import Path


def folders_v2(root: Path) -> list[Path]:
    """Return the folders of this process's group of version 2 and of its parent groups."""
    return [root / "sys/fs/cgroup" / group for group in _groups(root, "")]


def folders_v1(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's group of version 1 and of its parent groups.

    The controller is "cpu" or "memory".
    """
    mounts = ("cpu", "cpu,cpuacct") if controller == "cpu" else (controller,)
    groups = _groups(root, controller)
    return [root / "sys/fs/cgroup" / mount / group for mount in mounts for group in groups]


def read_text(file: Path) -> str:
    """Return the text of a system file, without white space at its ends; "" if it is unreadable."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _groups(root: Path, controller: str) -> list[str]:
    """Return the paths of this process's control group and its parents, innermost first.

    The controller "" selects version 2.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            parts = [part for part in path.split("/") if part not in ("", "..")]
            return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]
    return [""]
