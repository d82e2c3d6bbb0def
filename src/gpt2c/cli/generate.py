"""``gpt2c generate``: continue texts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import gpt2c
from gpt2c.cli.input import READING, Item, read_prompts
from gpt2c.cli.options import EXAMPLES, Commands, add_model_options, load
from gpt2c.errors import ContextError
from gpt2c.generate import drafting
from gpt2c.generate.prompts import check_ids

# Those of GPT2.complete that are one number.
_GENERATE_OPTIONS: Final = (
    ("temperature", float, "T", "divides the logits; 0 is greedy"),
    ("top-k", int, "K", "draw from the K likeliest tokens alone"),
    ("top-p", float, "P", "draw from the fewest likeliest tokens that reach P together"),
    ("min-p", float, "P", "draw from tokens at least P times as likely as the likeliest"),
    ("typical-p", float, "P", "draw from tokens as surprising as usual, which reach P together"),
    ("top-n-sigma", float, "N", "draw from logits within N standard deviations of the greatest"),
    ("mirostat-tau", float, "BITS", "draw at a surprise of so many bits a token"),
    ("repetition-penalty", float, "R", "divides the logits of tokens that the text has"),
    ("presence-penalty", float, "X", "taken from the logits of tokens that were generated"),
    ("frequency-penalty", float, "X", "the same for each time"),
    ("no-repeat-ngram-size", int, "N", "no N tokens in a row come twice"),
    ("dry-multiplier", float, "X", "how strongly repeated passages are kept from going on"),
    ("min-new-tokens", int, "N", "so many tokens come before one may end the text"),
    ("max-time", float, "SECONDS", "end a text (with --json: all of them) when this has passed"),
    ("seed", int, "S", "where sampling is on: draw the same text again"),
)

# The same of texts that are printed when they are whole.
_WHOLE_TEXT_OPTIONS: Final = (
    ("num-beams", int, "N", "search N texts at once for the likeliest one"),
    ("length-penalty", float, "X", "above 0 (default: 1) the search rewards length"),
    ("num-beam-groups", int, "N", "so many groups of beams, kept apart by --diversity-penalty"),
    ("diversity-penalty", float, "X", "taken from what the groups before chose at this place"),
    ("num-return-sequences", int, "N", "so many texts of each prompt, of beams the best"),
)
_EARLY_STOPPING: Final = {"true": True, "false": False, "never": "never"}


def add_command(commands: Commands) -> None:
    """Adds the command to argparse's subparsers."""
    layout = argparse.RawDescriptionHelpFormatter
    generate = commands.add_parser(
        "generate", help="continue a text", epilog=EXAMPLES, formatter_class=layout,
        description="Continues prompts and prints the new text as it comes. Greedy unless a "
        f"sampling option is given.{READING}", allow_abbrev=False,
    )  # fmt: skip
    generate.set_defaults(run=_generate)
    add = generate.add_argument
    add("prompt", nargs="*", help="texts to continue; without one, standard input is, or, in a "
        "terminal, the model begins a text of its own")  # fmt: skip
    add(
        "--file",
        metavar="FILE",
        help="read prompts from a file, one per line; blank lines are skipped. JSON lines (.jsonl, "
        '.ndjson) are texts, lists of ids, or objects with "prompt" or "ids"; - is standard input',
    )
    add("-n", "--max-new-tokens", type=int, metavar="N", help="default: from the model's "
        "generation_config.json, else 40")  # fmt: skip
    add("--jsonl", action="store_true", help="FILE is JSON lines, whatever its name")
    for name, kind, metavar, help_text in (*_GENERATE_OPTIONS, *_WHOLE_TEXT_OPTIONS):
        add(f"--{name}", type=kind, metavar=metavar, help=help_text)
    add(
        "--early-stopping",
        choices=_EARLY_STOPPING,
        help="whether the search ends with its first N texts; never: when none can be better",
    )
    add(
        "--draft",
        choices=[*drafting.KINDS, "none"],
        default="auto",
        help="what guesses tokens, for speed alone; default: auto, what pays",
    )
    add("--stop", action="append", metavar="TEXT", help="end the text before this; may be repeated")
    add("--slide", action="store_true", help="when the context is full go on from its last half")
    add(
        "--truncate",
        choices=["left"],
        help="left: of a prompt longer than the context, keep the end",
    )
    add("--echo", action="store_true", help="print the prompt before the new text")
    add("--json", action="store_true", help="print one object a prompt and line")
    add_model_options(generate)


