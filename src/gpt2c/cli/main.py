"""The command ``gpt2c``: the root parser, the dispatch, and exit codes.

The modules of commands import NumPy, and what needs it, only when a command runs. So --help,
--version, completion scripts and the man page (tools/man_page.py) work without it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import gpt2c
from gpt2c.cli import (
    batch,
    bench,
    choose,
    classify,
    completion,
    console,
    convert,
    detect,
    embed,
    evaluate,
    generate,
    info,
    perplexity,
    quantize,
    score,
    serve,
    surprisal,
)
from gpt2c.cli.options import EXAMPLES
from gpt2c.cli.published import verify, zero_shot
from gpt2c.cli.version import ShowVersion
from gpt2c.errors import Error, Gpt2cWarning
from gpt2c.files import FULL_DISK


class _Parser(argparse.ArgumentParser):
    """A parser that prints errors as one line."""

    # Whether unknown arguments become `unknown` in the namespace, for another program.
    passes_unknown = False

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reject unknown arguments in the subcommand's parser, so that the error names its help."""
        options, unknown = super().parse_known_args(args, namespace)
        if self.passes_unknown:
            options.unknown = unknown
        elif unknown:
            from gpt2c.checks.option_hints import flag_hint

            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{flag_hint(unknown[0], known)}")
        return options, []


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``gpt2c`` and all its commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog="gpt2c", description=gpt2c.__doc__.splitlines()[0] if gpt2c.__doc__ else None,
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (
        generate, score, surprisal, perplexity, choose, classify, embed, detect, zero_shot, verify,
        evaluate, batch, convert, quantize, serve, bench, info,
    ):  # fmt: skip
        command.add_command(commands)
    completion.add_command(commands, parser)
    return parser


class _StderrHandler(logging.Handler):
    """Prints the library's log records in the form of the command's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        print(f"gpt2c: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _show_log() -> Iterator[None]:
    """Show the library's log records of level WARNING and above while a command runs."""
    logger, handler = logging.getLogger("gpt2c"), _StderrHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"gpt2c: warning: {message}", file=sys.stderr)


def _one_line_message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and not isinstance(error, Error):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL_DISK and not error.filename:
        return f"standard output: {error.strerror}"  # other files are named
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 means success; 1 that ``gpt2c verify`` found a difference; 2 an error, which one line on
    standard error describes; 130 Ctrl-C; 141 a closed output pipe (128 + SIGPIPE, as for a program
    that the signal ended).
    """
    try:
        options = make_parser().parse_args(arguments)
        with warnings.catch_warnings(), _show_log():
            warnings.simplefilter("always", Gpt2cWarning)
            warnings.showwarning = _show_warning
            console.prepare_stdout()
            status = options.run(options) or 0
            console.flush_stdout()
    except KeyboardInterrupt:
        return console.INTERRUPTED
    except (Error, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and console.is_closed_pipe(error):
            console.discard_stdout()
            return console.PIPE_CLOSED
        print(f"gpt2c: {_one_line_message(error)}", file=sys.stderr)
        return 2
    return status
