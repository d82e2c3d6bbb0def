"""Options that several commands share, and loading the model that they name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import gpt2c
from gpt2c.errors import OptionError
from gpt2c.progress import can_show_bar

# The type of what add_subparsers returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXAMPLES: Final = """examples:
  gpt2c generate "Once upon a time" -n 100 --temperature 0.8 --top-k 40 --seed 1
  gpt2c generate "The meaning of life is" --model openai-community/gpt2
  gpt2c generate --file prompts.txt --json > texts.jsonl
  echo "The old king" | gpt2c generate --model path/to/checkpoint
  gpt2c score text.txt --color
  gpt2c perplexity book.txt --model openai-community/gpt2
  gpt2c choose "The sky was" --choice " blue" --choice " green"
  gpt2c embed texts.txt --lines --output vectors.npy
  gpt2c info
"""


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add --tokenizer, --activation, --hparams, --n-head and --adapter."""
    add = parser.add_argument
    add("--tokenizer", metavar="PATH", help="a tokenizer's file or folder, for example "
        "tokenizer.json or nanoGPT's meta.pkl; gpt2 is GPT-2's; default: the model's")  # fmt: skip
    add("--activation", metavar="NAME", help="override the checkpoint's activation function, "
        "for example gelu_new for a nanoGPT trained before 17 May 2023")  # fmt: skip
    add("--hparams", metavar="FILE", help="hparams.json for a TensorFlow checkpoint without one, "
        "or a size: 124M, 355M, 774M or 1558M")  # fmt: skip
    add("--adapter", metavar="PATH[=WEIGHT]", action="append", help="a LoRA adapter of peft to "
        "merge into the weights: a folder or a name on the hub; WEIGHT multiplies its change; may "
        "be repeated")  # fmt: skip
    add("--n-head", type=int, metavar="N", help="the number of heads, for a checkpoint that does "
        "not store it, such as one of rasbt's book or picoGPT")  # fmt: skip


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """Add SRC, DST and the checkpoint options."""
    parser.add_argument("source", metavar="SRC", help="a folder or file, or a name on the hub")
    parser.add_argument("folder", metavar="DST", help="the folder to write")
    add_checkpoint_options(parser)


def checkpoint_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of from_pretrained for the options except --tokenizer."""
    return {
        "activation": options.activation,
        "hparams": options.hparams,
        "n_head": options.n_head,
        "adapter": weighted_adapters(options.adapter or []),
    }


def weighted_adapters(given: Sequence[str]) -> list[tuple[str, float]] | None:
    """Return the argument `adapter` for the values of --adapter: each is PATH or PATH=WEIGHT.

    A path that exists may have a = in it. Raises OptionError for a weight that is not a number.
    """
    return [_weighted(text) for text in given] or None


def _weighted(text: str) -> tuple[str, float]:
    path, separator, weight = text.rpartition("=")
    if not separator or os.path.lexists(text):
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise OptionError(
            f"--adapter {text}: found no such folder; expected PATH or PATH=WEIGHT, where WEIGHT "
            "is a number"
        ) from None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, --dtype, --threads, --backend, --kv-cache-bytes, --shared, and others.

    The others are the checkpoint options.
    """
    add = parser.add_argument
    add("--model", metavar="MODEL", help="a checkpoint's folder or file, or a name on the hub; "
        "default: tales, the embedded model")  # fmt: skip
    add("--dtype", default="auto", help="float32, int8 or int4 (float64 on numpy); default: what "
        "the checkpoint was quantised to, else float32")  # fmt: skip
    add("--threads", type=int, metavar="N", help="the max number of threads")
    add("--backend", default="auto", help="auto (default), c or numpy")
    add("--kv-cache-bytes", type=int, metavar="N", help="the max memory of the KV cache; default: "
        "half of the memory that this process may use")  # fmt: skip
    add_shared_option(parser)
    add_checkpoint_options(parser)


def add_shared_option(parser: argparse.ArgumentParser) -> None:
    """Add --shared."""
    parser.add_argument("--shared", action="store_true", help="keep the weights in memory that all "
        "processes of this user share (Linux)")  # fmt: skip


def add_special_tokens_option(parser: argparse.ArgumentParser) -> None:
    """Add --special-tokens."""
    parser.add_argument("--special-tokens", action="store_true", help="encode special tokens in a "
        "text, for example <|endoftext|>, as one token each instead of plain "
        "characters")  # fmt: skip


def add_stride_option(parser: argparse.ArgumentParser) -> None:
    """Add --stride, for commands that score texts."""
    parser.add_argument("--stride", type=int, metavar="N", help="score a text longer than the "
        "context in windows that begin N tokens apart; default: half of the context")  # fmt: skip


def load_model(options: argparse.Namespace, model: str | None = None) -> gpt2c.GPT2:
    """Load `model`, by default that of --model, with the other options of add_model_options.

    Only the model of --model gets the adapters of --adapter.

    Raises the errors of from_pretrained.
    """
    arguments = model_arguments(options)
    if model is not None:
        arguments["adapter"] = None
    return gpt2c.GPT2.from_pretrained(
        options.model if model is None else model, progress=shows_progress(), **arguments
    )


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of from_pretrained that the options of add_model_options give."""
    return {
        "dtype": options.dtype,
        "threads": options.threads,
        "backend": options.backend,
        "kv_cache_bytes": options.kv_cache_bytes,
        "shared": options.shared,
        "tokenizer": options.tokenizer,
        **checkpoint_options(options),
    }


def shows_progress() -> bool:
    """Return whether to show a loading bar: standard error is a terminal, and tqdm is installed."""
    return sys.stderr is not None and sys.stderr.isatty() and can_show_bar()
