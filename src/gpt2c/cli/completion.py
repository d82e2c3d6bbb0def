"""``gpt2c completion``: print a shell's completion script."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Final

from gpt2c.cli.options import Commands
from gpt2c.errors import MissingDependencyError

_SHELLS: Final = ("bash", "zsh", "fish")
_FILES: Final = {"FILE", "PATH", "PAGE", "SRC", "MODEL"}  # metavars of names of files and folders
_FOLDERS: Final = {"DST", "DATA", "DIR"}

_EXAMPLES: Final = """examples:
  eval "$(gpt2c completion bash)"                      # in ~/.bashrc
  gpt2c completion zsh > ~/.zfunc/_gpt2c               # ~/.zfunc or another folder of fpath
  gpt2c completion fish > ~/.config/fish/completions/gpt2c.fish
"""


def add_command(commands: Commands, root: argparse.ArgumentParser) -> None:
    """Add the command's parser; `root` is the parser of ``gpt2c``."""
    parser = commands.add_parser(
        "completion", help="print a shell's completion script", allow_abbrev=False,
        description="Prints a script with which the shell completes commands, options and names "
        "of files. Needs the package shtab.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=partial(_run, root))
    parser.add_argument("shell", choices=_SHELLS, help="the shell that completes")


def _run(root: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError:
        raise MissingDependencyError(
            "completion scripts need the package shtab: pip install shtab (the extra "
            "gpt2c[completion])"
        ) from None
    for parser in (root, *_commands(root)):
        parser.description = None  # shtab then describes a command by its short help
        for action in parser._actions:
            if action.metavar in _FILES | _FOLDERS:
                kind = shtab.DIRECTORY if action.metavar in _FOLDERS else shtab.FILE
                action.complete = kind  # type: ignore[attr-defined]  # where shtab looks
    print(shtab.complete(root, shell=options.shell))


def _commands(root: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of the commands, and of commands within them."""
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for parser in action.choices.values():
                yield parser
                yield from _commands(parser)
