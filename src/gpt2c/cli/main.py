"""The command ``gpt2c``: generate text, score it, and tell what runs here."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import gpt2c
from gpt2c.checks.option_hints import flag_hint
from gpt2c.cli import bench, convert, generate, info, perplexity, quantize, score
from gpt2c.cli.options import EXAMPLES
from gpt2c.errors import Error, Gpt2cWarning


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each command refuses what it does not know, so that the error names its own help."""
        options, rest = super().parse_known_args(args, namespace)
        if rest:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(rest)}{flag_hint(rest[0], known)}")
        return options, rest


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = _Parser(
        prog="gpt2c", description=gpt2c.__doc__.splitlines()[0] if gpt2c.__doc__ else None,
        epilog=EXAMPLES, formatter_class=layout, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"gpt2c {gpt2c.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (generate, score, perplexity, convert, quantize, bench, info):
        command.add_command(commands)
    return parser


class _LogToStderr(logging.Handler):
    """Prints what the library logs, in the form of the command's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line."""
        print(f"gpt2c: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _shown_log() -> Iterator[None]:
    """Shows the library's log, of warnings and worse, while a command runs."""
    log, handler = logging.getLogger("gpt2c"), _LogToStderr(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"gpt2c: warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and not isinstance(error, Error):
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status.

    0; 2 after an error, which is one line on standard error; 130 after Ctrl-C; 141 where the reader
    of the output went away, as for any program that SIGPIPE ends.
    """
    try:
        options = _parser().parse_args(arguments)
        with warnings.catch_warnings(), _shown_log():
            warnings.simplefilter("always", Gpt2cWarning)
            warnings.showwarning = _show_warning
            # What a terminal cannot show is no reason to lose the rest of the text.
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="replace")
            options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes standard output once more at exit: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Error, OSError, UnicodeError) as error:
        print(f"gpt2c: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0
