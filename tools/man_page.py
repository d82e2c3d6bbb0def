"""Writes the man page of ``gpt2c`` from the command's own parsers; needs only the standard library.

Usage: python tools/man_page.py FILE

setup.py runs it for each wheel. The page depends on the sources alone: its date is the changelog's.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from gpt2c._version import __version__  # noqa: E402
from gpt2c.cli.main import make_parser  # noqa: E402

PURPOSE = "GPT-2 text generation on CPUs"
EXIT_STATUS = {
    "0": "Success.",
    "2": "An error, which one line on standard error describes.",
    "130": "Ctrl-C.",
    "141": "The reader of standard output closed it.",
}
ENVIRONMENT = {
    "GPT2C_BACKEND": "c or numpy, where --backend does not say.",
    "GPT2C_ISA": "An instruction set to use instead of the best one; gpt2c info lists them.",
    "GPT2C_THREADS, OMP_NUM_THREADS": "The max number of threads, where --threads does not say. "
    "GPT2C_THREADS comes first.",
    "GPT2C_SHARED_FOLDER": "The folder for the lists of processes that share weights (--shared).",
    "NO_COLOR, FORCE_COLOR": "Turn the colours of gpt2c score --color off or on.",
}


def escaped(text: str) -> str:
    """Return text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def paragraph(text: str) -> str:
    """Return a paragraph, which roff fills; a sentence begins a new line, as roff expects."""
    sentences = re.split(r"(?<=[a-z)]\.) (?=[A-Z])", " ".join(text.split()))
    lines = [line for sentence in sentences for line in wrap(sentence, 72, break_on_hyphens=False)]
    return escaped("\n".join(lines))


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the help of an option as --help shows it, with its placeholders filled in."""
    formatter = argparse.HelpFormatter(parser.prog)
    return formatter._expand_help(action) if action.help else ""


def value_of(action: argparse.Action) -> str:
    """Return the name of an option's or argument's value in italics, or its choices."""
    if action.choices is not None:
        return "|".join(f"\\fB{escaped(str(choice))}\\fR" for choice in action.choices)
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return f"\\fI{escaped(str(name))}\\fR"


def head_of(action: argparse.Action) -> str:
    """Return the first line of an option's entry: its names and its value."""
    if not action.option_strings:
        return f"[{value_of(action)} ...]" if action.nargs == "*" else value_of(action)
    names = ", ".join(f"\\fB{escaped(name)}\\fR" for name in action.option_strings)
    return names if action.nargs == 0 else f"{names} {value_of(action)}"


def entries(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the entries of a parser's arguments and options, without commands and --help."""
    skipped = (argparse._SubParsersAction, argparse._HelpAction)
    for action in parser._actions:
        if not isinstance(action, skipped):
            yield f".TP\n{head_of(action)}\n{paragraph(help_of(parser, action))}"


def listed(names: dict[str, str]) -> Iterator[str]:
    """Yield an entry for each name and its explanation."""
    for name, text in names.items():
        yield f".TP\n.B {escaped(name)}\n{paragraph(text)}"


def synopsis(parser: argparse.ArgumentParser) -> str:
    """Return a command's line of the synopsis."""
    arguments = [head_of(action) for action in parser._actions if not action.option_strings]
    return f"\\fB{escaped(parser.prog)}\\fR [\\fIoption\\fR ...] {' '.join(arguments)}".rstrip()


def examples(epilog: str) -> Iterator[str]:
    """Yield the examples of a parser's epilog, as they are typed."""
    yield ".nf"
    yield from (escaped(line.strip()) for line in epilog.splitlines()[1:])
    yield ".fi"


def date_of_release() -> str:
    """Return the date of the newest version in the changelog; empty if it has none."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## \[[0-9.]+\] - ([0-9-]{10})$", changelog, re.MULTILINE)
    return found[1] if found else ""


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands; one that has commands of its own is left out for them."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                inner = commands_of(command)
                found |= {f"{name} {key}": value for key, value in inner.items()} or {name: command}
    return found


def lines_of(root: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the man page, section by section."""
    commands = commands_of(root)
    yield f'.TH GPT2C 1 "{date_of_release()}" "gpt2c {escaped(__version__)}" "User commands"'
    yield f".SH NAME\ngpt2c \\- {escaped(PURPOSE)}"
    yield ".SH SYNOPSIS"
    yield from (f"{line}\n.br" for line in map(synopsis, commands.values()))
    yield r"\fBgpt2c\fR [\fIcommand\fR] \fB\-\-help\fR"
    yield ".br"
    yield r"\fBgpt2c\fR \fB\-\-version\fR"
    yield ".SH DESCRIPTION"
    yield paragraph(
        "gpt2c loads GPT-2 checkpoints of many formats, generates texts, scores them and converts "
        "checkpoints. Without --model, it uses the embedded model. It downloads nothing unless the "
        "model is a name on the Hugging Face Hub."
    )
    yield ".SH OPTIONS"
    yield from entries(root)
    yield from listed({"-h, --help": "show the help of gpt2c or of a command"})
    yield ".SH COMMANDS"
    for name, command in commands.items():
        yield f".SS gpt2c {escaped(name)}\n{paragraph(command.description or '')}"
        yield from entries(command)
    yield ".SH EXIT STATUS"
    yield from listed(EXIT_STATUS)
    yield ".SH ENVIRONMENT"
    yield from listed(ENVIRONMENT)
    yield ".SH EXAMPLES"
    yield from examples(root.epilog or "")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/man_page.py FILE")
    Path(sys.argv[1]).write_text("\n".join(lines_of(make_parser())) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
