"""The queue and the thread behind gpt2c.Scheduler, whose requests arrive one by one.

A request waits in a queue, runs, and ends. Only the runner's thread advances requests. Other
threads add requests, cancel them, and sleep until a request has a new event or ends. They change
the runner's state only by atomic operations, such as pushing to a heap. So an exception at any of
their lines, such as Ctrl-C, leaves a valid state, and nothing needs to be undone. Without the GIL,
heaps need a lock; as a signal handler may interrupt its holder and push too, it is an RLock.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from threading import Lock, RLock, Thread, current_thread, main_thread
from traceback import walk_tb
from types import FrameType
from typing import Final, Protocol
from weakref import ref

from gpt2c.engine.protocol import EngineJob, EngineModel
from gpt2c.errors import ClosedError, ForkError
from gpt2c.forks import SLICE_SECONDS, ProcessLock
from gpt2c.living import Living
from gpt2c.schedule.continuation import Continuation, empty_result, immediate_result
from gpt2c.schedule.dispatcher import IDLE_SECONDS, Future, resolve
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.schedule.requests import Request, Result

# How long the next step waits for event loops that handle the events of the last one.
DELIVERY_SHARE: Final = 0.1  # of the last step's time
MAX_DELIVERY_SECONDS: Final = 0.01
_MAX_OLD_DEADLINES: Final = 16


class Record(Protocol):
    """Where the events of a request are written. The runner's thread calls the methods."""

    def begin(self, continuation: Continuation) -> None:
        """Write from now on what this continuation generates."""

    def advance(self) -> None:
        """Write what the last step has added."""

    def finish(self, result: Result) -> None:
        """Write the result. A request may end before `begin`."""

    def abandon(self) -> None:
        """Forget the continuation of a request that has failed."""


class RequestState:
    """A request of a scheduler, and its state: queued, running or done."""

    def __init__(self, request: Request, record: Record) -> None:
        """Make the state of a request that is not queued yet; Runner.add queues it."""
        self.request, self.record = request, record
        # The object whose death cancels the request. The runner checks whether it is dead. A
        # destructor or a weak reference's callback could cancel at once, but Python ignores
        # exceptions there, and so would lose a Ctrl-C.
        self.owner: ref[object] | None = None
        self.continuation: Continuation | None = None
        self.error: BaseException | None = None
        self.is_done = False
        self.n_cached = 0  # prompt tokens whose keys and values came from the prefix cache
        self._is_cancelled = False
        self._claim = [True]
        # Who sleeps until the next event, and until the end: locks of threads, futures of asyncio.
        self._until_event: list[Lock | Future] = []
        self._until_end: list[Lock | Future] = []

    @property
    def is_cancelled(self) -> bool:
        """Whether the request was cancelled or its owner is dead."""
        return self._is_cancelled or (self.owner is not None and self.owner() is None)

    def cancel(self) -> None:
        """Let the runner end the request."""
        self._is_cancelled = True

    @property
    def is_claimed(self) -> bool:
        """Whether the request has begun or ended."""
        return not self._claim

    def claim(self) -> bool:
        """Return True the first time only; the caller then begins the request, or ends it."""
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def end(self, result: Result | None, error: BaseException | None = None) -> None:
        """End the request with a result or an error."""
        try:
            if result is not None:
                self.record.finish(result)
        except Exception as failure:
            error = failure
        self.error = error
        if error is not None:
            self.record.abandon()
            if self.continuation is not None:
                # The error's traceback refers to it, and a reader may keep the error.
                self.continuation.free()
        self.continuation = None  # frees its KV cache
        self.is_done = True

    def add_sleeper(self, sleeper: Lock | Future, until_end: bool) -> None:
        """Add a thread's lock or a task's future, which the next event (or the end) releases.

        The caller must look for events after this and before it sleeps.
        """
        (self._until_end if until_end else self._until_event).append(sleeper)

    def pop_woken(self) -> list[Lock | Future]:
        """Remove and return the sleepers that the last event, or the end, wakes."""
        woken = []
        for sleepers in (self._until_event, self._until_end if self.is_done else []):
            while sleepers:
                woken.append(sleepers.pop())
        return woken


class Reader:
    """A call that reads a handle. The runner refers to it weakly, so it dies with the call."""


