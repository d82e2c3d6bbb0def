"""The prompts of ``gpt2c generate``: from --file, the arguments, or standard input."""

from __future__ import annotations

import argparse
import sys

from gpt2c.cli.table_options import open_input_texts
from gpt2c.errors import OptionError
from gpt2c.tables import TextOrIds, open_texts


def read_prompts(options: argparse.Namespace) -> list[tuple[str, TextOrIds]]:
    """Read the prompts, each with its name for messages.

    Standard input is one prompt without its final line end. Raises OptionError, TableError or
    OSError.
    """
    if options.file is not None:
        if options.prompt:
            raise OptionError("prompts are given both as arguments and with --file")
        with open_input_texts(options, lines=True) as texts:
            return [(item.place, item.text) for item in texts]
    if options.jsonl:
        raise OptionError("--jsonl needs --file; to read standard input, give --file -")
    if options.prompt:
        return [(f"prompt {n}", prompt) for n, prompt in enumerate(options.prompt, start=1)]
    if sys.stdin is None or sys.stdin.isatty():
        return [("the empty prompt", "")]
    with open_texts("-") as texts:
        return [(item.place, str(item.text).removesuffix("\n")) for item in texts]
