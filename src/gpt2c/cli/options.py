"""Options of every command that loads a model, for what its checkpoint does not say."""

from __future__ import annotations

import argparse
from typing import Any


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Adds --tokenizer, --activation and --hparams."""
    add = parser.add_argument
    add("--tokenizer", metavar="PATH", help="the tokenizer's file or folder, such as "
        "tokenizer.json or nanoGPT's meta.pkl, or gpt2; default: the model's")  # fmt: skip
    add("--activation", metavar="NAME", help="override the checkpoint's activation function, "
        "for example gelu_new for a nanoGPT trained before 17 May 2023")  # fmt: skip
    add("--hparams", metavar="FILE", help="hparams.json for a TensorFlow checkpoint without one, "
        "or a size: 124M, 355M, 774M or 1558M")  # fmt: skip


def checkpoint_options(options: argparse.Namespace) -> dict[str, Any]:
    """--activation and --hparams, as arguments of from_pretrained and open_checkpoint."""
    return {"activation": options.activation, "hparams": options.hparams}