def _generate(options: argparse.Namespace) -> None:
    placed = read_prompts(options)
    prompts = [prompt for _, prompt in placed]
    with load(options) as model:
        _check_prompts(model, placed, options)
        if options.json:
            _print_objects(model, prompts, _sampling(options))
        else:
            if _streams(model, options):
                _print_texts(model, prompts, _sampling(options), options.echo)
            else:
                _print_whole_texts(model, prompts, _sampling(options), options.echo)


def _streams(model: gpt2c.GPT2, options: argparse.Namespace) -> bool:
    """Whether texts are printed as they come: one of each prompt, and none of a search."""
    return not _whole_text_options(options) and "num_beams" not in model.generation_defaults


def _whole_text_options(options: argparse.Namespace) -> dict[str, Any]:
    names = [name.replace("-", "_") for name, *_ in _WHOLE_TEXT_OPTIONS]
    given = {name: getattr(options, name) for name in names}
    given["early_stopping"] = _EARLY_STOPPING.get(options.early_stopping)
    return {name: value for name, value in given.items() if value is not None}


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = [name.replace("-", "_") for name, *_ in _GENERATE_OPTIONS]
    length = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    return {
        **length,
        **{name: getattr(options, name) for name in names},
        **_whole_text_options(options),
        "stop_strings": options.stop,
        "overflow": "slide" if options.slide else "stop",
        "draft": None if options.draft == "none" else options.draft,
        "truncate": options.truncate,
    }


def _check_prompts(
    model: gpt2c.GPT2, prompts: Sequence[tuple[str, Item]], options: argparse.Namespace
) -> None:
    """Refuse a prompt that cannot be continued before generating for any other."""
    n_positions = model.config.n_positions
    is_bounded = options.truncate is None and not options.slide
    for place, prompt in prompts:
        if not isinstance(prompt, str):
            check_ids(prompt, model.config.vocab_size, place)
        elif not is_bounded:
            continue
        n = len(model.tokenizer.encode(prompt)) if isinstance(prompt, str) else len(prompt)
        if is_bounded and n > n_positions:
            raise ContextError(
                f"{place} has {n} tokens, more than the context's {n_positions} positions; shorten "
                "it, or pass --truncate left to keep its end"
            )


def _print_texts(
    model: gpt2c.GPT2, prompts: Sequence[Item], sampling: dict[str, Any], echo: bool
) -> None:
    for index, prompt in enumerate(prompts):
        if index:
            print()
        if not isinstance(prompt, str):
            _print_whole_texts(model, [prompt], sampling, echo)
            continue
        if echo:
            print(prompt, end="", flush=True)
        for piece in model.stream(prompt, **sampling):
            print(piece, end="", flush=True)
        print(flush=True)


def _print_whole_texts(
    model: gpt2c.GPT2, prompts: Sequence[Any], sampling: dict[str, Any], echo: bool
) -> None:
    is_first = True
    for prompt in prompts:
        (answer,) = model.complete(iter([prompt]), **sampling)
        for done in _as_list(answer):
            new: Any = [*prompt, *done.ids] if echo and isinstance(prompt, list) else done.new
            shown = new if isinstance(new, str) else json.dumps(new)
            before = prompt if echo and isinstance(prompt, str) else ""
            print("" if is_first else "\n", before, shown, sep="", flush=True)
            is_first = False


def _print_objects(model: gpt2c.GPT2, prompts: Sequence[Any], sampling: dict[str, Any]) -> None:
    for prompt, answer in zip(prompts, model.complete(iter(prompts), **sampling), strict=True):
        for done in _as_list(answer):
            given = {name: value for name, value in asdict(done).items() if "logprobs" not in name}
            print(json.dumps({"prompt": prompt, **given}, ensure_ascii=False), flush=True)


def _as_list(answer: Any) -> list[Any]:
    """The completions of a prompt: a list with num_return_sequences."""
    return answer if isinstance(answer, list) else [answer]
