"""Checks that no caller waits for ever, whatever happens to the callers beside it.

    python tools/soak/waiting.py [--minutes M] [--seed S] [--backend c|numpy|both]

Threads and asyncio tasks make short calls of one model. Meanwhile they and the main thread fork,
SystemExit is raised in callers at any line, Ctrl-C interrupts calls of the main thread, tasks are
cancelled, streams are abandoned, models are closed, and programs end while their daemon threads are
in calls.
The last line shows the seed and the result. The script exits with status 1 if a caller makes no
progress for a minute (it then shows all threads), a result differs from the call alone, an
interrupt is lost, or close() does not free the weights.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from conftest import ISAS, config_of, import_lazy_modules, model_on, random_weights

import gpt2c

MAX_WAIT = 60.0  # seconds that a call may take
ROUND_SECONDS = 2.0  # each round has its own model
PROMPTS = [[1, 2, 3], [1, 2, 3, 4, 5], [7], [*range(20)]]
# A program that ends while its daemon threads are in calls.
EXITING_PROGRAM = """
import gpt2c, threading, time
m = gpt2c.GPT2.from_pretrained(threads=2)
def work():
    while True:
        for _ in m.stream('Once', max_new_tokens=30):
            pass
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep({seconds})
"""


class FailedError(Exception):
    """A check of this script failed."""


class OnPurposeError(Exception):
    """Raised by a callback on purpose."""


class Round:
    """One model, the threads that call it, and what happens to them."""

    def __init__(self, backend: str, rng: random.Random, counts: Counter[str]) -> None:
        self.rng, self.counts, self.backend = rng, counts, backend
        self.config = config_of()
        self.weights = random_weights(self.config)
        self.n_threads = rng.choice([1, 2, 3])
        self.model = self.new_model()
        self.expected = self.results(self.model)
        self.is_over = False
        self.failures: list[str] = []
        self.longest = 0.0
        # Held around forks and by do_kill: SystemExit in the fork hooks of logging and asyncio's
        # executor would leave their locks held.
        self.forks = threading.Lock()
        self.begun: dict[int, float] = {}  # caller -> when its call began
        self.threads = [self.new_thread(caller) for caller in range(rng.randint(2, 10))]

    def new_model(self) -> gpt2c.GPT2:
        return model_on(self.backend, self.config, self.weights, threads=self.n_threads)

    def results(self, model: gpt2c.GPT2) -> list[Any]:
        """Return the results of three kinds of calls alone, each a list by prompt."""
        plain = [model.generate(p, max_new_tokens=12) for p in PROMPTS]
        drawn = [model.generate(p, max_new_tokens=12, temperature=0.9, seed=1) for p in PROMPTS]
        logits = [model.logits(p).tobytes() for p in PROMPTS]
        return [plain, drawn, logits]

    # -- callers --

    def new_thread(self, caller: int) -> threading.Thread:
        seed = self.rng.random()
        thread = threading.Thread(target=self.run_caller, args=(caller, seed), daemon=True)
        self.begun[caller] = time.monotonic()
        thread.start()
        return thread

    def run_caller(self, caller: int, seed: float) -> None:
        """Make random calls until the round is over."""
        rng = random.Random(seed)
        try:
            while not self.is_over:
                begin = self.begun[caller] = time.monotonic()
                # SystemExit would damage asyncio's own state, so only the first caller has tasks.
                kind = rng.choice(KINDS if caller == 0 else [k for k in KINDS if k != "tasks"])
                with suppress(gpt2c.ClosedError, OnPurposeError):
                    getattr(self, f"call_{kind}")(self.model, rng.randrange(len(PROMPTS)), rng)
                self.longest = max(self.longest, time.monotonic() - begin)
                self.counts[kind] += 1
        except BaseException as error:
            if not isinstance(error, SystemExit):
                self.failures.append(repr(error))

    def check(self, found: Any, expected: Any) -> None:
        if found != expected:
            raise FailedError(f"a call returned {found!r:.200}, alone {expected!r:.200}")

    def call_greedy(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        self.check(model.generate(PROMPTS[i], max_new_tokens=12), self.expected[0][i])

    def call_list(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        found = model.generate(PROMPTS, max_new_tokens=12, temperature=0.9, seed=1)
        self.check(found, self.expected[1])

    def call_logits(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        self.check(model.logits(PROMPTS[i]).tobytes(), self.expected[2][i])

    def call_score(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        model.score(PROMPTS)

    def call_beams(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        model.generate(PROMPTS[i], max_new_tokens=5, num_beams=3)

    def call_stream(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        n = rng.randrange(20)
        found = [id for _, id in zip(range(n), model.stream(PROMPTS[i], max_new_tokens=12))]  # noqa: B905
        self.check(found, self.expected[0][i][:n])

    def call_callback(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        what, caller = rng.choice(["wait", "raise", "call", "exit"]), threading.get_ident()

        def callback(index: int, ids: list[int]) -> None:
            if threading.get_ident() != caller:
                raise FailedError("a callback ran in another caller's thread")
            if what == "wait":
                time.sleep(0.001)
            elif what == "call":
                self.check(model.generate([7], max_new_tokens=12), self.expected[0][2])
            elif len(ids) == 4:
                raise OnPurposeError if what == "raise" else SystemExit

        found = model.generate(PROMPTS[i], max_new_tokens=12, callback=callback)
        self.check(found, self.expected[0][i])

    def call_tasks(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        async def read(prompt: list[int]) -> list[int]:
            return [id async for id in model.stream_async(prompt, max_new_tokens=12)]

        async def read_all() -> None:
            tasks = [asyncio.create_task(read(p)) for p in PROMPTS * 2]
            await asyncio.sleep(rng.uniform(0, 0.003))
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for result, expected in zip(found, self.expected[0] * 2, strict=True):
                if not isinstance(result, asyncio.CancelledError | gpt2c.ClosedError):
                    self.check(result, expected)

        asyncio.run(read_all())

    def call_fork(self, model: gpt2c.GPT2, i: int, rng: random.Random) -> None:
        if rng.random() < 0.8:  # a fork takes as long as many calls
            return self.call_greedy(model, i, rng)
        with self.forks:
            for _ in range(100):  # a pending SystemExit of do_kill is raised here
                pass
            child = os.fork()
        if child == 0:
            self.check_in_child(model)
        return self.check_child(os.waitpid(child, 0)[1])

    def check_in_child(self, model: gpt2c.GPT2) -> None:
        """In a forked child: check the results, and exit with status 1 if they are wrong."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)  # show where it waits, and end
        signal.alarm(int(MAX_WAIT))
        with suppress(gpt2c.ClosedError):
            if self.results(model) != self.expected:
                os._exit(1)
        os._exit(0)

    def check_child(self, status: int) -> None:
        if code := os.waitstatus_to_exitcode(status):
            raise FailedError(f"a forked child ended with status {code}")

    # -- what the main thread does meanwhile --

    def do_interrupt(self) -> None:
        """Interrupt calls of this thread; whichever thread computes, this one gets the signal."""
        n_before, n_ignored = INTERRUPTS.n_runs, INTERRUPTS.n_ignored
        caught = False
        begin = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(1e-4, 5e-3))
            while INTERRUPTS.n_runs == n_before and time.monotonic() - begin < MAX_WAIT:
                self.model.generate(PROMPTS[3], max_new_tokens=15)
            for _ in range(100):
                pass
        except KeyboardInterrupt:
            caught = True
        if not caught and INTERRUPTS.n_ignored == n_ignored:
            raise FailedError("an interrupt was lost")
        self.longest = max(self.longest, time.monotonic() - begin)

    def do_kill(self) -> None:
        """Raise SystemExit in callers, at whatever line they are."""
        others = self.threads[1:]
        for thread in self.rng.sample(others, self.rng.randint(1, len(others))):
            ident = ctypes.c_ulong(thread.ident or 0)
            with self.forks:
                if thread.is_alive():  # another thread may have the identifier of a dead one
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
            time.sleep(self.rng.uniform(0, 0.003))

    def do_fork(self) -> None:
        child = os.fork()
        if child == 0:
            self.check_in_child(self.model)
        self.check_child(os.waitpid(child, 0)[1])

    def do_close(self) -> None:
        """Close the model; its callers go on with a new one."""
        old, self.model = self.model, self.new_model()
        old.close()
        with suppress(gpt2c.ClosedError):
            old.generate([1])
            raise FailedError("a closed model generated a text")

    def do_exit(self) -> None:
        """Run a program that ends while its daemon threads are in calls."""
        if not ISAS or self.rng.random() < 0.8:  # starting a program takes long
            return
        program = EXITING_PROGRAM.format(seconds=self.rng.uniform(0, 0.05))
        done = subprocess.run([sys.executable, "-c", program], timeout=MAX_WAIT,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode or done.stderr:
            raise FailedError(f"a program ended with {done.returncode}: {done.stderr}")

    # -- the round --

    def run(self) -> None:
        """Let things happen until the time is over; raise FailedError."""
        end = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < end:
            self.watch()
            what = self.rng.choice(EVENTS)
            getattr(self, f"do_{what}")()
            self.counts[f"({what})"] += 1
            time.sleep(self.rng.uniform(0, 0.02))
        self.is_over = True
        while any(thread.is_alive() for thread in self.threads):
            self.watch()
            time.sleep(0.01)
        self.watch()
        self.model.close()
        gc.collect()
        if self.model.n_bytes:
            raise FailedError("close() did not free the weights: an ended call holds them")

    def watch(self) -> None:
        """Raise FailedError if a caller waits too long or failed; replace callers that died."""
        faulthandler.dump_traceback_later(2 * MAX_WAIT, exit=True)  # if this thread waits
        if self.failures:
            raise FailedError(self.failures[0])
        for caller, thread in enumerate(self.threads):
            if thread.is_alive():
                if time.monotonic() - self.begun[caller] > MAX_WAIT:
                    faulthandler.dump_traceback(sys.__stderr__)
                    raise FailedError(f"a caller waits for over {MAX_WAIT:.0f} s")
            elif not self.is_over:
                self.threads[caller] = self.new_thread(caller)


KINDS = sorted(name[5:] for name in vars(Round) if name.startswith("call_"))
EVENTS = sorted(name[3:] for name in vars(Round) if name.startswith("do_"))


class Interrupts:
    """The handler of the timer's signal, which counts its runs."""

    n_runs = 0
    n_ignored = 0  # by Python, in callbacks of weak collections: gpt2c has none, but threading has

    def handle(self, number: int, frame: Any) -> None:
        self.n_runs += 1
        raise KeyboardInterrupt

    def note_ignored(self, found: Any) -> None:
        """Count an interrupt that Python ignored; a hook for sys.unraisablehook."""
        is_interrupt = isinstance(found.exc_value, KeyboardInterrupt)
        if is_interrupt and getattr(found.object, "__module__", None) in ("_weakrefset", "weakref"):
            self.n_ignored += 1
        else:
            sys.__unraisablehook__(found)


INTERRUPTS = Interrupts()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60, help="default: 60")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--backend", choices=("c", "numpy", "both"), default="both")
    options = parser.parse_args()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    both = [*ISAS[-1:], "numpy"]
    backends = {"c": ISAS[-1:], "numpy": ["numpy"], "both": both}[options.backend]
    import_lazy_modules()
    signal.signal(signal.SIGALRM, INTERRUPTS.handle)
    sys.unraisablehook = INTERRUPTS.note_ignored
    # Switch between threads more often than every 5 ms, Python's default.
    sys.setswitchinterval(1e-4)
    threading.excepthook = lambda given: None  # threads die on purpose; run_caller notes failures
    begin = time.monotonic()
    counts: Counter[str] = Counter()
    longest, n_rounds, result = 0.0, 0, "nothing found"
    while time.monotonic() - begin < 60 * options.minutes and result == "nothing found":
        backend = backends[n_rounds % len(backends)]
        running = Round(backend, random.Random(seed + n_rounds), counts)
        try:
            running.run()
        except FailedError as error:
            result = f"FOUND on {backend}, seed {seed + n_rounds}: {error}"
        longest = max(longest, running.longest)
        n_rounds += 1
        if n_rounds % 30 == 0:
            print(f"{time.monotonic() - begin:8.0f} s  {counts.total():9} calls and events, "
                  f"longest {longest:.2f} s", flush=True)  # fmt: skip
    faulthandler.cancel_dump_traceback_later()
    for name, count in sorted(counts.items()):
        print(f"{count:9}  {name}")
    print(
        f"waiting: seed {seed}, {counts.total()} calls and events in "
        f"{time.monotonic() - begin:.0f} s, the longest took {longest:.2f} s: {result}"
    )
    sys.stdout.flush()
    # A normal exit could hang with a stuck caller.
    os._exit(0 if result == "nothing found" else 1)


if __name__ == "__main__":
    main()
