"""``gpt2c verify``: compare a model with published results."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2c.cli.options import Commands, add_checkpoint_options, add_shared_option, load_model

if TYPE_CHECKING:
    from gpt2c.model import GPT2
    from gpt2c.published.facts import Facts
    from gpt2c.published.report import Check

_DIFFERENT = 1  # the exit status if a check failed


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "verify", help="compare a model with published results", allow_abbrev=False,
        description="Checks that a model runs correctly here, and that it gives the results that "
        "others published for it: greedy texts, losses and probabilities of OpenAI's four sizes "
        "of GPT-2. Of another model, it checks what needs no published result. The exit status is "
        "0 if no check failed, 1 if one failed, and 2 if the model or a file cannot be read.",
    )  # fmt: skip
    parser.set_defaults(run=_run, kv_cache_bytes=None)
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="a checkpoint's folder or file, or a name on the "
        "hub, such as openai-community/gpt2; default: tales, the embedded model")  # fmt: skip
    add("--wikitext", metavar="FILE", help="WikiText-2's raw test set, wiki.test.raw: also compare "
        "published perplexities of it")  # fmt: skip
    add("--facts", metavar="FILE", help="a TOML file with results of your own models instead of "
        "the packaged one (docs/verify.md)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object per check and line")
    add("--dtype", default="auto", help="as for generate; published results need float32")
    add("--threads", type=int, metavar="N", help="the max number of threads")
    add("--backend", default="auto", help="auto (default), c or numpy")
    add_shared_option(parser)
    add_checkpoint_options(parser)


def _run(options: argparse.Namespace) -> int:
    from gpt2c.published.facts import packaged_facts, read_facts
    from gpt2c.published.verify import verify

    facts = packaged_facts() if options.facts is None else read_facts(Path(options.facts))
    wikitext = None if options.wikitext is None else Path(options.wikitext)
    with load_model(options) as model:
        if not options.json:
            print(_title(model, facts, options.model or "the embedded model"), flush=True)
        checks = []
        for check in verify(model, facts, wikitext):
            checks.append(check)
            print(_json(check) if options.json else _shown(check), flush=True)
    n_failed = sum(check.status == "FAILED" for check in checks)
    if not options.json:
        print(_summary(checks, n_failed))
    return _DIFFERENT if n_failed else 0


def _title(model: GPT2, facts: Facts, path: str) -> str:
    from gpt2c.published.sizes import SIZES

    name = facts.model_like(model.config)
    if name is None:
        known = ", ".join(facts.models)
        what = (
            f"has the shape of none of the known models ({known}), so there are no published "
            "results to compare; the general checks follow"
        )
    elif name in [size.name for size in SIZES]:
        what = f"has the shape of OpenAI's GPT-2 {name}"
    else:
        what = f"has the shape of {name}"
    return f"{path} {what}\n{model.dtype} on {model.backend}\n"


def _shown(check: Check) -> str:
    lines = [f"{check.status:<7}  {check.name}"]
    if check.status == "skipped":
        lines.append(f"{'':9}{check.found}")
    elif check.status == "FAILED":
        lines += [f"{'':9}found     {check.found}", f"{'':9}expected  {check.expected}"]
        lines += [f"{'':9}tolerance {check.tolerance}"] if check.tolerance else []
    else:
        lines[0] += f": {check.found}" if check.found == check.expected else ""
        if check.found != check.expected:
            lines.append(f"{'':9}{check.found}; expected {check.expected}")
    if check.source:
        lines.append(f"{'':9}from {check.source}")
    return "\n".join(lines)


def _summary(checks: list[Check], n_failed: int) -> str:
    n_ok = sum(check.status == "ok" for check in checks)
    n_skipped = len(checks) - n_ok - n_failed
    verdict = "FAILED" if n_failed else "ok"
    summary = f"\n{n_ok} checks ok, {n_failed} failed, {n_skipped} skipped: {verdict}"
    if n_failed and all(check.source for check in checks if check.status == "FAILED"):
        summary += (
            "\nOnly published results differ. gpt2c runs these weights correctly, but they are not "
            "the published ones: another model of this shape, a fine-tuned one, or a damaged file."
        )
    return summary


def _json(check: Check) -> str:
    return json.dumps(asdict(check), ensure_ascii=False)
