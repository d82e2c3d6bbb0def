"""``gpt2c generate``: continue prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Final

import gpt2c
from gpt2c.checks.untrusted import show
from gpt2c.cli.options import EXAMPLES, Commands, add_model_options, load_model
from gpt2c.cli.table_options import INPUT_HELP, add_input_options, open_input_texts
from gpt2c.errors import ContextError, OptionError
from gpt2c.tables import TextOrIds, open_texts

# Options of GPT2.complete that take one number.
_NUMBER_OPTIONS: Final = (
    ("temperature", float, "T", "divide the logits by T; 0 is greedy"),
    ("top-k", int, "K", "draw from the K most likely tokens only"),
    ("top-p", float, "P", "draw from the most likely tokens, up to total probability P"),
    ("min-p", float, "P", "draw from tokens at least P times as likely as the most likely one"),
    ("typical-p", float, "P", "draw from the most typical tokens, up to total probability P"),
    ("top-n-sigma", float, "N", "keep logits within N standard deviations of the max"),
    ("mirostat-tau", float, "BITS", "keep the mean surprisal near BITS per token"),
    ("repetition-penalty", float, "R", "divide the logits of tokens in the prompt or text by R"),
    ("presence-penalty", float, "X", "subtract X once from the logit of each generated token"),
    ("frequency-penalty", float, "X", "subtract X from a logit each time its token is generated"),
    ("no-repeat-ngram-size", int, "N", "never generate the same N consecutive tokens twice"),
    ("dry-multiplier", float, "X", "strength of the DRY penalty for repeated passages"),
    ("min-new-tokens", int, "N", "generate at least N tokens before an EOS token"),
    ("max-time", float, "SECONDS", "end a text (with --json: all texts) after this time"),
    ("seed", int, "S", "seed of the random numbers; the same seed draws the same text"),
)

# Options that need whole texts: with one of them, each text is printed once it is complete.
_WHOLE_TEXT_OPTIONS: Final = (
    ("num-beams", int, "N", "search for the most likely text with N beams"),
    ("length-penalty", float, "X", "values above 0 favour longer texts; default: 1"),
    ("num-beam-groups", int, "N", "divide the beams into N groups; needs --diversity-penalty"),
    ("diversity-penalty", float, "X", "subtract X from scores of tokens that earlier groups chose"),
    ("num-return-sequences", int, "N", "print N texts per prompt; with beams, the best N"),
)
DRAFTS: Final = ("auto", "packing", "lookup", "none")
_EARLY_STOPPING: Final = {"true": True, "false": False, "never": "never"}


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "generate", help="continue prompts", epilog=EXAMPLES, formatter_class=layout,
        description="Continues prompts and streams the new text. Decoding is greedy unless a "
        f"sampling option is given.{INPUT_HELP}", allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("prompt", nargs="*", help="texts to continue; default: standard input, or, in a terminal, "
        "an empty prompt")  # fmt: skip
    add("--file", metavar="FILE", help="read prompts from a file, one per line, skipping blank "
        "lines. A line of JSON lines (.jsonl, .ndjson) is a text, a list of ids, or an object with "
        "\"prompt\" or \"ids\"; of a table (.csv, .tsv, .parquet), the column \"prompt\" is "
        "read. - is standard input")  # fmt: skip
    add_input_options(parser, "prompt")
    add_generation_options(parser)
    add("--echo", action="store_true", help="print the prompt before the new text")
    add("--json", action="store_true", help="print a JSON object per text, one per line")
    add_model_options(parser)


def add_generation_options(parser: argparse.ArgumentParser, left_out: Collection[str] = ()) -> None:
    """Add the options of GPT2.complete, except the numbers that `left_out` names."""
    add = parser.add_argument
    add("-n", "--max-new-tokens", type=int, metavar="N", help="generate at most N tokens; "
        "default: from the model's generation_config.json, else 40")  # fmt: skip
    for name, kind, metavar, help_text in (*_NUMBER_OPTIONS, *_WHOLE_TEXT_OPTIONS):
        if name not in left_out:
            add(f"--{name}", type=kind, metavar=metavar, help=help_text)
    add("--early-stopping", choices=_EARLY_STOPPING, help="when a beam search with N "
        "complete texts ends: immediately (true), when no beam scores better (false, the default), "
        "or when no beam can become better (never)")  # fmt: skip
    add("--draft", choices=DRAFTS, default="auto", help="how speculative "
        "decoding drafts tokens: with the model in 4 bits (packing), by prompt lookup, or in each "
        "pass by the faster of both (auto, the default). Drafts never change the text")  # fmt: skip
    add("--stop", action="append", metavar="TEXT", help="end the text before this stop string; "
        "may be repeated")  # fmt: skip
    add("--eos-token-id", type=_eos_ids, metavar="ID[,ID...]", help="the tokens that end the text, "
        "or none for no such token; default: the model's own")  # fmt: skip
    full = parser.add_mutually_exclusive_group().add_argument
    full("--slide", dest="overflow", action="store_const", const="slide", default="stop",
         help="when the context is full, drop its first half and continue")  # fmt: skip
    full("--crop", dest="overflow", action="store_const", const="crop", help="when the context is "
         "full, choose each further token from the end that fits, as nanoGPT does (slow)"
         )  # fmt: skip
    add("--truncate", choices=["left"], help="left: keep only the end of a prompt longer than "
        "the context")  # fmt: skip


def _run(options: argparse.Namespace) -> None:
    named_prompts = _read_prompts(options)
    prompts = [prompt for _, prompt in named_prompts]
    arguments = complete_arguments(options)
    with load_model(options) as model:
        _check_prompts(model, named_prompts, options)
        if options.json:
            _print_objects(model, prompts, arguments)
        elif _can_stream(model, options):
            _stream_texts(model, prompts, arguments, options.echo)
        else:
            _print_whole_texts(model, prompts, arguments, options.echo)


def _eos_ids(text: str) -> list[int]:
    """Return the ids in an option's text; an empty list for "none"."""
    if text == "none":
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected token ids separated by commas, or none; found {show(text)}"
        ) from None


