"""``gpt2c zero-shot``: measure the zero-shot table of the GPT-2 paper on the user's data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2c.checks.untrusted import show
from gpt2c.cli.options import Commands, add_model_options, load_model, shows_progress
from gpt2c.errors import OptionError
from gpt2c.tables.cells import plain_cell

if TYPE_CHECKING:
    from gpt2c.model import GPT2
    from gpt2c.published.tasks import Task
    from gpt2c.published.zero_shot import Measured


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "zero-shot", help="measure the GPT-2 paper's zero-shot table", allow_abbrev=False,
        description="Measures the zero-shot table of the GPT-2 paper (Radford et al. 2019, table "
        "3) on data that is in a folder, and prints the published figures beside it. Files that "
        "are not there are left out. --list says which files these are and where they come from. "
        "docs/paper.md says what the paper leaves open.",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("folder", metavar="DATA", nargs="?", help="a folder with the benchmarks' files, as their "
        "publishers distribute them, unpacked")  # fmt: skip
    add("--list", action="store_true", help="list the tasks and their files, and end")
    add("--tasks", metavar="NAMES", help="names of tasks with commas between them, or paths of "
        "task files (.toml); default: all whose files are in the folder")  # fmt: skip
    add("--stride", type=int, metavar="N", help="score texts longer than the context in windows "
        "that begin N tokens apart; default: half of the context. A small stride gives a lower "
        "perplexity and takes longer: 32 takes 16 times as long as 512")  # fmt: skip
    add("--limit", type=int, metavar="N", help="measure only the first N lines, passages or "
        "questions of each file, and N kilobytes of enwik8 and text8")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object per number and line")
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    from gpt2c.published.tasks import load_tasks

    names = None if options.tasks is None else [name for name in options.tasks.split(",") if name]
    if names == []:
        raise OptionError(f"--tasks is {show(options.tasks)}; it must have the name of a task")
    tasks = load_tasks(names)
    if options.list:
        print("\n\n".join(map(_described, tasks)))
        return
    if options.folder is None:
        raise OptionError("give the folder of the data, or --list for the files that it may have")
    if options.limit is not None and options.limit < 1:
        raise OptionError(f"--limit is {options.limit}; it must be at least 1")
    found = _find(tasks, Path(options.folder), names is not None)
    with load_model(options) as model:
        _check_stride(options.stride, model)
        if not options.json:
            print(_title(model, options), flush=True)
        for task, path in found:
            for result in _measured(model, task, path, options):
                print(_json(result) if options.json else _row(result), flush=True)


def _check_stride(stride: int | None, model: GPT2) -> None:
    """Raise OptionError now, not after the first of several files."""
    n = model.config.n_positions
    if stride is not None and not 1 <= stride <= n:
        raise OptionError(f"--stride is {stride}; it must be from 1 to the model's context, {n}")


def _find(tasks: list[Task], folder: Path, is_named: bool) -> list[tuple[Task, Path]]:
    """Return the tasks whose files exist; a task that was named must have its file."""
    if not folder.is_dir():
        raise OptionError(f"{folder}: is not a folder")
    found = [(task, path) for task in tasks if (path := task.find(folder)) is not None]
    missing = [task for task in tasks if task.find(folder) is None]
    if missing and (is_named or not found):
        wanted = "; ".join(f"{task.name}: {' or '.join(task.files)}" for task in missing)
        raise OptionError(f"{folder}: has no file for {wanted} (gpt2c zero-shot --list)")
    for task in missing:
        print(f"gpt2c: {task.name}: no {task.files[0]} in {folder}", file=sys.stderr)
    return found


def _measured(
    model: GPT2, task: Task, path: Path, options: argparse.Namespace
) -> Iterator[Measured]:
    from gpt2c.progress import counting_bar
    from gpt2c.published.zero_shot import measure

    with counting_bar(task.name, is_shown=shows_progress()) as count:
        results = measure(
            model, task, path, stride=options.stride, limit=options.limit, count=count
        )
    yield from results


def _title(model: GPT2, options: argparse.Namespace) -> str:
    from gpt2c.measure.windows import default_stride
    from gpt2c.published.sizes import size_of

    size = size_of(model.config)
    what = f"the shape of GPT-2 {size}" if size else "none of OpenAI's four sizes: no figures"
    stride = options.stride or default_stride(model.config.n_positions)
    limit = f", limit {options.limit}" if options.limit else ""
    return (
        f"model   {options.model or 'tales'} ({what}), {model.dtype} on {model.backend}\n"
        f"windows {model.config.n_positions} tokens, stride {stride}{limit}\n\n"
        f"{'column':<11} {'measure':<45} {'paper':>7} {'measured':>9}  of"
    )


def _row(result: Measured) -> str:
    note = f" ({result.note})" if result.note else ""
    return (
        f"{result.column:<11} {result.measure:<45} {result.paper or '-':>7} {result.value:>9.4g}  "
        f"{result.n:,} {result.unit}s of {os.path.basename(result.file)}{note}"
    )


def _json(result: Measured) -> str:
    return json.dumps(plain_cell(asdict(result)), ensure_ascii=False)


def _described(task: Task) -> str:
    facts = [
        ("measures", ", ".join(task.columns)),
        ("file", " or ".join(task.files)),
        ("units", f"{task.units:,}"),
        *((name if name != "file" else "from", value) for name, value in task.data.items()),
    ]
    return "\n".join([task.name, *(f"  {name:<10} {value}" for name, value in facts)])
