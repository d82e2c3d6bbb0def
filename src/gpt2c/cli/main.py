"""The command ``gpt2c``: generate text, score it, and tell what runs here."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import gpt2c
from gpt2c.checks.option_hints import flag_hint
from gpt2c.checks.options import integer
from gpt2c.cli import score as cli_score
from gpt2c.cli.input import READING, Item, read_prompts
from gpt2c.cli.options import add_checkpoint_options, checkpoint_options
from gpt2c.engine.threads import choose_threads
from gpt2c.errors import ContextError, Error, Gpt2cWarning, OptionError
from gpt2c.generate import drafting
from gpt2c.generate.prompts import check_ids
from gpt2c.progress import can_show
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from gpt2c.weights.hub import locate
from gpt2c.weights.named_tokenizer import tokenizer_for
from gpt2c.weights.tokenizer_files import save_tokenizer, with_named_tokens

_EXAMPLES: Final = """examples:
  gpt2c generate "Once upon a time" -n 100 --temperature 0.8 --top-k 40 --seed 1
  gpt2c generate "The meaning of life is" --model openai-community/gpt2
  gpt2c generate --file prompts.txt --json > texts.jsonl
  echo "The old king" | gpt2c generate --model path/to/checkpoint
  gpt2c score text.txt --color
  gpt2c perplexity book.txt --model openai-community/gpt2
  gpt2c info
"""


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


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each command refuses what it does not know, so that the error names its own help."""
        options, rest = super().parse_known_args(args, namespace)
        if rest:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(rest)}{flag_hint(rest[0], known)}")
        return options, rest


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="gpt2c", description=gpt2c.__doc__.splitlines()[0] if gpt2c.__doc__ else None,
        epilog=_EXAMPLES, formatter_class=layout, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"gpt2c {gpt2c.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    generate = commands.add_parser(
        "generate", help="continue a text", epilog=_EXAMPLES, formatter_class=layout,
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
    _add_model_options(generate)

    for scorer in cli_score.add_commands(commands, _load):
        _add_model_options(scorer)

    convert = commands.add_parser(
        "convert", help="write a checkpoint in Hugging Face's format", allow_abbrev=False,
        description="Reads a checkpoint in any format that gpt2c knows and writes a folder with "
        "config.json and model.safetensors (float32), which transformers loads too.",
    )  # fmt: skip
    convert.set_defaults(run=_convert)
    convert.add_argument("source", metavar="SRC", help="a folder or file, or a name on the hub")
    convert.add_argument("folder", metavar="DST", help="the folder to write")
    add_checkpoint_options(convert)

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

    bench = commands.add_parser(
        "bench", help="measure speed and memory", allow_abbrev=False,
        description="Measures prompts, decoding at several depths, batches, the first token of a "
        "fresh process and its memory; beside them the share of this machine's own streaming "
        "bandwidth and multiply-add rate, measured between the repeats. With --dtype all speed, "
        "size and quality of every dtype, side by side.",
    )  # fmt: skip
    bench.set_defaults(run=_bench)
    add = bench.add_argument
    add("--repeats", type=int, default=5, metavar="N", help="default: 5")
    add("--json", action="store_true", help="print one object instead of the table")
    add("--plot", metavar="FILE", help="draw a PNG too (with matplotlib)")
    _add_model_options(bench)

    info = commands.add_parser(
        "info", help="tell what runs here and why", allow_abbrev=False,
        description="Tells the version, the backend and why it was chosen, and a model's facts.",
    )  # fmt: skip
    info.set_defaults(run=_info)
    _add_model_options(info)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="MODEL", help="a checkpoint's folder or file, or a name on the hub; "
        "default: tales, which is part of gpt2c")  # fmt: skip
    add("--dtype", default="auto", help="float32, int8 or int4 (float64 on numpy); default: what "
        "the checkpoint was quantized to, else float32")  # fmt: skip
    add("--threads", type=int, metavar="N", help="most threads to use")
    add("--backend", default="auto", help="auto (default), c or numpy")
    add_checkpoint_options(parser)


def _load(options: argparse.Namespace) -> gpt2c.GPT2:
    return gpt2c.GPT2.from_pretrained(
        options.model, dtype=options.dtype, threads=options.threads, backend=options.backend,
        progress=_progress(), tokenizer=options.tokenizer, **checkpoint_options(options),
    )  # fmt: skip


def _progress() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and can_show()


# ---- generate ----


def _generate(options: argparse.Namespace) -> None:
    placed = read_prompts(options)
    prompts = [prompt for _, prompt in placed]
    with _load(options) as model:
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


# ---- convert ----


def _convert(options: argparse.Namespace) -> None:
    source = locate(options.source)
    with open_checkpoint(source, **checkpoint_options(options)) as checkpoint:
        tokenizer = tokenizer_for(checkpoint, options.tokenizer)
        config = _named_config(checkpoint, tokenizer)
        wide = replace(checkpoint, packing=None, config=config)
        save = partial(save_tokenizer, checkpoint, tokenizer=tokenizer)
        save_checkpoint(wide, Path(options.folder), save)


def _named_config(
    checkpoint: Checkpoint, tokenizer: Tokenizer | MissingTokenizer | None
) -> gpt2c.GPT2Config:
    """The configuration with the BOS and EOS tokens that the tokenizer's files name."""
    beside = checkpoint.folder if checkpoint.vocabulary is None else None
    return with_named_tokens(checkpoint.config, beside, tokenizer)[0]


def _quantize(options: argparse.Namespace) -> None:
    with gpt2c.GPT2.from_pretrained(
        options.source,
        dtype=options.dtype,
        progress=_progress(),
        tokenizer=options.tokenizer,
        **checkpoint_options(options),
    ) as model:
        model.save_pretrained(options.folder)


