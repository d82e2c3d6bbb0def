"""The queue and the thread behind gpt2c.Scheduler, whose requests arrive one by one.

A task waits in a queue, runs, and ends. Only the runner's thread advances tasks. Other threads add
tasks, cancel them, and sleep until there is news. They change the runner's state only by atomic
operations, such as pushing to a heap. So an exception at any of their lines, such as Ctrl-C, leaves
a valid state, and nothing needs to be undone.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from threading import Lock, Thread, current_thread, main_thread
from typing import Final, Protocol
from weakref import ref

from gpt2c.engine.protocol import EngineJob, EngineModel
from gpt2c.errors import ClosedError, ForkError
from gpt2c.forks import ProcessLock
from gpt2c.schedule.continuation import Continuation, empty_result, immediate_result
from gpt2c.schedule.dispatcher import IDLE_SECONDS, Future, resolve
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.schedule.requests import Request, Result

# A sleeping reader looks for news at least this often, in seconds. So Ctrl-C works also on
# platforms where it cannot interrupt waiting for a lock.
SLEEP_SECONDS: Final = 0.1


class Record(Protocol):
    """Where a task's progress is written. The runner's thread calls the methods."""

    def begin(self, running: Continuation) -> None:
        """Take note that the task runs."""

    def advance(self) -> None:
        """Write what the last step has added."""

    def finish(self, result: Result) -> None:
        """Write the result. The task may have ended without running."""


class Task:
    """A request, and what became of it."""

    def __init__(self, request: Request, record: Record) -> None:
        """Make a task; Runner.add queues it."""
        self.request, self.record = request, record
        # Who reads the task. Nothing runs when the owner dies: an interrupt of a destructor or of a
        # weak reference's callback would be lost.
        self.owner: ref[object] | None = None
        self.running: Continuation | None = None
        self.error: BaseException | None = None
        self.is_done = False
        self._is_cancelled = False
        self._claim = [True]
        # Who sleeps until the next news, and until the end: locks of threads, futures of asyncio.
        self._until_news: list[Lock | Future] = []
        self._until_end: list[Lock | Future] = []

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled or its owner is dead."""
        return self._is_cancelled or (self.owner is not None and self.owner() is None)

    def cancel(self) -> None:
        """Let the runner end the task."""
        self._is_cancelled = True

    def claim(self) -> bool:
        """Return True once: to the caller who begins the task, or ends it before it begins."""
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def end(self, result: Result | None, error: BaseException | None = None) -> None:
        """Set the outcome."""
        try:
            if result is not None:
                self.record.finish(result)
        except Exception as failure:
            error = failure
        self.error = error
        self.running = None  # frees its KV cache
        self.is_done = True

    def add_sleeper(self, sleeper: Lock | Future, until_end: bool) -> None:
        """Add who is about to sleep. The caller must look for news after this, and then sleep."""
        (self._until_end if until_end else self._until_news).append(sleeper)

    def take_sleepers(self) -> list[Lock | Future]:
        """Return those who are to be woken now."""
        taken = []
        for sleepers in (self._until_news, self._until_end if self.is_done else []):
            while sleepers:
                taken.append(sleepers.pop())
        return taken


class Reader:
    """A call that waits for news; only the call refers to its reader."""


