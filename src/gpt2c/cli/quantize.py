"""``gpt2c quantize``: write a checkpoint in 8 or 4 bits."""

from __future__ import annotations

import argparse

import gpt2c
from gpt2c.cli.options import Commands, add_checkpoint_options, checkpoint_options, progress


def add_command(commands: Commands) -> None:
    """Adds the command to argparse's subparsers."""
    quantize = commands.add_parser(
        "quantize", help="write a checkpoint in 8 or 4 bits", allow_abbrev=False,
        description="Reads a checkpoint in any format that gpt2c knows and writes a folder with "
        "config.json and gpt2c.safetensors, about a quarter of float32's bytes, or a fifth, "
        "which gpt2c alone reads.",
    )  # fmt: skip
    quantize.set_defaults(run=_quantize)
    quantize.add_argument("source", metavar="SRC", help="a folder or file, or a name on the hub")
    quantize.add_argument("folder", metavar="DST", help="the folder to write")
    quantize.add_argument("--dtype", default="int8", choices=["int8", "int4"], help="default: int8")
    add_checkpoint_options(quantize)


def _quantize(options: argparse.Namespace) -> None:
    with gpt2c.GPT2.from_pretrained(
        options.source,
        dtype=options.dtype,
        progress=progress(),
        tokenizer=options.tokenizer,
        **checkpoint_options(options),
    ) as model:
        model.save_pretrained(options.folder)