# ---- bench ----


def _bench(options: argparse.Namespace) -> None:
    from gpt2c.cli import bench

    repeats = integer("--repeats", options.repeats, 1, 1000)
    if options.dtype == "all":
        _bench_dtypes(options, repeats)
        return
    if options.plot:
        bench.new_figure()  # to say now, not after all the work, that it cannot be drawn
    measurements = []
    with _load(options) as model:
        name = options.model or "tales (embedded)"
        title = f"gpt2c {gpt2c.__version__}, {name}, {model.backend}, {model.threads} threads"
        if not options.json:
            print(title)
            print(bench.header())
        for measurement in bench.measure(
            model, options.model, repeats, checkpoint_options(options)
        ):
            measurements.append(measurement)
            if not options.json:
                print(bench.line(measurement), flush=True)
        if options.json:
            facts = {
                "gpt2c": gpt2c.__version__, "model": name, "backend": model.backend,
                "threads": model.threads, "weights_bytes": model.n_bytes,
            }  # fmt: skip
            found = [bench.as_object(measurement) for measurement in measurements]
            print(json.dumps({**facts, "measurements": found}))
    if options.plot:
        bench.plot(measurements, title, options.plot)


def _bench_dtypes(options: argparse.Namespace, repeats: int) -> None:
    from gpt2c.cli import bench_dtypes

    if options.plot:
        raise OptionError("--plot draws one dtype; --dtype all is shown as a table or as JSON")

    def load(dtype: str) -> gpt2c.GPT2:
        return _load(argparse.Namespace(**{**vars(options), "dtype": dtype, "backend": "c"}))

    name = options.model or "tales (embedded)"
    if not options.json:
        print(f"gpt2c {gpt2c.__version__}, {name}")
        print(bench_dtypes.header())
    rows = []
    for row in bench_dtypes.compare_dtypes(load, repeats):
        rows.append(asdict(row))
        if not options.json:
            print(bench_dtypes.line(row), flush=True)
    if options.json:
        print(json.dumps({"gpt2c": gpt2c.__version__, "model": name, "dtypes": rows}))


# ---- info ----


def _info(options: argparse.Namespace) -> None:
    with _load(options) as model:
        facts = [
            ("gpt2c", gpt2c.__version__),
            ("arithmetic", str(gpt2c.ARITHMETIC)),
            ("backend", _backend(model, options)),
            ("instruction sets", _instruction_sets()),
            ("threads", _threads(model, options)),
            *_model_facts(model, options.model),
        ]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")


def _backend(model: gpt2c.GPT2, options: argparse.Namespace) -> str:
    asked = [
        f"{name}={value}"
        for name, value in (
            ("--backend", options.backend if options.backend != "auto" else None),
            ("GPT2C_BACKEND", os.environ.get("GPT2C_BACKEND")),
            ("GPT2C_ISA", os.environ.get("GPT2C_ISA")),
        )
        if value
    ]
    if model.backend == "numpy":
        why = f"asked for by {', '.join(asked)}" if asked else "the compiled engine cannot run here"
        return f"numpy ({why})"
    why = f"asked for by {', '.join(asked)}" if asked else "the fastest that runs here"
    return f"c, {model.backend} ({why})"


def _threads(model: gpt2c.GPT2, options: argparse.Namespace) -> str:
    if model.backend == "numpy":
        return "NumPy's own choice"
    n, why = choose_threads(options.threads)
    return f"{n} ({why})"


def _instruction_sets() -> str:
    try:
        from gpt2c.engine import _engine
    except ImportError:
        return "none compiled"
    sets = _engine.instruction_sets()
    runs = [name for name, supported in sets if supported]
    return f"compiled: {' '.join(name for name, _ in sets)}; run here: {' '.join(runs) or 'none'}"


def _model_facts(model: gpt2c.GPT2, name: str | None) -> list[tuple[str, str]]:
    c = model.config
    head = "tied" if c.tie_word_embeddings else "untied"
    defaults = dict(model.generation_defaults)
    return [
        ("model", name or "tales (embedded)"),
        ("parameters", f"{c.n_parameters:,} ({model.n_bytes / 1e6:.1f} MB as {model.dtype})"),
        ("shape", f"{c.n_layer} blocks, n_embd {c.n_embd}, {c.n_head} heads, n_inner {c.inner}"),
        ("context", f"{c.n_positions} positions"),
        ("vocabulary", f"{c.vocab_size} tokens, {head} head"),
        ("activation", c.activation_function),
        ("end token", ", ".join(map(str, sorted(c.eos_token_ids))) or "none"),
        ("tokenizer", repr(model.tokenizer)),
        ("defaults", json.dumps(defaults) if defaults else "none"),
    ]


# ---- the process ----


class _LogToStderr(logging.Handler):
    """Prints what the library logs, in the form of the command's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line."""
        print(f"gpt2c: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _shown_log() -> Iterator[None]:
    """Shows the library's log, of warnings and worse, while a command runs."""
    log, handler = logging.getLogger("gpt2c"), _LogToStderr(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"gpt2c: warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and not isinstance(error, Error):
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status.

    0; 2 after an error, which is one line on standard error; 130 after Ctrl-C; 141 where the reader
    of the output went away, as for any program that SIGPIPE ends.
    """
    try:
        options = _parser().parse_args(arguments)
        with warnings.catch_warnings(), _shown_log():
            warnings.simplefilter("always", Gpt2cWarning)
            warnings.showwarning = _show_warning
            # What a terminal cannot show is no reason to lose the rest of the text.
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="replace")
            options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes standard output once more at exit: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Error, OSError, UnicodeError) as error:
        print(f"gpt2c: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0
