"""``gpt2c serve``: answer OpenAI's completions API over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from gpt2c.cli.generate import DRAFTS
from gpt2c.cli.options import Commands, add_shared_option
from gpt2c.cli.serve.models import model_sources
from gpt2c.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from gpt2c.serve.app import Service
    from gpt2c.serve.limits import Limits
    from gpt2c.serve.security import Access

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_EXAMPLES: Final = """examples:
  gpt2c serve                                          # the embedded model, on 127.0.0.1:8000
  gpt2c serve --model openai-community/gpt2 --dtype int8
  gpt2c serve --model small=./gpt2 --model large=./gpt2-xl --dtype large=int4 --alias gpt=small
  GPT2C_API_KEY=... gpt2c serve --host 0.0.0.0 --allowed-host gpt2.example.org
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
       -d '{"prompt": "Once upon a time", "max_tokens": 40}'
"""


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    from gpt2c.serve.limits import descriptions

    parser = commands.add_parser(
        "serve", help="answer OpenAI's completions API over HTTP", allow_abbrev=False,
        description="Serves OpenAI's completions API. Texts of all clients are generated together, "
        "and each has the bits that it has alone. Needs the extra \"serve\".",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("--model", action="append", metavar="MODEL", help="a checkpoint's folder or file, or a "
        "name on the hub; NAME=MODEL gives it a name; may be repeated; default: tales")  # fmt: skip
    add("--alias", action="append", default=[], metavar="ALIAS=NAME", help="another name of a "
        "model; may be repeated")  # fmt: skip
    add("--dtype", action="append", default=[], metavar="DTYPE", help="float32, int8 or int4; "
        "NAME=DTYPE for one model; may be repeated")  # fmt: skip
    add("--draft", choices=DRAFTS, default="auto", help="how speculative decoding drafts tokens: "
        "see gpt2c generate; it changes no text; default: auto")  # fmt: skip
    add("--threads", type=int, metavar="N", help="the max number of threads")
    add("--backend", default="auto", help="auto (default), c or numpy")
    add("--kv-cache-bytes", type=int, metavar="N", help="the max memory of each model's KV cache; "
        "default: half of this process's memory, divided by the number of models")  # fmt: skip
    add_shared_option(parser)
    add("--prefix-cache-bytes", type=int, metavar="N", help="the memory, within the KV cache, for "
        "beginnings of later prompts; default: 64 MiB")  # fmt: skip
    add("--tokenizer", metavar="PATH", help="a tokenizer's file or folder, for all models")
    add("--activation", metavar="NAME", help=argparse.SUPPRESS)
    add("--hparams", metavar="FILE", help=argparse.SUPPRESS)
    add("--adapter", metavar="PATH[=WEIGHT]", action="append", help="a LoRA adapter of peft to "
        "merge into the weights; NAME=PATH[=WEIGHT] for one model; may be repeated")  # fmt: skip
    add("--n-head", type=int, metavar="N", help=argparse.SUPPRESS)
    add("--seed", type=int, metavar="S", help="the seed of requests that give none; default: "
        "a random one for each prompt")  # fmt: skip
    add("--no-special-tokens", action="store_true", help="encode names of special tokens in "
        "prompts, such as <|endoftext|>, as plain text, whatever requests ask for")  # fmt: skip
    add("--host", default="127.0.0.1", help="the address to listen on; default: 127.0.0.1")
    add("--port", type=int, default=8000, help="default: 8000; 0: any free port")
    add("--unix-socket", metavar="PATH", help="listen on a Unix socket instead")
    add("--root-path", default="", metavar="PATH", help="a prefix of all paths, such as /gpt2")
    add("--api-key-file", metavar="FILE", help="a file with an API key per line; GPT2C_API_KEY in "
        "the environment may have keys too, separated by commas")  # fmt: skip
    add("--allowed-host", action="append", default=[], metavar="HOST", help="a host name by which "
        "clients reach the server, besides localhost and addresses; * allows all")  # fmt: skip
    add("--allowed-origin", action="append", default=[], metavar="ORIGIN", help="a web page's "
        "origin, such as https://example.org, that may use the server (CORS)")  # fmt: skip
    add("--log-requests", action="store_true", help="log a line of JSON per request")
    limits = parser.add_argument_group("limits")
    for limit in descriptions():
        limits.add_argument(
            f"--{limit.name.replace('_', '-')}", type=int if limit.is_count else float,
            default=limit.default, metavar="N" if limit.is_count else "SECONDS",
            help=f"{limit.help}; default: {limit.default:.15g}",
        )  # fmt: skip


def _run(options: argparse.Namespace) -> None:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"gpt2c serve needs the package {error.name}: pip install gpt2c[serve]"
        ) from None
    from gpt2c.serve.server import Address, Running

    if not 0 <= options.port <= 65535:
        raise OptionError(f"port is {options.port}; it must be from 0 to 65535")
    _show_server_log()
    service = _service(options)
    running = Running(service, Address(options.host, options.port, options.unix_socket))
    if not (service.access.key_digests or options.unix_socket or options.host in _LOOPBACK):
        _say(f"warning: anybody who reaches {options.host} may use this server: it has no API key")
    _say(f"loading {', '.join(service.models.names)}; listening on {running.url}")
    running.run(on_ready=lambda: _say("ready"))
    if running.was_forced:
        sys.stdout.flush()
        os._exit(1)  # a thread may still score, and Python would wait for it


def _service(options: argparse.Namespace) -> Service:
    from gpt2c.serve.app import Service
    from gpt2c.serve.models import Models

    limits, access = _limits(options), _access(options)
    if options.seed is not None and not 0 <= options.seed < 2**64:
        raise OptionError(f"seed is {options.seed}; it must be from 0 to 2**64 - 1")
    root = options.root_path.rstrip("/")
    if root and not root.startswith("/"):
        raise OptionError(f"root-path is {options.root_path!r}; it must begin with /")
    return Service(
        Models(model_sources(options), limits), limits, access,
        parses_special=not options.no_special_tokens, seed=options.seed,
        logs_requests=options.log_requests, root_path=root,
    )  # fmt: skip


def _limits(options: argparse.Namespace) -> Limits:
    from gpt2c.serve.limits import Limits, descriptions

    return Limits(**{limit.name: getattr(options, limit.name) for limit in descriptions()})


def _access(options: argparse.Namespace) -> Access:
    from gpt2c.serve.security import Access, key_digests

    return Access(
        key_digests(options.api_key_file, os.environ.get("GPT2C_API_KEY")),
        frozenset(host.lower() for host in options.allowed_host),
        frozenset(options.allowed_origin),
        checks_host=options.unix_socket is None,
    )


def _show_server_log() -> None:
    """Show what the server logs on standard error."""
    for name in ("gpt2c.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("gpt2c: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("gpt2c.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _say(message: str) -> None:
    print(f"gpt2c: {message}", file=sys.stderr, flush=True)
