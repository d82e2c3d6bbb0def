"""``gpt2c --version``, and the commit and the man page of each kind of installation."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from test_build import run, wheel_of

import gpt2c
from gpt2c.cli import version
from gpt2c.cli.version import commit_of_clone, version_and_commit

in_source_tree = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree")
COMMIT = Path("gpt2c", "data", "commit.txt")
GIT = ["git", "-c", "user.name=Nobody", "-c", "user.email=nobody@example.invalid"]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*GIT, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    """Make a repository with one commit of all files; return the commit's first 12 digits."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "All files")
    return git(folder, "rev-parse", "--short=12", "HEAD")


def printed_version(python: str | Path) -> list[str]:
    return run(python, "-m", "gpt2c", "--version").splitlines()


def test_version_without_a_known_commit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(version, "_RECORDED", tmp_path / "commit.txt")
    monkeypatch.setattr(version, "commit_of_clone", lambda _: None)
    assert version_and_commit() == gpt2c.__version__


def test_version_with_a_recorded_commit(tmp_path, monkeypatch):
    (tmp_path / "commit.txt").write_text("0123456789ab\n")
    monkeypatch.setattr(version, "_RECORDED", tmp_path / "commit.txt")
    assert version_and_commit() == f"{gpt2c.__version__} (commit 0123456789ab)"


def test_the_commit_of_a_clone(tmp_path):
    (tmp_path / "setup.py").write_text("# first\n")
    assert commit_of_clone(tmp_path) is None  # not a repository
    commit = commit_all(tmp_path)
    git(tmp_path, "tag", "-a", "-m", "A tag is not a commit", "v1")
    assert commit_of_clone(tmp_path) == commit
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "setup.py").touch()  # a source tree in another project's repository
    assert commit_of_clone(tmp_path / "inside") is None
    assert commit_of_clone(tmp_path) == commit  # an untracked file is not a change
    (tmp_path / "setup.py").write_text("# second\n")
    assert commit_of_clone(tmp_path) == f"{commit}-dirty"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of this tree with one commit."""
    folder = tmp_path_factory.mktemp("clones") / "gpt2c"
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this source tree is not a clone")
    for name in os.fsdecode(listed.stdout).split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    commit_all(folder)
    return folder


@pytest.fixture(scope="module")
def sdist(clone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "pip", "install", "-q", "build")
    run(sys.executable, "-m", "build", "-q", "--sdist", "-o", folder, clone)
    (path,) = folder.glob("*.tar.gz")
    return path


@in_source_tree
@pytest.mark.slow
@pytest.mark.parametrize("source", ["clone", "sdist"])
def test_a_wheel_has_the_commit_and_the_man_page(source, clone, sdist, tmp_path):
    """Neither the engine nor a dependency is needed, so none is installed."""
    wheel, _ = wheel_of({"clone": clone, "sdist": sdist}[source], tmp_path, "skip")
    commit = git(clone, "rev-parse", "--short=12", "HEAD")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(COMMIT.as_posix()).decode() == f"{commit}\n"
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    first, second = printed_version(python)
    assert first == f"gpt2c {gpt2c.__version__} (commit {commit})"
    assert second == f"arithmetic {gpt2c.ARITHMETIC}"
    page = (tmp_path / "env" / "share" / "man" / "man1" / "gpt2c.1").read_text()
    assert "\\-\\-max\\-new\\-tokens" in page
    # The build left nothing in the clone, except what git ignores.
    assert git(clone, "status", "--porcelain") == ""


@in_source_tree
@pytest.mark.slow
def test_an_editable_installation_asks_git(clone, tmp_path):
    git(tmp_path, "clone", "-q", str(clone), "clone")
    clone = tmp_path / "clone"
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", clone, GPT2C_BUILD="skip")
    commit = git(clone, "rev-parse", "--short=12", "HEAD")
    assert printed_version(python)[0] == f"gpt2c {gpt2c.__version__} (commit {commit})"
    git(clone, "commit", "-q", "--allow-empty", "-m", "A later commit")
    later = git(clone, "rev-parse", "--short=12", "HEAD")
    assert later != commit
    assert printed_version(python)[0] == f"gpt2c {gpt2c.__version__} (commit {later})"


@in_source_tree
@pytest.mark.slow
def test_a_source_distribution_in_another_repository_keeps_its_commit(clone, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    git(tmp_path, "init", "-q")
    wheel, _ = wheel_of(tree, tmp_path / "wheel", "skip")
    with zipfile.ZipFile(wheel) as archive:
        recorded = archive.read(COMMIT.as_posix()).decode()
    assert recorded == (tree / "src" / COMMIT).read_text()
    assert recorded.strip() in git(clone, "log", "--format=%H")
