"""Fuzzes checkpoints, tokenizers and calls for an hour, or for a number of inputs.

    python tools/soak/fuzz.py [checkpoints|tokenizers|api ...] [--minutes M | --inputs N] [--seed S]

Needs an environment with gpt2c and its extra "test". The last line shows the seed and the result.
It exits with status 1 at the first input that raises an exception other than gpt2c's own, or takes
more time or memory than tests/fuzzing.py allows. --keep FOLDER saves that input.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from fuzzing import KINDS, MAX_ADDRESSES, FindingError, run
from summary import print_counts

# Inputs per round. Each round has one kind of inputs and its own seed.
ROUND_SIZE = 5000


def main() -> int:
    options = arguments()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    kinds = options.kinds or list(KINDS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    n_rounds = 0

    def is_over() -> bool:
        if options.inputs is not None:
            return counts.total() >= options.inputs * len(kinds)
        return time.monotonic() - begin >= options.minutes * 60

    result = "nothing found"
    while not is_over():
        kind = kinds[n_rounds % len(kinds)]
        n = ROUND_SIZE
        if options.inputs is not None:
            n = min(ROUND_SIZE, n_left(options.inputs, n_rounds, kinds))
        # `fuzz.py KIND --seed ROUND_SEED --inputs N` repeats one round.
        round_seed = seed + n_rounds
        try:
            counts += run(kind, round_seed, n, options.keep)
        except FindingError as finding:
            result = f"FOUND in {kind}, seed {round_seed}: {finding}"
            break
        n_rounds += 1
        print(f"{time.monotonic() - begin:8.0f} s  {counts.total():9} inputs", flush=True)
    print_counts(counts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"fuzz {' '.join(kinds)}: seed {seed}, {counts.total()} inputs in "
        f"{time.monotonic() - begin:.0f} s, peak resident memory {peak} MB: {result}"
    )
    return 0 if result == "nothing found" else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", default=60, help="run for M minutes; default: 60"
    )
    parser.add_argument("--inputs", type=int, metavar="N", help="run N inputs of each kind instead")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where to save the input that fails"
    )
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; known are {', '.join(KINDS)}")
    return options


def n_left(inputs: int, n_rounds: int, kinds: list[str]) -> int:
    """Return the number of inputs that this round's kind has yet to run."""
    return max(inputs - ROUND_SIZE * (n_rounds // len(kinds)), 0)


if __name__ == "__main__":
    sys.exit(main())