class Runner:
    """The queue, the running tasks and the thread."""

    def __init__(
        self, engine: EngineModel, prefixes: PrefixCache, max_running: int, runs_alone: bool
    ) -> None:
        """With runs_alone the thread runs while there are tasks, else only beside readers."""
        self._engine, self._prefixes = engine, prefixes
        self._max_running, self._runs_alone = max_running, runs_alone
        self._waiter = engine.waiter()
        # Heaps. Their numbers differ, so tasks are never compared.
        self._queue: list[tuple[int, int, Task]] = []  # -priority, number, task
        self._deadlines: list[tuple[float, int, Task]] = []
        self._numbers = count()
        self._tasks: dict[EngineJob, Task] = {}  # those that run
        self._readers: deque[ref[Reader]] = deque()
        self._last_read = -float("inf")  # when a reader came last
        self._is_closed = False
        self._lock = ProcessLock(Lock)  # held while the thread starts or ends
        self._thread: Thread | None = None
        self._process = os.getpid()

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process, not its parent, made the runner."""
        return self._process == os.getpid()

    def add(self, task: Task, priority: int) -> None:
        """Queue a task. Raises ClosedError after `close`."""
        if self._is_closed:
            raise ClosedError("the scheduler was closed")
        number = next(self._numbers)
        if (deadline := task.request.stops.deadline) is not None:
            heapq.heappush(self._deadlines, (deadline, number, task))
        heapq.heappush(self._queue, (-priority, number, task))
        self._start_if_needed()
        if self._thread is not None:
            with suppress(ClosedError):
                self._waiter.wake()  # so that the task begins between two steps

    def cancel(self, task: Task) -> None:
        """End a task with the finish reason "cancelled", within one pass if it runs."""
        task.cancel()
        if not self.is_of_this_process or task.is_done:
            return
        if task.claim():
            task.end(empty_result(task.request, "cancelled"))
            _wake([task])
            return
        if (running := task.running) is not None:
            running.cancel()
        self._start_if_needed()

    def close(self) -> None:
        """Cancel all tasks, and wait until the thread has ended."""
        self._is_closed = True
        if not self.is_of_this_process:
            return
        for task in [task for _, _, task in list(self._queue)] + list(self._tasks.values()):
            self.cancel(task)
        thread = self._thread
        if thread is not None and thread is not current_thread():
            with suppress(ClosedError):
                self._waiter.wake()
            thread.join()

    def begin_reading(self) -> Reader:
        """Return a reader; the thread runs as long as the caller refers to it.

        Raises ForkError in a forked child.
        """
        if not self.is_of_this_process:
            raise ForkError(
                "the request was added in the parent process; a forked child must add its own"
            )
        reader = Reader()
        self._readers.append(ref(reader))
        self._last_read = time.monotonic()
        self._start_if_needed()
        return reader

    def sleep(self, lock: Lock, seconds: float) -> bool:
        """Sleep until the lock, one of a task's sleepers, is released; return whether it was.

        The max time is `seconds` or SLEEP_SECONDS, whichever is less.
        """
        self._start_if_needed()
        return lock.acquire(timeout=min(seconds, SLEEP_SECONDS))

    # ---- the thread ----

    def _start_if_needed(self) -> None:
        with self._lock.lock:
            is_running = self._thread is not None and self._thread.is_alive()
            if not is_running and self._is_needed():
                # Not a daemon: Python waits at exit until the thread has left the engine.
                self._thread = Thread(target=self._run, name="gpt2c scheduler")
                self._thread.start()

    def _is_needed(self) -> bool:
        if not (self._queue or self._tasks) or not main_thread().is_alive():
            return False
        return (
            self._runs_alone
            or any(reader() is not None for reader in list(self._readers))
            or time.monotonic() < self._last_read + IDLE_SECONDS
            or any(task.is_cancelled for task in list(self._tasks.values()))
        )

    def _run(self) -> None:
        if self._thread is not current_thread():
            return  # `start` was interrupted, and another thread took its place
        try:
            has_waited = False
            while not self._end_if_idle(has_waited):
                has_waited = not self._run_round()
        except BaseException as error:
            self._fail(error)

    def _end_if_idle(self, has_waited: bool) -> bool:
        """Return whether the thread ends. has_waited tells that it has just waited in vain."""
        for _ in range(len(self._readers)):  # drop those that have returned
            reader = self._readers.popleft()
            if reader() is not None:
                self._readers.append(reader)
        with self._lock.lock:
            is_paused = bool(self._queue or self._tasks) or self._is_closed
            if self._is_needed() or not (is_paused or has_waited):
                return False
            self._thread = None
            return True

    def _run_round(self) -> bool:
        """Begin tasks, wait for a step, and advance the tasks that ran it; return if any did."""
        self._end_late_tasks()
        while self._queue and len(self._tasks) < self._max_running:
            _, _, task = heapq.heappop(self._queue)
            if task.claim():
                self._begin(task)
        rested = self._waiter.wait(IDLE_SECONDS)
        _wake([self._advance(job) for job in rested])
        return bool(rested)

    def _end_late_tasks(self) -> None:
        """End queued tasks whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            _, _, task = heapq.heappop(self._deadlines)
            if task.claim():
                task.end(empty_result(task.request, "time"))
                _wake([task])

    def _begin(self, task: Task) -> None:
        try:
            request = task.request
            if task.is_cancelled:
                result: Result | None = empty_result(request, "cancelled")
            else:
                result = immediate_result(self._engine, request)
            if result is None:
                with self._engine.held():
                    prefix = None if request.scores_prompt else self._prefixes.take(request.ids)
                    task.running = Continuation(self._engine, self._prefixes, request, prefix)
                task.record.begin(task.running)
                self._resume(task, task.running)
            else:
                task.end(result)
        except Exception as error:
            task.end(None, error)
        if task.is_done:
            _wake([task])

    def _resume(self, task: Task, running: Continuation) -> None:
        self._engine.check_open()
        if task.is_cancelled:
            running.cancel()
        self._tasks[running.job] = task
        try:
            self._waiter.add(running.job)
        except BaseException:
            del self._tasks[running.job]
            raise

    def _advance(self, job: EngineJob) -> Task:
        """Process the step that a task's job has run."""
        task = self._tasks.pop(job)
        running = task.running
        assert running is not None
        try:
            if task.is_cancelled:
                running.stop("cancelled")
            else:
                job.raise_failure()
                running.collect()
            task.record.advance()
            if running.result is None:
                self._resume(task, running)
            else:
                task.end(running.result)
        except BaseException as error:  # a callback may raise SystemExit
            task.end(None, error)
        return task

    def _fail(self, error: BaseException) -> None:
        """End all tasks after an error that is not a task's own: the model was closed, say."""
        with self._lock.lock:
            self._thread = None
        for job, task in list(self._tasks.items()):
            with suppress(ClosedError):
                self._waiter.remove(job)
            del self._tasks[job]
            task.end(None, error)
            _wake([task])
        while self._queue:
            _, _, task = heapq.heappop(self._queue)
            if task.claim():
                task.end(None, error)
                _wake([task])


def _wake(tasks: Iterable[Task]) -> None:
    """Wake those who sleep until news of the tasks; each event loop once."""
    futures = []
    for task in tasks:
        for sleeper in task.take_sleepers():
            if isinstance(sleeper, asyncio.Future):
                futures.append(sleeper)
            else:
                sleeper.release()
    resolve(futures)
