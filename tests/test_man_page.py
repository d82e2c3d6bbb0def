"""The man page, which tools/man_page.py makes from the command's parsers."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import gpt2c
from gpt2c.cli.main import make_parser

TOOL = ROOT / "tools" / "man_page.py"
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="not in a source tree")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("man") / "gpt2c.1"
    subprocess.run([sys.executable, TOOL, path], check=True)
    return path


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def test_the_page_has_every_command_and_option(page):
    plain = page.read_text().replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
    commands = choices_of(make_parser())
    tasks = choices_of(commands.pop("batch"))
    commands |= {f"batch {name}": task for name, task in tasks.items()}
    sections = dict(part.split("\n", 1) for part in plain.split(".SS gpt2c ")[1:])
    assert sorted(sections) == sorted(commands)
    for name, command in commands.items():
        heads = [entry.split("\n")[1] for entry in sections[name].split(".TP")[1:]]
        options = [action.option_strings for action in command._actions if action.option_strings]
        for names in options:
            if "--help" not in names:
                assert [head for head in heads if head.startswith(", ".join(names))]
    assert f"gpt2c {gpt2c.__version__}" in plain


def test_the_page_is_valid(page):
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed")
    done = subprocess.run(
        ["mandoc", "-T", "lint", page], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
