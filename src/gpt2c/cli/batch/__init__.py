"""``gpt2c batch``: jobs over files of any size, which go on where they were after any end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gpt2c.cli.batch.bar import open_bar
from gpt2c.cli.batch.job_options import add_job_options, make_job, model_spec
from gpt2c.cli.embed import add_embedding_options, embedding_arguments
from gpt2c.cli.generate import add_generation_options, complete_arguments
from gpt2c.cli.options import (
    Commands,
    add_model_options,
    add_special_tokens_option,
    add_stride_option,
    shows_progress,
)
from gpt2c.cli.surprisal import add_measuring_options, measuring_arguments
from gpt2c.errors import OptionError

if TYPE_CHECKING:
    from gpt2c.jobs import Job, Progress, Runner, Worker
    from gpt2c.jobs.manifest import Facts

# Reads the arguments of the model's call from the options.
_Arguments = Callable[[argparse.Namespace], dict[str, Any]]

_EXAMPLES: Final = """examples:
  gpt2c batch generate prompts.jsonl --output texts -n 100 --temperature 0.8 --seed 1
  gpt2c batch generate rows.csv --template "Q: {question}\\nA:" --output answers --format parquet
  gpt2c batch score 'corpus/*.jsonl.zst' --output scores --model openai-community/gpt2
  gpt2c batch surprisal texts.parquet --column text --whole --output surprisals
  gpt2c batch embed s3://bucket/texts.jsonl --output s3://bucket/vectors --format parquet
  gpt2c batch score corpus.jsonl --output scores --dry-run
  gpt2c batch score corpus.jsonl --output scores --ray 10.0.0.1:6379
"""


def add_command(commands: Commands) -> None:
    """Add the command's parser, with a subcommand for each task."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "batch", help="run a job over files of any size, with restart", allow_abbrev=False,
        description="Runs a task for each row of the inputs, and writes the results to a folder.\n"
        "If the job ends early, for whatever reason, the same command goes on where it\n"
        "was. docs/jobs.md describes the files.", epilog=_EXAMPLES, formatter_class=layout,
    )  # fmt: skip
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task")
    generate = _add_task(tasks, "generate", "continue the prompts of a column", _generate, "prompt")
    add_generation_options(generate, left_out=("max-time", "seed"))
    generate.add_argument("--seed", type=int, metavar="S", default=0, help="the job's seed, from "
        "which each row's seed is derived; default: 0")  # fmt: skip
    generate.add_argument("--with-ids", action="store_true", help="write the new tokens' ids too")
    add_model_options(generate)
    score = _add_task(tasks, "score", "measure each text's perplexity", _score)
    score.add_argument("--bos", action="store_true", help="score the first token too, after the "
        "BOS token")  # fmt: skip
    add_special_tokens_option(score)
    add_stride_option(score)
    score.add_argument("--with-tokens", action="store_true", help="write each token's id, "
        "log-probability, rank and entropy too")  # fmt: skip
    score.add_argument("--top-logprobs", type=int, metavar="N", default=0, help="write the N most "
        "likely tokens at each position too")  # fmt: skip
    add_model_options(score)
    surprisal = _add_task(tasks, "surprisal", "measure the surprisal of each word", _surprisal)
    surprisal.add_argument("--whole", action="store_true", help="write a row for each text "
        "instead, with the surprisal of the text as a whole")  # fmt: skip
    add_measuring_options(surprisal)
    add_model_options(surprisal)
    embed = _add_task(tasks, "embed", "turn texts into vectors", _embed)
    add_embedding_options(embed)
    add_model_options(embed)


def _add_task(
    tasks: Commands, name: str, help: str, arguments: _Arguments, column: str = "text"
) -> argparse.ArgumentParser:
    parser = tasks.add_parser(
        name, help=help, allow_abbrev=False,
        description=f"A job that does what gpt2c {name} does, for each row of the inputs. If it "
        "ends early, the same command goes on where it was. docs/jobs.md describes the files.",
    )  # fmt: skip
    parser.set_defaults(run=partial(_run, arguments))
    add_job_options(parser, column)
    return parser


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    arguments = complete_arguments(options)
    arguments.pop("seed")
    given = {name: value for name, value in arguments.items() if value is not None}
    if arguments["draft"] is None:
        given["draft"] = None
    return {**given, "with_ids": options.with_ids}


def _score(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "bos": options.bos,
        "special_tokens": options.special_tokens,
        "stride": options.stride,
        "top_logprobs": options.top_logprobs,
        "with_tokens": options.with_tokens,
    }


def _surprisal(options: argparse.Namespace) -> dict[str, Any]:
    return {**measuring_arguments(options), "whole": options.whole}


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    return dict(embedding_arguments(options))


def _run(arguments: _Arguments, options: argparse.Namespace) -> None:
    from gpt2c.jobs import Worker
    from gpt2c.jobs.manifest import model_facts

    job = make_job(options, arguments(options))
    with model_spec(options).load(progress=shows_progress()) as model:
        worker = Worker(job.task, model)
        if options.dry_run:
            _print_estimate(job, worker, options)
            return
        facts = model_facts(model, job.task, options.model)
        with open_bar(is_shown=shows_progress()) as report:
            runner = _runner(job, worker, facts, options)
            done = job.run(facts, worker.columns, runner, report)
    _print_summary(job, done)


def _runner(job: Job, worker: Worker, facts: Facts, options: argparse.Namespace) -> Runner:
    """Return what does the windows of rows: this process, or a cluster."""
    if options.ray is None:
        if options.ray_cpus is not None or options.ray_actors is not None:
            raise OptionError("--ray-cpus and --ray-actors need --ray")
        return partial(map, worker.run)
    from gpt2c.jobs.ray import Cluster, Placement, connect

    placement = Placement(options.ray_cpus, options.ray_actors)
    connect(options.ray or None)
    return Cluster(job.task, model_spec(options), facts, placement)


def _print_estimate(job: Job, worker: Worker, options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from gpt2c.jobs.estimate import estimate

    with open_bar(is_shown=shows_progress()) as report:
        found = estimate(job, worker, options.sample_rows, report)
    print(json.dumps(asdict(found)))


def _print_summary(job: Job, done: Progress) -> None:
    """Say on standard error how the job ended; the results are in its folder."""
    before = f", {done.rows_before} before" if done.rows_before else ""
    bad = f"; {done.bad_rows} bad rows are listed in {job.output}" if done.bad_rows else ""
    print(f"gpt2c: {job.output} is complete: {done.rows} rows{before}{bad}", file=sys.stderr)
