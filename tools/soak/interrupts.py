"""Interrupts calls of every kind at random moments and checks that no interrupt is lost.

Usage: python tools/soak/interrupts.py [--seconds 3600] [--seed 0] [--backend c|numpy|both]

Each round sets a timer of up to 5 ms, whose signal handler raises KeyboardInterrupt, and repeats
one kind of call until it catches the exception. The kinds are forward calls with edits (which may
fail or fork), all ways to generate, scores, sessions, streams, loading, close, and forks. The
script fails if

- the handler ran but nothing was caught: the interrupt was lost;
- close() does not free the weights after the round: an interrupted call still holds them;
- a session's ids and its cache disagree, or a later call returns a different result;
- a forked child fails, or there is no progress for two minutes (it then shows all threads).

If an interrupt comes inside a finalizer or a fork hook (logging has one), Python prints it instead
of raising it. The script fails if the finalizer or hook is gpt2c's; otherwise it only counts such
an interrupt.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from conftest import ISAS, config_of, import_lazy_modules, model_on, random_weights

import gpt2c

MAX_STALL = 120  # seconds without progress
# Seconds after which a signal counts as late and is raised again. fork and pthread_create block
# signals for a moment. A signal at that moment goes to another thread, such as one of NumPy's BLAS,
# and Python may notice it only with the next signal. This also happens without gpt2c.
LATE_AFTER = 5.0
LONGEST_TIMER = 5e-3
PROMPT = [1, 2, 3]


class FailedError(Exception):
    """A check of this script failed."""


class EditError(Exception):
    """Raised by an edit on purpose."""


class Signals:
    """The timer's signal handler, and counts of its interrupts."""

    def __init__(self) -> None:
        self.n_runs = self.n_caught = self.n_in_finalizers = self.n_late = 0
        self.where: list[str] = []
        signal.signal(signal.SIGALRM, self._handler)
        sys.unraisablehook = self._unraisable

    def _handler(self, number: int, frame: Any) -> None:
        self.n_runs += 1
        self.where = traceback.format_stack(frame)
        raise KeyboardInterrupt

    def _unraisable(self, found: Any) -> None:
        text = "".join(traceback.format_exception(found.exc_value))
        if not isinstance(found.exc_value, KeyboardInterrupt) or "gpt2c" in repr(found.object):
            print("unraisable:", found.object, text, flush=True)
            os._exit(1)
        self.n_in_finalizers += 1
        self.n_caught += 1

    def check(self) -> None:
        """Raise FailedError if the handler ran but its exception was not caught."""
        if self.n_runs != self.n_caught:
            raise FailedError(
                f"the handler ran {self.n_runs} times, but {self.n_caught} interrupts were caught; "
                f"it last ran at\n{''.join(self.where)}"
            )


