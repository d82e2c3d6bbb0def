"""``gpt2c bench``: measure speed and memory."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import gpt2c
from gpt2c.cli.options import Commands, add_model_options, checkpoint_options, load_model
from gpt2c.errors import OptionError


def add_command(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "bench", help="measure speed and memory", allow_abbrev=False,
        description="Measures the speed of prefill, of decoding after prompts of several lengths, "
        "and of batches; also the time to first token and the memory of a fresh process. Each "
        "speed is shown with its share of this machine's streaming bandwidth and FMA rate, which "
        "are measured between the repeats. --dtype all compares the speed, size and quality of "
        "all dtypes.",
    )  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add(
        "--repeats", type=int, default=5, metavar="N", help="measure everything N times; default: 5"
    )
    add("--json", action="store_true", help="print a JSON object instead of the table")
    add("--plot", metavar="FILE", help="also draw a PNG file (needs matplotlib)")
    add_model_options(parser)


def _run(options: argparse.Namespace) -> None:
    from gpt2c.checks.options import integer
    from gpt2c.cli.bench import speed
    from gpt2c.look.plots import new_figure

    repeats = integer("--repeats", options.repeats, 1, 1000)
    if options.dtype == "all":
        _bench_dtypes(options, repeats)
        return
    if options.plot:
        new_figure()  # if matplotlib is missing, fail before the measurements
    measurements = []
    with load_model(options) as model:
        name = options.model or "tales (embedded)"
        title = f"gpt2c {gpt2c.__version__}, {name}, {model.backend}, {model.threads} threads"
        if not options.json:
            print(title)
            print(speed.header())
        for measurement in speed.measure(
            model, options.model, repeats, checkpoint_options(options)
        ):
            measurements.append(measurement)
            if not options.json:
                print(speed.line(measurement), flush=True)
        if options.json:
            setup = {
                "gpt2c": gpt2c.__version__, "model": name, "backend": model.backend,
                "threads": model.threads, "weights_bytes": model.n_bytes,
            }  # fmt: skip
            objects = [speed.json_fields(measurement) for measurement in measurements]
            print(json.dumps({**setup, "measurements": objects}))
    if options.plot:
        speed.plot(measurements, title, options.plot)


def _bench_dtypes(options: argparse.Namespace, repeats: int) -> None:
    from gpt2c.cli.bench import dtypes

    if options.plot:
        raise OptionError("--plot draws only one dtype; leave out --plot or --dtype all")

    def load_as(dtype: str) -> gpt2c.GPT2:
        return load_model(argparse.Namespace(**{**vars(options), "dtype": dtype, "backend": "c"}))

    name = options.model or "tales (embedded)"
    if not options.json:
        print(f"gpt2c {gpt2c.__version__}, {name}")
        print(dtypes.header())
    rows = []
    for row in dtypes.compare_dtypes(load_as, repeats):
        rows.append(asdict(row))
        if not options.json:
            print(dtypes.line(row), flush=True)
    if options.json:
        print(json.dumps({"gpt2c": gpt2c.__version__, "model": name, "dtypes": rows}))
