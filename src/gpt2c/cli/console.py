"""The command's standard streams: their encoding, colours, and the end of a closed pipe.

Each command's texts are UTF-8, as its input is. Windows would write another encoding to files and
pipes, without most characters, and CRLF as line ends; so the same command would write other bytes
there.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Final

from gpt2c.files import IS_WINDOWS

# Exit statuses of a program that a signal ended: 128 + its number. Windows has no SIGPIPE.
INTERRUPTED: Final = 130  # SIGINT, Ctrl-C
PIPE_CLOSED: Final = 141  # SIGPIPE

_STDOUT_HANDLE: Final = -11
_ENABLE_VIRTUAL_TERMINAL_PROCESSING: Final = 4


def prepare_stdout() -> None:
    """Let standard output take any text: replace the characters that it cannot show.

    On Windows, files and pipes get UTF-8 with LF, unless PYTHONIOENCODING names an encoding; a
    console learns to show colours.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):  # None without a console; or a program's own
        return
    if not IS_WINDOWS:
        stream.reconfigure(errors="replace")
    elif stream.isatty():
        stream.reconfigure(errors="replace")
        _enable_escape_sequences()
    elif os.environ.get("PYTHONIOENCODING"):
        stream.reconfigure(errors="replace", newline="\n")
    else:
        stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")


def flush_stdout() -> None:
    """Write what standard output holds back; a closed pipe raises its error here at the latest."""
    if sys.stdout is not None:
        sys.stdout.flush()


def is_closed_pipe(error: OSError) -> bool:
    """Whether the reader of standard output has ended."""
    if isinstance(error, BrokenPipeError):
        return True
    # What Windows reports if Python writes to a closed pipe; an error of a file names the file.
    return IS_WINDOWS and error.errno == errno.EINVAL and error.filename is None


def discard_stdout() -> None:
    """Send later output nowhere: Python flushes standard output at exit, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _enable_escape_sequences() -> None:
    """Let the console of older Windows versions interpret escape sequences, as newer ones do."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle, mode = kernel.GetStdHandle(_STDOUT_HANDLE), ctypes.c_ulong()
        if kernel.GetConsoleMode(handle, ctypes.byref(mode)):
            kernel.SetConsoleMode(handle, mode.value | _ENABLE_VIRTUAL_TERMINAL_PROCESSING)
