"""Steps for event loops: one thread per model waits for the jobs of all asyncio tasks.

A task awaits `Dispatcher.step`. The dispatcher's thread waits for the jobs of all tasks with one
EngineSharedWaiter, and runs the model's steps if no other call does. After a step it wakes each
event loop once, for all jobs of the loop. It runs no code of the user: the tasks themselves search
for stop strings, call callbacks and decode.

The thread starts with the first job. It ends after the last stream, or when no stream has taken a
step for IDLE_SECONDS. It refers weakly to the futures that tasks await: if a task is gone, because
its event loop was closed, its job is dropped after its step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread, main_thread
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import ref

from gpt2c.engine.protocol import EngineJob, EngineModel
from gpt2c.errors import ClosedError
from gpt2c.forks import ProcessLock
from gpt2c.living import Living

if TYPE_CHECKING:
    import asyncio  # takes 25 ms to import, and only event loops need it

# How many seconds the thread waits for the next step of an open stream, whose reader may need time
# for a piece. After that the thread ends; a later step starts a new one, which takes about 0.1 ms.
IDLE_SECONDS: Final = 0.1

Future: TypeAlias = "asyncio.Future[None]"


class Dispatcher:
    """Runs the jobs of one model for tasks of any event loops."""

    def __init__(self) -> None:
        """Make a dispatcher without a thread."""
        self._lock = ProcessLock(Lock)
        self._streams: Living[_Stream] = Living()
        self._worker: _Worker | None = None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Return a context manager for a stream to run its steps in.

        The thread ends as soon as no stream is left.
        """
        stream = _Stream()
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            worker = self._worker
            if worker is not None and not self._streams:
                worker.wake()

    async def step(self, engine: EngineModel, job: EngineJob) -> None:
        """Let a job of this dispatcher's model run one step, without blocking the event loop.

        If the task is cancelled, the step ends within one pass, and then CancelledError is raised.
        Raises ClosedError, and the errors of `EngineJob.raise_failure`.
        """
        import asyncio

        engine.check_open()
        future = asyncio.get_running_loop().create_future()
        worker = self._add(engine, job, future)
        try:
            await future
        except asyncio.CancelledError:
            job.cancel()
            if (rested := worker.replace_future(job)) is not None:
                await rested
            raise
        job.raise_failure()

    def _add(self, engine: EngineModel, job: EngineJob, future: Future) -> _Worker:
        with self._lock.lock:
            worker = self._worker
            if worker is not None and not worker.is_of_this_process:
                _lost_workers.append(worker)
                worker = None
            if worker is None or not worker.add(job, future):
                worker = _Worker(engine, self._lock, self._streams)
                worker.add(job, future)
                worker.thread.start()
                self._worker = worker
        return worker


class _Stream:
    """An open stream. Only the generator that yields its pieces refers to it."""


class _Worker:
    """A thread that waits for jobs, and the futures of the jobs' tasks."""

    def __init__(
        self, engine: EngineModel, lock: ProcessLock[Lock], streams: Living[_Stream]
    ) -> None:
        self._waiter = engine.shared_waiter()
        self._lock, self._streams = lock, streams  # the dispatcher's
        self._futures: dict[EngineJob, ref[Future]] = {}
        self._is_over = False
        self._process = os.getpid()
        # Not a daemon: Python waits at exit until the thread has left the engine.
        self.thread = Thread(target=self._run, name="gpt2c asyncio")

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process, not its parent, started the thread."""
        return self._process == os.getpid()

    def add(self, job: EngineJob, future: Future) -> bool:
        """Let the job run one step, after which the thread resolves the future.

        Return False, and do nothing, if the thread has ended. The caller holds the lock.
        """
        if self._is_over:
            return False
        if not main_thread().is_alive():
            raise ClosedError("Python is shutting down, so no step can begin")
        self._futures[job] = ref(future)
        try:
            self._waiter.add(job)
        except BaseException:
            del self._futures[job]
            raise
        return True

    def replace_future(self, job: EngineJob) -> Future | None:
        """Return a new future for the running step of a job; None if it has ended."""
        import asyncio

        with self._lock.lock:
            if job not in self._futures:
                return None
            future = asyncio.get_running_loop().create_future()
            self._futures[job] = ref(future)
        return future

    def wake(self) -> None:
        """Make the thread check whether it is still needed."""
        with self._lock.lock:
            if self.is_of_this_process and not self._is_over:
                with suppress(ClosedError):
                    self._waiter.wake()

    def _run(self) -> None:
        try:
            is_over = False
            while not is_over:
                rested = self._waiter.wait(IDLE_SECONDS)
                resolve(self._futures_of(rested))
                if not rested:
                    self._drop_lost_jobs()
                is_over = self._end_if_idle(ran_a_step=bool(rested))
        except Exception as error:  # the model was closed, or there is no memory
            self._fail(error)
        del self._waiter  # it keeps the model alive

    def _futures_of(self, jobs: list[EngineJob]) -> list[Future]:
        """Forget the jobs; return their futures."""
        with self._lock.lock:
            references = [self._futures.pop(job, None) for job in jobs]
        futures = (reference() for reference in references if reference is not None)
        return [future for future in futures if future is not None]

    def _drop_lost_jobs(self) -> None:
        """Drop the jobs whose tasks are gone."""
        with self._lock.lock:
            lost = [job for job, future in self._futures.items() if future() is None]
        for job in lost:
            self._waiter.remove(job)
        self._futures_of(lost)

    def _end_if_idle(self, ran_a_step: bool) -> bool:
        """Return whether the thread ends: no job is left, and none is expected soon."""
        with self._lock.lock:
            self._is_over = not self._futures and not (ran_a_step and self._streams)
            return self._is_over

    def _fail(self, error: Exception) -> None:
        with self._lock.lock:
            self._is_over = True
            jobs = list(self._futures)
        futures = self._futures_of(jobs)
        with suppress(ClosedError):
            for job in jobs:
                self._waiter.remove(job)
        resolve(futures, error)


def resolve(futures: Iterable[Future], error: Exception | None = None) -> list[Lock]:
    """Resolve futures, all of one event loop at once. Any thread may call this.

    Return a lock for each event loop, which is released when the tasks that it woke have run until
    they wait again. It is never released if the loop is closed before.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Future]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    locks = []
    for loop, group in by_loop.items():
        lock = Lock()
        lock.acquire()
        with suppress(RuntimeError):  # the event loop was closed
            loop.call_soon_threadsafe(_set_results, group, error, lock)
            locks.append(lock)
    return locks


def _set_results(futures: list[Future], error: Exception | None, lock: Lock) -> None:
    import asyncio

    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
    # Callbacks run in the order of their calls: first the tasks, which the futures wake by
    # call_soon; then what the tasks themselves call soon, such as the sending of a server's parts.
    call_soon = asyncio.get_running_loop().call_soon
    call_soon(call_soon, lock.release)


# Workers of a parent process. They are never freed, because a step may have been using their jobs
# at the moment of the fork.
_lost_workers: list[_Worker] = []