class Runner:
    """The queue, the running requests and the thread."""

    def __init__(
        self, engine: EngineModel, prefixes: PrefixCache, max_running: int, needs_readers: bool
    ) -> None:
        """Make a runner. With needs_readers, requests make progress only while a reader waits."""
        self._engine, self._prefixes = engine, prefixes
        self._max_running, self._needs_readers = max_running, needs_readers
        self._waiter = engine.shared_waiter()
        # Heaps. Their numbers differ, so states are never compared.
        self._queue: list[tuple[int, int, RequestState]] = []  # -priority, number, state
        self._deadlines: list[tuple[float, int, RequestState]] = []
        self._numbers = count()
        self._heap_lock = ProcessLock(RLock)
        self._running: dict[EngineJob, RequestState] = {}
        self._errors: list[BaseException] = []  # of requests that failed in this round
        self._readers: Living[Reader] = Living()
        self._last_read = -float("inf")  # when the last reader began
        self._is_closed = False
        self._lock = ProcessLock(Lock)  # held while the thread starts or ends
        self._thread: Thread | None = None
        self._process = os.getpid()

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process, not its parent, made the runner."""
        return self._process == os.getpid()

    @property
    def n_running(self) -> int:
        """The number of requests that have begun and not ended."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """The number of queued requests, without those that ended there."""
        return sum(not state.is_done for _, _, state in list(self._queue))

    def add(self, state: RequestState, priority: int) -> None:
        """Queue a request. Raises ClosedError after `close`."""
        if self._is_closed:
            raise ClosedError("the scheduler was closed")
        with self._heap_lock.lock:
            number = next(self._numbers)
            if (deadline := state.request.stops.deadline) is not None:
                self._forget_deadlines()
                heapq.heappush(self._deadlines, (deadline, number, state))
            heapq.heappush(self._queue, (-priority, number, state))
        self._start_if_needed()
        if self._thread is not None:
            with suppress(ClosedError):
                self._waiter.wake()  # so that the request begins before the next step

    def _forget_deadlines(self) -> None:
        """Drop deadlines of requests that have begun, once they are most. The caller has the lock.

        Otherwise the heap would hold each request, with its events, until its deadline.
        """
        if len(self._deadlines) > 2 * len(self._queue) + _MAX_OLD_DEADLINES:
            kept = [entry for entry in self._deadlines if not entry[2].is_claimed]
            heapq.heapify(kept)
            self._deadlines = kept

    def cancel(self, state: RequestState) -> None:
        """End a request with the finish reason "cancelled", within one pass if it runs."""
        state.cancel()
        if not self.is_of_this_process or state.is_done:
            return
        if state.claim():
            state.end(empty_result(state.request, "cancelled"))
            _wake([state])
            return
        if (continuation := state.continuation) is not None:
            continuation.cancel()
        self._start_if_needed()

    def close(self) -> None:
        """Cancel all requests, and wait until the thread has ended."""
        self._is_closed = True
        if not self.is_of_this_process:
            return
        for state in [state for _, _, state in list(self._queue)] + list(self._running.values()):
            self.cancel(state)
        thread = self._thread
        if thread is not None and thread is not current_thread():
            with suppress(ClosedError):
                self._waiter.wake()
            while thread.is_alive():
                thread.join(SLICE_SECONDS)

    def begin_reading(self) -> Reader:
        """Return a reader; the thread runs as long as the caller refers to it.

        Raises ForkError in a forked child.
        """
        if not self.is_of_this_process:
            raise ForkError(
                "the request was added in the parent process; a forked child must add its own"
            )
        reader = Reader()
        if self._needs_readers:
            self._readers.add(reader)
            self._last_read = time.monotonic()
        self._start_if_needed()
        return reader

    def sleep(self, lock: Lock, seconds: float) -> bool:
        """Sleep until the lock, a sleeper of a request, is released; return whether it was.

        The sleep lasts at most `seconds`, and at most SLICE_SECONDS.
        """
        self._start_if_needed()
        return lock.acquire(timeout=min(seconds, SLICE_SECONDS))

    # ---- the thread ----

    def _start_if_needed(self) -> None:
        with self._lock.lock:
            is_running = self._thread is not None and self._thread.is_alive()
            if not is_running and self._is_needed():
                # Not a daemon: Python waits at exit until the thread has left the engine.
                self._thread = Thread(target=self._run, name="gpt2c scheduler")
                self._thread.start()

    def _is_needed(self) -> bool:
        if not (self._queue or self._running) or not main_thread().is_alive():
            return False
        return (
            not self._needs_readers
            or bool(self._readers)
            or time.monotonic() < self._last_read + IDLE_SECONDS
            or any(state.is_cancelled for state in list(self._running.values()))
        )

    def _run(self) -> None:
        if self._thread is not current_thread():
            return  # `start` was interrupted, and then another thread was started
        try:
            ran_a_step = True
            while not self._end_if_idle(ran_a_step):
                ran_a_step = self._run_round()
                while self._errors:
                    _forget_variables(self._errors.pop())
        except BaseException as error:
            self._fail(error)
            _forget_variables(error)

    def _end_if_idle(self, ran_a_step: bool) -> bool:
        """Return whether the thread ends, because it is not needed.

        Without requests, it goes on for one more round if the last one ran a step, because a new
        request may come soon.
        """
        with self._lock.lock:
            may_linger = ran_a_step and not (self._queue or self._running or self._is_closed)
            if self._is_needed() or may_linger:
                return False
            self._thread = None
            return True

    def _run_round(self) -> bool:
        """Begin requests, wait for a step, and process it; return whether any request had one."""
        self._end_late_requests()
        while len(self._running) < self._max_running and (state := self._pop_queued()):
            if state.claim():
                self._begin(state)
        begin = time.monotonic()
        rested = self._waiter.wait(IDLE_SECONDS)
        seconds = time.monotonic() - begin
        states = [self._advance(job) for job in rested]
        self._errors += [state.error for state in states if state.error is not None]
        _let_run(_wake(states), seconds)
        return bool(rested)

    def _end_late_requests(self) -> None:
        """End queued requests whose deadline has passed."""
        while state := self._pop_late():
            if state.claim():
                state.end(empty_result(state.request, "time"))
                _wake([state])

    def _begin(self, state: RequestState) -> None:
        try:
            request = state.request
            if state.is_cancelled:
                result: Result | None = empty_result(request, "cancelled")
            else:
                result = immediate_result(self._engine, request)
            if result is None:
                with self._engine.held():
                    prefix = None
                    if not request.scores_prompt:
                        space = request.cache_space
                        prefix = self._prefixes.copy_longest(request.ids, space=space)
                    state.n_cached = 0 if prefix is None else prefix.length
                    state.continuation = Continuation(self._engine, self._prefixes, request, prefix)
                state.record.begin(state.continuation)
                self._resume(state, state.continuation)
            else:
                state.end(result)
        except Exception as error:
            state.end(None, error)
        if state.error is not None:
            self._errors.append(state.error)
        if state.is_done:
            _wake([state])

    def _resume(self, state: RequestState, continuation: Continuation) -> None:
        self._engine.check_open()
        if state.is_cancelled:
            continuation.cancel()
        job = continuation.job
        self._running[job] = state
        try:
            self._waiter.add(job)
        except BaseException:
            del self._running[job]
            raise

    def _advance(self, job: EngineJob) -> RequestState:
        """Process the step that a job has run; return the state of its request."""
        state = self._running.pop(job)
        continuation = state.continuation
        assert continuation is not None
        try:
            if state.is_cancelled:
                continuation.stop("cancelled")
            else:
                job.raise_failure()
                continuation.collect()
            state.record.advance()
            if continuation.result is None:
                self._resume(state, continuation)
            else:
                state.end(continuation.result)
        except BaseException as error:  # a callback may raise SystemExit
            state.end(None, error)
        return state

    def _fail(self, error: BaseException) -> None:
        """End all requests after an error that concerns them all, such as a closed model."""
        with self._lock.lock:
            self._thread = None
        for job, state in list(self._running.items()):
            with suppress(ClosedError):
                self._waiter.remove(job)
            del self._running[job]
            state.end(None, error)
            _wake([state])
        while queued := self._pop_queued():
            if queued.claim():
                queued.end(None, error)
                _wake([queued])

    def _pop_queued(self) -> RequestState | None:
        """Remove and return the next request of the queue; None if there is none."""
        with self._heap_lock.lock:
            return heapq.heappop(self._queue)[2] if self._queue else None

    def _pop_late(self) -> RequestState | None:
        """Remove and return a request whose deadline has passed; None if there is none."""
        with self._heap_lock.lock:
            is_late = self._deadlines and self._deadlines[0][0] <= time.monotonic()
            return heapq.heappop(self._deadlines)[2] if is_late else None


def _let_run(locks: list[Lock], step_seconds: float) -> None:
    """Let event loops handle the events of a step before the next one.

    Beside a step, their tasks would take the CPUs from the engine's threads again and again, and
    each time all threads would wait.
    """
    end = time.monotonic() + min(DELIVERY_SHARE * step_seconds, MAX_DELIVERY_SECONDS)
    for lock in locks:
        lock.acquire(timeout=max(end - time.monotonic(), 0))


def _forget_variables(error: BaseException) -> None:
    """Drop the variables of gpt2c's frames that an error's traceback keeps.

    They refer to the jobs of all requests that the step advanced, and so to their KV caches. A
    reader may keep the error, and the request that has the error is one of these variables: only
    the garbage collector would end the cycle, which an idle server may not run for long.
    """
    for each in _errors_behind(error):
        for frame, _ in walk_tb(each.__traceback__):
            back: FrameType | None = frame
            # A callback's variables are left: they may help to find its fault.
            while back is not None and str(back.f_globals.get("__name__")).startswith("gpt2c."):
                try:
                    back.clear()
                except RuntimeError:  # it still runs, and so do the frames before it
                    break
                back = back.f_back


def _errors_behind(error: BaseException) -> list[BaseException]:
    """Return an error, its causes and the errors during which they were raised."""
    found = [error]
    for each in found:
        for other in (each.__cause__, each.__context__):
            if other is not None and other not in found:
                found.append(other)
    return found


def _wake(states: Iterable[RequestState]) -> list[Lock]:
    """Wake the sleepers of requests with new events; each event loop once.

    Return the locks of `resolve`.
    """
    futures = []
    for state in states:
        for sleeper in state.pop_woken():
            if isinstance(sleeper, asyncio.Future):
                futures.append(sleeper)
            else:
                sleeper.release()
    return resolve(futures)
