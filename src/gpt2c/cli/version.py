"""What ``gpt2c --version`` prints: the version, the commit of the build and the arithmetic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import gpt2c

# setup.py writes this file into wheels and source distributions, never into the source tree.
_RECORDED: Final = Path(gpt2c.__file__).parent / "data" / "commit.txt"


class ShowVersion(argparse.Action):
    """The option --version. Only its use asks git for the commit."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        """An option without a value."""
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit with status 0."""
        print(f"gpt2c {version_and_commit()}\narithmetic {gpt2c.ARITHMETIC}")
        parser.exit()


def version_and_commit() -> str:
    """Return the version and, if it is known, the commit: "0.2.0 (commit 0123456789ab)"."""
    commit = commit_of_build()
    return f"{gpt2c.__version__} (commit {commit})" if commit else gpt2c.__version__


def commit_of_build() -> str | None:
    """Return the commit that gpt2c was built from; None if it is unknown.

    A wheel or source distribution has it in a file. An installation that runs from a clone (pip's
    option -e) asks git.
    """
    try:
        return _RECORDED.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return commit_of_clone(Path(gpt2c.__file__).parents[2])


def commit_of_clone(root: Path) -> str | None:
    """Return the first 12 digits of a clone's commit, with "-dirty" if tracked files have changed.

    None if `root` is not the top folder of a clone of gpt2c, or git cannot say.
    """
    if not (root / ".git").exists() or not (root / "setup.py").exists():
        return None
    import subprocess

    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe"]
    try:
        done = subprocess.run(
            [*command, "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
