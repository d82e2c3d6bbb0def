"""``gpt2c info``: show which backend runs here and why, and facts about a model."""

from __future__ import annotations

import argparse
import json
import os

import gpt2c
from gpt2c.cli.options import Commands, add_model_options, load_model
from gpt2c.cli.version import version_and_commit
from gpt2c.config import tensor_shapes


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "info", help="show what runs here and why", allow_abbrev=False,
        description="Shows the version, the backend and why it was chosen, and facts about the "
        "model.",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    with load_model(options) as model:
        facts = [
            ("gpt2c", version_and_commit()),
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
    settings = [
        f"{name}={value}"
        for name, value in (
            ("--backend", options.backend if options.backend != "auto" else None),
            ("GPT2C_BACKEND", os.environ.get("GPT2C_BACKEND")),
            ("GPT2C_ISA", os.environ.get("GPT2C_ISA")),
        )
        if value
    ]
    if model.backend == "numpy":
        engine, why = "numpy", "the compiled engine cannot run here"
    else:
        engine, why = f"c, {model.backend}", "the fastest that runs here"
    if settings:
        why = f"asked for by {', '.join(settings)}"
    return f"{engine} ({why})"


def _threads(model: gpt2c.GPT2, options: argparse.Namespace) -> str:
    if model.backend == "numpy":
        return "NumPy's own choice"
    from gpt2c.engine.threads import choose_threads

    n, why = choose_threads(options.threads)
    return f"{n} ({why})"


def _instruction_sets() -> str:
    try:
        from gpt2c.engine import _engine
    except ImportError:
        return "none compiled"
    sets = _engine.instruction_sets()
    usable = [name for name, is_supported in sets if is_supported]
    return f"compiled: {' '.join(name for name, _ in sets)}; run here: {' '.join(usable) or 'none'}"


def _matrices(model: gpt2c.GPT2) -> str:
    """Return how the matrices are stored, such as "24 as float16, 1 as float32 (wte.weight)"."""
    names: dict[str, list[str]] = {}  # by dtype
    for name, shape in tensor_shapes(model.config).items():
        if len(shape) == 2 and name != "wpe.weight":
            names.setdefault(model.stored_dtype(name), []).append(name)
    commonest = max(names, key=lambda dtype: len(names[dtype]))
    return ", ".join(
        f"{len(found)} as {dtype}" + ("" if dtype == commonest else f" ({', '.join(found)})")
        for dtype, found in names.items()
    )


def _model_facts(model: gpt2c.GPT2, name: str | None) -> list[tuple[str, str]]:
    c = model.config
    head = "tied" if c.tie_word_embeddings else "untied"
    defaults = dict(model.generation_defaults)
    adapters = [f"{path} (weight {weight:g})" for path, weight in model.adapters]
    return [
        ("model", name or "tales (embedded)"),
        *((("adapters", ", ".join(adapters)),) if adapters else ()),
        ("parameters", f"{c.n_parameters:,} ({model.n_bytes / 1e6:.1f} MB as {model.dtype})"),
        ("matrices", _matrices(model)),
        ("shape", f"{c.n_layer} blocks, n_embd {c.n_embd}, {c.n_head} heads, n_inner {c.inner}"),
        ("context", f"{c.n_positions} positions"),
        ("vocabulary", f"{c.vocab_size} tokens, {head} head"),
        ("activation", c.activation_function),
        *((("labels", ", ".join(model.labels)),) if model.labels else ()),
        ("EOS token", ", ".join(map(str, sorted(c.eos_token_ids))) or "none"),
        ("tokenizer", repr(model.tokenizer)),
        ("defaults", json.dumps(defaults) if defaults else "none"),
    ]
