"""``gpt2c quantize``: write a checkpoint in 8 or 4 bits."""

from __future__ import annotations

import argparse

import gpt2c
from gpt2c.cli.options import Commands, add_conversion_options, checkpoint_options, shows_progress


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "quantize", help="write a checkpoint in 8 or 4 bits", allow_abbrev=False,
        description="Reads a checkpoint in any format that gpt2c knows and writes a folder with "
        "config.json and gpt2c.safetensors, which only gpt2c reads. int8 takes a quarter of "
        "float32's size, int4 about a fifth.",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add_conversion_options(parser)
    parser.add_argument("--dtype", default="int8", choices=["int8", "int4"], help="default: int8")


def _run(options: argparse.Namespace) -> None:
    with gpt2c.GPT2.from_pretrained(
        options.source,
        dtype=options.dtype,
        progress=shows_progress(),
        tokenizer=options.tokenizer,
        **checkpoint_options(options),
    ) as model:
        model.save_pretrained(options.folder)