def _can_stream(model: gpt2c.GPT2, options: argparse.Namespace) -> bool:
    """Return whether to stream: there is one text per prompt, and no beam search."""
    return not _whole_text_options(options) and "num_beams" not in model.generation_defaults


def _whole_text_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the given options that need whole texts."""
    names = [name.replace("-", "_") for name, *_ in _WHOLE_TEXT_OPTIONS]
    given = {name: getattr(options, name) for name in names}
    given["early_stopping"] = _EARLY_STOPPING.get(options.early_stopping)
    return {name: value for name, value in given.items() if value is not None}


def complete_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of GPT2.complete."""
    names = [name.replace("-", "_") for name, *_ in _NUMBER_OPTIONS]
    length = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    return {
        **length,
        **{name: getattr(options, name) for name in names if hasattr(options, name)},
        **_whole_text_options(options),
        "stop_strings": options.stop,
        "overflow": options.overflow,
        **({} if options.eos_token_id is None else {"eos_token_id": options.eos_token_id or None}),
        "draft": None if options.draft == "none" else options.draft,
        "truncate": options.truncate,
    }


def _check_prompts(
    model: gpt2c.GPT2, prompts: Sequence[tuple[str, TextOrIds]], options: argparse.Namespace
) -> None:
    """Check every prompt, so that a bad prompt is reported before anything is generated.

    `prompts` are pairs of a name for messages and a prompt. Raises ContextError, or the errors of
    check_ids.
    """
    from gpt2c.generate.prompts import check_ids

    n_positions = model.config.n_positions
    must_fit = options.truncate is None and options.overflow == "stop"
    for name, prompt in prompts:
        if not isinstance(prompt, str):
            check_ids(prompt, model.config.vocab_size, name)
        elif not must_fit:
            continue
        n = len(model.tokenizer.encode(prompt)) if isinstance(prompt, str) else len(prompt)
        if must_fit and n > n_positions:
            raise ContextError(
                f"{name} has {n} tokens, more than the context's {n_positions} positions; shorten "
                "it, or pass --truncate left to keep its end"
            )


def _stream_texts(
    model: gpt2c.GPT2, prompts: Sequence[TextOrIds], arguments: dict[str, Any], echo: bool
) -> None:
    for index, prompt in enumerate(prompts):
        if index:
            print()
        if not isinstance(prompt, str):
            _print_whole_texts(model, [prompt], arguments, echo)
            continue
        if echo:
            print(prompt, end="", flush=True)
        for piece in model.stream(prompt, **arguments):
            print(piece, end="", flush=True)
        print(flush=True)


def _print_whole_texts(
    model: gpt2c.GPT2, prompts: Sequence[Any], arguments: dict[str, Any], echo: bool
) -> None:
    separator = ""
    for prompt in prompts:
        (answer,) = model.complete(iter([prompt]), **arguments)
        for completion in _as_list(answer):
            shown: Any = completion.new
            if echo:
                shown = [*prompt, *shown] if isinstance(prompt, list) else prompt + shown
            line = shown if isinstance(shown, str) else json.dumps(shown)
            print(separator, line, sep="", flush=True)
            separator = "\n"


def _print_objects(model: gpt2c.GPT2, prompts: Sequence[Any], arguments: dict[str, Any]) -> None:
    for prompt, answer in zip(prompts, model.complete(iter(prompts), **arguments), strict=True):
        for completion in _as_list(answer):
            fields = {
                name: value for name, value in asdict(completion).items() if "logprob" not in name
            }
            print(json.dumps({"prompt": prompt, **fields}, ensure_ascii=False), flush=True)


def _as_list(answer: Any) -> list[Any]:
    """Return a prompt's completions; complete returns a list only with num_return_sequences."""
    return answer if isinstance(answer, list) else [answer]


def _read_prompts(options: argparse.Namespace) -> list[tuple[str, TextOrIds]]:
    """Read the prompts, each with its name for messages.

    Standard input is one prompt without its final line end. Raises OptionError, TableError or
    OSError.
    """
    if options.file is not None:
        if options.prompt:
            raise OptionError("prompts are given both as arguments and with --file")
        with open_input_texts(options, options.file, lines=True) as texts:
            return [(item.place, item.text) for item in texts]
    if options.jsonl:
        raise OptionError("--jsonl needs --file; to read standard input, give --file -")
    if options.prompt:
        return [(f"prompt {n}", prompt) for n, prompt in enumerate(options.prompt, start=1)]
    if sys.stdin is None or sys.stdin.isatty():
        return [("the empty prompt", "")]
    with open_texts("-") as texts:
        return [(item.place, str(item.text).removesuffix("\n")) for item in texts]