class Calls:
    """One model and the kinds of calls on it."""

    def __init__(self, backend: str, rng: random.Random, n_threads: int) -> None:
        config = config_of()
        self.weights = random_weights(config)
        self.rng = rng
        self.backend, self.n_threads, self.config = backend, n_threads, config
        self.model = self.new_model()
        self.expected = self.results()
        self.session = self.model.session()

    def new_model(self) -> gpt2c.GPT2:
        return model_on(self.backend, self.config, self.weights, threads=self.n_threads)

    def results(self) -> list[Any]:
        """Return results that must not change after any interrupt."""
        logits = self.model.forward(PROMPT, capture="logits")["logits"]
        return [logits.tobytes(), self.model.generate(PROMPT, max_new_tokens=5)]

    def kinds(self) -> list[str]:
        return sorted(name for name in vars(Calls) if name.startswith("call_"))

    def call_edit(self) -> None:
        self.model.forward(PROMPT, capture=["q", "logits"], edit={"h.1.q": lambda x: 2 * x})

    def call_failing_edit(self) -> None:
        def edit(x: Any) -> Any:
            raise EditError

        with suppress(EditError):
            self.model.forward(PROMPT, capture=["q", "logits"], edit={"embed": edit})

    def call_forking_edit(self) -> None:
        child = None

        def edit(x: Any) -> Any:
            nonlocal child
            child = os.fork()
            if child == 0:
                limit_child()
            return x

        try:
            self.model.forward(PROMPT, edit={"h.0.mlp_act": edit})
        except gpt2c.ForkError:
            pass
        except KeyboardInterrupt:
            if child != 0:
                raise
        if child == 0:
            os._exit(0)

    def call_fork(self) -> None:
        child = os.fork()
        if child == 0:
            limit_child()
            os._exit(0 if self.results() == self.expected else 1)

    def call_greedy(self) -> None:
        self.model.generate([PROMPT, [4]], max_new_tokens=12)

    def call_sampled(self) -> None:
        self.model.complete(PROMPT, max_new_tokens=12, temperature=0.9, top_k=9, logprobs=2)

    def call_beams(self) -> None:
        self.model.generate(PROMPT, max_new_tokens=6, num_beams=3)

    def call_processor(self) -> None:
        self.model.generate(PROMPT, max_new_tokens=4, logits_processor=lambda ids, x: x)

    def call_failing_processor(self) -> None:
        def process(ids: Any, x: Any) -> Any:
            raise EditError

        with suppress(EditError):
            self.model.generate(PROMPT, max_new_tokens=4, logits_processor=process)

    def call_stream(self) -> None:
        for _ in self.model.stream(PROMPT, max_new_tokens=8):
            pass

    def call_score(self) -> None:
        self.model.score([PROMPT * 4, PROMPT], top_logprobs=1)

    def call_session(self) -> None:
        self.session.feed(PROMPT)
        if len(self.session) > 30:
            self.session.copy().rollback(3)
            self.session.rollback(21)

    def call_bad_arguments(self) -> None:
        for bad in ([99], []):
            with suppress(gpt2c.OptionError):
                self.session.feed(bad)

    def call_closed(self) -> None:
        other = self.new_model()
        try:
            other.forward(PROMPT, capture="logits")
        finally:
            other.close()
        with suppress(gpt2c.ClosedError):
            other.generate(PROMPT, max_new_tokens=1)

    def check(self) -> None:
        """Check the session and the results after a round; raise FailedError."""
        ids = self.session.ids
        if len(ids) != len(self.session) or ids != PROMPT * (len(ids) // 3):
            raise FailedError(f"the session has the ids {ids}, but {len(self.session)} positions")
        if self.results() != self.expected:
            raise FailedError("a call returns a different result than before the interrupt")

    def renew_model(self) -> None:
        """Close the model, check that its weights are freed, and create a new one."""
        self.model.close()
        if self.model.n_bytes:
            raise FailedError("close() did not free the weights: an interrupted call holds them")
        self.model = self.new_model()
        self.session = self.model.session()


def limit_child() -> None:
    """In a forked child: let SIGALRM end the process if it makes no progress."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(MAX_STALL)


def reap() -> None:
    """Wait for all children; raise FailedError if one failed."""
    while True:
        try:
            _, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if status:
            raise FailedError(f"a child exited with status {os.waitstatus_to_exitcode(status)}")


def run_round(signals: Signals, call: Callable[[], None], seconds: float) -> None:
    """Repeat a call until the timer, which is set to `seconds`, interrupts it."""
    n_before, end = signals.n_runs, time.monotonic() + LATE_AFTER
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while signals.n_runs == n_before:
            call()
            if time.monotonic() > end:
                signals.n_late += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.raise_signal(signal.SIGALRM)
        # A pending exception is raised here at the latest.
        for _ in range(100):
            pass
    except KeyboardInterrupt:
        signals.n_caught += 1


def soak(backend: str, seconds: float, seed: int, signals: Signals) -> Counter[str]:
    """Run rounds for `seconds`; return their number for each kind of call."""
    rng = random.Random(f"{backend} {seed}")
    n_rounds: Counter[str] = Counter()
    end = time.monotonic() + seconds
    last_rearmed = 0.0
    while time.monotonic() < end:
        calls = Calls(backend, rng, rng.choice([1, 2, 3, 5]))
        for _ in range(50):
            name = rng.choice(calls.kinds())
            if time.monotonic() - last_rearmed > 1:
                last_rearmed = time.monotonic()
                faulthandler.dump_traceback_later(MAX_STALL, exit=True)
            try:
                run_round(signals, getattr(calls, name), rng.uniform(1e-5, LONGEST_TIMER))
                signals.check()
                reap()
                calls.check()
                if rng.random() < 0.2:
                    calls.renew_model()
            except FailedError as error:
                raise SystemExit(f"{backend}: after {name}, seed {seed}: {error}") from None
            n_rounds[name] += 1
        calls.renew_model()
    faulthandler.cancel_dump_traceback_later()
    return n_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("c", "numpy", "both"), default="both")
    options = parser.parse_args()
    backends = {"c": ISAS[-1:], "numpy": ["numpy"], "both": [*ISAS[-1:], "numpy"]}[options.backend]
    import_lazy_modules()
    signals = Signals()
    for backend in backends:
        n_rounds = soak(backend, options.seconds / len(backends), options.seed, signals)
        counts = ", ".join(f"{n} {name[5:]}" for name, n in sorted(n_rounds.items()))
        print(f"{backend}: {n_rounds.total()} rounds: {counts}", flush=True)
    print(
        f"seed {options.seed}: the handler ran {signals.n_runs} times, {signals.n_caught} "
        f"interrupts were caught ({signals.n_in_finalizers} of them in finalizers and fork hooks "
        f"of other packages); {signals.n_late} signals went to other threads"
    )


if __name__ == "__main__":
    main()
