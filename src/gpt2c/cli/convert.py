"""``gpt2c convert``: write a checkpoint in Hugging Face's format."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gpt2c
from gpt2c.cli.options import Commands, add_conversion_options, checkpoint_options

if TYPE_CHECKING:
    from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
    from gpt2c.weights.checkpoint import Checkpoint


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "convert", help="write a checkpoint in Hugging Face's format", allow_abbrev=False,
        description="Reads a checkpoint in any format that gpt2c knows and writes a folder with "
        "config.json and model.safetensors (float32), which transformers loads too.",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add_conversion_options(parser)


def _run(options: argparse.Namespace) -> None:
    from gpt2c.weights.adapters import open_with_adapters
    from gpt2c.weights.checkpoint import save_checkpoint
    from gpt2c.weights.hub import locate
    from gpt2c.weights.named_tokenizer import tokenizer_for
    from gpt2c.weights.tokenizer_files import save_tokenizer

    source = locate(options.source)
    with open_with_adapters(source, **checkpoint_options(options)) as checkpoint:
        tokenizer = tokenizer_for(checkpoint, options.tokenizer)
        config = _config_with_special_ids(checkpoint, tokenizer)
        float32_checkpoint = replace(checkpoint, quantized_dtype=None, config=config)
        save = partial(save_tokenizer, checkpoint, tokenizer=tokenizer)
        save_checkpoint(float32_checkpoint, Path(options.folder), save)


def _config_with_special_ids(
    checkpoint: Checkpoint, tokenizer: Tokenizer | MissingTokenizer | None
) -> gpt2c.GPT2Config:
    """Return the configuration with the BOS and EOS tokens that the tokenizer's files name."""
    from gpt2c.weights.tokenizer_files import with_special_ids

    folder = checkpoint.folder if checkpoint.vocabulary is None else None
    return with_special_ids(checkpoint.config, folder, tokenizer)[0]
