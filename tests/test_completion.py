"""``gpt2c completion``, in the real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2c.cli.generate import DRAFTS
from gpt2c.cli.main import main
from gpt2c.generate.drafting import DRAFT_NAMES

pytest.importorskip("shtab")

# What a user types before TAB -> what the shell completes the last word to.
COMPLETIONS = {
    "gpt2c gen": {"generate"},
    "gpt2c --vers": {"--version"},
    "gpt2c generate --no-rep": {"--no-repeat-ngram-size"},
    "gpt2c generate --draft pack": {"packing"},
    "gpt2c info --model weights": {"weights.bin"},
    "gpt2c quantize fol": {"folder/"},
    "gpt2c completion f": {"fish"},
}

# Calls the function that bash calls for TAB, with the variables that bash sets.
BASH = """
source "$1"
COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
words=$(complete -p gpt2c); function=${words##*-F }
${function%% *} gpt2c
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source $argv[1]; complete -C $argv[2]"


@pytest.fixture
def script(request, tmp_path, monkeypatch, capsys) -> Path:
    """The completion script of the shell, in a folder with a file and a folder to complete."""
    (tmp_path / "weights.bin").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["completion", request.param]) == 0
    path = tmp_path / "scripts" / "_gpt2c"
    path.parent.mkdir()
    path.write_text(capsys.readouterr().out)
    return path


def needs(shell: str):
    return pytest.mark.skipif(not shutil.which(shell), reason=f"{shell} is not installed")


def output_of(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.splitlines()


@needs("bash")
@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash(script):
    for typed, expected in COMPLETIONS.items():
        found = output_of("bash", "--norc", "-c", BASH, "bash", str(script), typed)
        # Bash itself adds the slash after a folder.
        assert {name.rstrip("/") for name in found} == {name.rstrip("/") for name in expected}


@needs("fish")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish(script):
    for typed, expected in COMPLETIONS.items():
        lines = output_of("fish", "--no-config", "-c", FISH, str(script), typed)
        # A line has a match and, after a tab, its description.
        assert {line.split("\t")[0] for line in lines if line} == expected


@needs("zsh")
@pytest.mark.slow
@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh(script, terminal, start):
    """Zsh completes only in a terminal."""
    ours, theirs = terminal
    start(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    folder = script.parent
    setup = f"PS1=; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; echo re''ady\n"
    os.write(ours, setup.encode())
    read_until(ours, "ready")
    for typed, expected in COMPLETIONS.items():
        completed = " ".join([*typed.split()[:-1], *expected])
        os.write(ours, f"\x15{typed}\t\t".encode())  # the first TAB may only list the matches
        read_until(ours, completed)


def read_until(terminal: int, expected: str) -> None:
    """Read a terminal until `expected` appears; fail after 20 seconds."""
    os.set_blocking(terminal, False)
    shown, end = "", time.monotonic() + 20
    while expected not in shown:
        assert time.monotonic() < end, f"found {shown!r}, expected {expected!r}"
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.02)


def test_without_shtab_the_error_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "gpt2c[completion]" in capsys.readouterr().err


def test_every_draft_is_an_option_of_the_command():
    assert {*DRAFT_NAMES, "none"} == set(DRAFTS)
