"""``gpt2c eval``: lm-eval's own command line, with gpt2c's model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from gpt2c.cli.options import Commands, add_model_options, weighted_adapters
from gpt2c.errors import Error, OptionError

_EXAMPLES: Final = """examples:
  gpt2c eval --tasks lambada_openai,wikitext --model path/to/checkpoint --limit 100
  gpt2c eval --tasks my_task --include_path tasks --dtype int8 --log_samples --output_path out
  gpt2c eval --tasks hellaswag --model hf --model_args pretrained=gpt2,dtype=float32
  gpt2c eval ls tasks
"""
_COMMANDS: Final = {"ls", "validate"}  # of lm-eval, that run no model
# gpt2c's options that are arguments of the model, with their defaults.
_MODEL_ARGUMENTS: Final[dict[str, object]] = {
    "dtype": "auto",
    "threads": None,
    "backend": "auto",
    "kv_cache_bytes": None,
    "tokenizer": None,
    "activation": None,
    "hparams": None,
    "n_head": None,
}


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "eval", help="evaluate a model on tasks of lm-eval", allow_abbrev=False,
        description="Runs lm-evaluation-harness (the package lm-eval) on the model. The options\n"
        "below are gpt2c's. All others go to lm-eval: --tasks, --num_fewshot, --limit,\n"
        "--output_path, --log_samples, --include_path, --model_args and more;\n"
        "'lm-eval run --help' lists them. --model may also be the name of one of\n"
        "lm-eval's own models, such as hf; its arguments are then --model_args.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_model_options(parser)
    parser.passes_unknown = True  # type: ignore[attr-defined]  # an attribute of main's parsers
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from gpt2c.compat.lm_eval import register

    register()
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    names = frozenset(model_registry.keys())
    with _arguments(["lm-eval", *lm_eval_arguments(options, names)]):
        try:
            cli_evaluate()
        except ValueError as error:  # what lm-eval raises for an unknown task, among others
            if isinstance(error, Error) or os.environ.get("LMEVAL_LOG_LEVEL") == "DEBUG":
                raise
            raise OptionError(
                f"lm-eval: {error} (LMEVAL_LOG_LEVEL=DEBUG shows the traceback)"
            ) from error


def lm_eval_arguments(options: argparse.Namespace, models: frozenset[str]) -> list[str]:
    """Return the arguments for lm-eval's command; `models` are the names of its models."""
    rest: list[str] = options.unknown
    if rest and rest[0] in _COMMANDS:
        return rest
    given = {
        name: getattr(options, name)
        for name, default in _MODEL_ARGUMENTS.items()
        if getattr(options, name) != default
    }
    if options.adapter:
        given["adapter"] = weighted_adapters(options.adapter)
    if options.model in models:
        return ["--model", options.model, *_model_args(given), *rest]
    if options.model is not None:
        given["pretrained"] = options.model
    if not given and any(each.split("=")[0] in ("--config", "-C") for each in rest):
        return rest  # the file names the model
    return ["--model", "gpt2c", *_model_args(given), *rest]


def _model_args(given: dict[str, Any]) -> list[str]:
    """Return --model_args as JSON, which also holds a path with a comma."""
    return ["--model_args", json.dumps(given)] if given else []


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Let sys.argv be the arguments, where lm-eval's command reads them."""
    before = sys.argv
    sys.argv = list(arguments)
    try:
        yield
    finally:
        sys.argv = before
