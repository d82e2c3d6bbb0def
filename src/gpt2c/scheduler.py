"""Scheduler: requests that are added one by one and run together, for programs that serve them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from typing import Any, Final, TypeAlias, Unpack
from weakref import ref

from gpt2c.checks.options import INT32_MAX, flag, integer, number, shows_options
from gpt2c.checks.untrusted import show
from gpt2c.closable import Closable
from gpt2c.engine.protocol import MAX_ROWS, AllowedIds, unpack_allowed_ids
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.forks import ProcessLock
from gpt2c.generate.completing import Completer, check_single
from gpt2c.generate.options import DEFAULTS, Completion, Logprobs, StreamOptions
from gpt2c.generate.prompts import Prompt
from gpt2c.generate.streaming import Pieces
from gpt2c.model import GPT2
from gpt2c.schedule.continuation import Continuation
from gpt2c.schedule.requests import Request, Result
from gpt2c.schedule.runner import RequestState, Runner

_MAX_PRIORITY: Final = 2**31 - 1
_MAX_RUNNING: Final = 2**31 - 1
_MAX_SECONDS: Final = 1e9


class AddOptions(StreamOptions, total=False):
    """Keyword arguments of Scheduler.add; GPT2.complete describes them."""

    logprobs: int | None
    echo: bool


@dataclass(frozen=True)
class Token:
    """A new token.

    text
        The text that the token completes; "" if it ends inside a character. None if the prompt was
        ids.
    logprob, top_logprobs
        With logprobs: as in Completion.logprobs and Completion.top_logprobs.
    """

    id: int
    text: str | None
    logprob: float | None = None
    top_logprobs: dict[int, float] | None = None


@dataclass(frozen=True)
class Finished:
    """The end of a request.

    completion
        What GPT2.complete returns. Its finish_reason may also be "cancelled".
    text
        The text after the last token's: U+FFFD if the text ends inside a character, else "". None
        if the prompt was ids.
    """

    completion: Completion
    text: str | None = None


Event: TypeAlias = Token | Finished


@dataclass
class Times:
    """When things happened to a request, in seconds on the clock of time.monotonic.

    tokens
        A time for each token: when the scheduler got it. Tokens of one pass have the same time.
    began, ended
        When the request left the queue and when it ended; None if it has not.
    """

    added: float = field(default_factory=time.monotonic)
    began: float | None = None
    tokens: list[float] = field(default_factory=list)
    ended: float | None = None


class _Record:
    """The events of a request. The list only grows, so readers need no lock."""

    def __init__(
        self, completer: Completer, request: Request, token_bytes: Callable[[int], bytes]
    ) -> None:
        self._completer, self._request = completer, request
        self._token_bytes = token_bytes if request.is_text else None
        self._pieces: Pieces | None = None
        self._continuation: Continuation | None = None
        self.events: list[Event] = []
        self.completion: Completion | None = None
        self.times = Times()

    def begin(self, continuation: Continuation) -> None:
        self.times.began = time.monotonic()
        self._continuation = continuation
        self._pieces = Pieces(continuation, self._token_bytes)

    def advance(self) -> None:
        if self._continuation is None or self._pieces is None:
            return
        new = list(self._pieces.take())
        if not new:
            return
        self.times.tokens += [time.monotonic()] * len(new)
        has_text = self._request.is_text
        begin, scores = len(self.events), Logprobs()
        if self._request.n_top is not None:
            tokens, top = self._continuation.scores
            end = begin + len(new)
            scores = Logprobs.of((tokens[begin:end], top[begin:end]))
        for i, (id, text) in enumerate(new):
            self.events.append(
                Token(
                    id,
                    text if has_text else None,
                    None if scores.logprobs is None else scores.logprobs[i],
                    None if scores.top is None else scores.top[i],
                )
            )

    def abandon(self) -> None:
        self._continuation = self._pieces = None

    def finish(self, result: Result) -> None:
        self.times.ended = time.monotonic()
        rest = "" if self._pieces is None else self._pieces.rest()
        self._continuation = self._pieces = None  # frees the KV cache
        self.completion = self._completer.completion(self._request, result)
        self.events.append(Finished(self.completion, rest if self._request.is_text else None))


class Handle:
    """A request that was added to a Scheduler.

    Iterating over a handle yields its events: a :class:`Token` for each token as soon as it is safe
    to show, and :class:`Finished`. Every iteration begins with the first token. In asyncio, use
    ``async for event in handle`` and ``await handle``; if the task is cancelled there, so is the
    request. An error of the request is raised wherever its handle is read. Dropping the last
    reference to a handle cancels the request.
    """

    def __init__(self, runner: Runner, state: RequestState, record: _Record) -> None:
        """Make a handle; this is for Scheduler.add."""
        self._runner, self._state, self._record = runner, state, record

    @property
    def done(self) -> bool:
        """Whether the request has ended, with a completion or an error."""
        return self._state.is_done

    @property
    def times(self) -> Times:
        """When the request was added, began, had its tokens so far, and ended."""
        return self._record.times

    @property
    def n_cached(self) -> int:
        """The number of prompt tokens that were not fed: the prefix cache had them."""
        return self._state.n_cached

    def cancel(self) -> None:
        """End the request within one pass; its finish_reason is then "cancelled".

        Does nothing if it has ended.
        """
        self._runner.cancel(self._state)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end; return the completion.

        Raises the request's error, as GPT2.complete does; TimeoutError after `timeout` seconds,
        while the request goes on; and ForkError in a forked child. Ctrl-C cancels the request.
        """
        seconds = None if timeout is None else number("timeout", timeout, 0, _MAX_SECONDS)
        self._wait(None, seconds)
        return self._completion()

    def __iter__(self) -> Iterator[Event]:
        """Yield the events, each as soon as it happens. Raises the errors of `result`."""
        for n in count():
            self._wait(n)
            if (event := self._event(n)) is None:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events, each as soon as it happens. Raises the errors of `result`."""
        for n in count():
            await self._wait_async(n)
            if (event := self._event(n)) is None:
                return
            yield event

    def __await__(self) -> Generator[Any, None, Completion]:
        """Wait for the end; return the completion. Raises the errors of `result`."""
        yield from self._wait_async(None).__await__()
        return self._completion()

    def _event(self, n: int) -> Event | None:
        """Return event n. After the last, return None, or raise the error of a failed request."""
        events = self._record.events
        if n < len(events):
            return events[n]
        if self._state.error is not None:
            raise self._state.error
        return None

    def _completion(self) -> Completion:
        if self._state.error is not None:
            raise self._state.error
        assert self._record.completion is not None
        return self._record.completion

    def _has(self, n: int | None) -> bool:
        """Whether event n has happened (None: the end)."""
        return self._state.is_done or (n is not None and n < len(self._record.events))

    def _wait(self, n: int | None, seconds: float | None = None) -> None:
        """Sleep until event n has happened (None: until the end)."""
        if self._has(n):
            return
        end = math.inf if seconds is None else time.monotonic() + seconds
        try:
            reader = self._runner.begin_reading()
            lock = Lock()
            lock.acquire()
            self._state.add_sleeper(lock, until_end=n is None)
            while not self._has(n):
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError(f"the request has not ended within {seconds} seconds")
                if self._runner.sleep(lock, left):
                    self._state.add_sleeper(lock, until_end=n is None)
            del reader
        except KeyboardInterrupt:
            self.cancel()
            raise

    async def _wait_async(self, n: int | None) -> None:
        """Wait like `_wait`, but without blocking the event loop."""
        if self._has(n):
            return
        reader = self._runner.begin_reading()
        try:
            while not self._has(n):
                future = asyncio.get_running_loop().create_future()
                self._state.add_sleeper(future, until_end=n is None)
                if not self._has(n):
                    await future
        except asyncio.CancelledError:
            self.cancel()
            raise
        del reader


class Scheduler(Closable):
    """Runs requests that are added one by one, together and with all other calls of the model.

    >>> with Scheduler(model) as scheduler:
    ...     handles = [scheduler.add(prompt, max_new_tokens=40) for prompt in prompts]
    ...     for event in handles[0]:
    ...         ...
    ...     completions = [handle.result() for handle in handles]

    A completion is, bit for bit, what GPT2.complete returns for the prompt alone, whatever else
    runs. An error ends only its own request. Any threads and asyncio tasks may add requests and
    read handles.

    thread
        True: a thread runs all requests from `add` on. False, the default: the thread runs only
        while a handle is being read, by any thread or task, and then runs all requests. While
        nobody reads a handle, a request makes no progress, except for at most one step that
        another call of the model runs. In both cases, the thread ends when there is nothing to
        run, and callbacks run in it; a slow callback delays the scheduler's other requests.
    max_running
        The max number of requests that run together; others wait in a queue. The default is 256,
        the rows of one forward pass.

    ``close()``, or the end of a ``with`` block, cancels the requests that have not ended. A forked
    child cannot read its parent's handles, but may add requests of its own.
    """

    def __init__(self, model: GPT2, *, thread: bool = False, max_running: int = MAX_ROWS) -> None:
        """Make a scheduler without requests. Raises OptionError or OptionTypeError."""
        if not isinstance(model, GPT2):
            raise OptionTypeError(f"model is {show(model)}; it must be a gpt2c.GPT2")
        self._model = model
        self._has_thread = flag("thread", thread)
        self._max_running = integer("max_running", max_running, 1, _MAX_RUNNING)
        self._lock = ProcessLock(Lock)
        self._is_closed = False
        self._runner = self._new_runner()

    @shows_options(AddOptions, DEFAULTS)
    def add(
        self,
        prompt: Prompt,
        *,
        priority: int = 0,
        deadline: float | None = None,
        allowed_ids: AllowedIds | None = None,
        sample: int = 0,
        has_text: bool | None = None,
        cache_space: int = 0,
        **options: Unpack[AddOptions],
    ) -> Handle:
        """Queue a request to continue one prompt, a text or ids; return its handle at once.

        priority
            Queued requests with a higher priority begin earlier; those with the same priority begin
            in the order in which they were added.
        deadline
            The number of seconds after which the request ends with finish_reason "time", with the
            text that it has by then. Waiting in the queue counts.
        allowed_ids
            The only ids that may be chosen: bool [n_vocab], or a packed bitmask, uint32 or int32
            [ceil(n_vocab / 32)], in which the bit of an id is 1 << id % 32 of word id // 32. An EOS
            token can end the text only if it is allowed.
        sample
            The number of this text among those that are drawn from the same prompt and seed:
            sample i is text i of GPT2.complete with num_return_sequences.
        has_text
            Whether events and the completion have texts. The default: if the prompt is a text.
        cache_space
            Only texts with the same number here share the prefix cache, so that a client cannot
            tell from times what texts of others begin with.

        The options are those of GPT2.complete for one prompt, without beam search,
        num_return_sequences and logits_processor.

        Raises OptionError, OptionTypeError, ContextError or TokenizerError for what is wrong with
        the arguments, and ClosedError. Errors while the request runs are raised by the handle.
        """
        checked_priority = integer("priority", priority, -_MAX_PRIORITY, _MAX_PRIORITY)
        checked = self._model._options(options, AddOptions, "add")
        if checked.logits_processor is not None:
            raise OptionError(
                "add takes no logits_processor, which would delay all requests; use allowed_ids, "
                "or GPT2.complete"
            )
        check_single(prompt, checked, "add")
        completer = self._model._completer(checked)
        (request,) = completer.requests(prompt, 0)
        if deadline is not None:
            end = time.monotonic() + number("deadline", deadline, 0, _MAX_SECONDS)
            earlier = end if request.stops.deadline is None else min(end, request.stops.deadline)
            request = replace(request, stops=replace(request.stops, deadline=earlier))
        if allowed_ids is not None:
            plan = request.plan.with_allowed_ids(allowed_ids)
            unpack_allowed_ids(plan.stages[0].ids, self._model.config.vocab_size)
            request = replace(request, plan=plan)
        if has_text is not None:
            request = replace(request, is_text=flag("has_text", has_text))
        if request.is_text:
            self._model.tokenizer.decode([])  # raises TokenizerError if there is no tokenizer
        request = replace(
            request,
            sample=integer("sample", sample, 0, INT32_MAX),
            cache_space=integer("cache_space", cache_space, 0, INT32_MAX),
        )
        return self._queue(completer, request, checked_priority)

    @property
    def n_running(self) -> int:
        """The number of requests that run now."""
        return self._runner.n_running

    @property
    def n_waiting(self) -> int:
        """The number of requests that wait in the queue."""
        return self._runner.n_waiting

    def _queue(self, completer: Completer, request: Request, priority: int) -> Handle:
        with self._lock.lock:
            if not self._runner.is_of_this_process and not self._is_closed:
                # The parent's runner is never freed, because a step may have been using its jobs
                # during the fork.
                _lost_runners.append(self._runner)
                self._runner = self._new_runner()
            runner = self._runner
        record = _Record(completer, request, self._model._encoder.token_bytes)
        state = RequestState(request, record)
        handle = Handle(runner, state, record)
        state.owner = ref(handle)
        runner.add(state, priority)
        return handle

    def _new_runner(self) -> Runner:
        model = self._model
        return Runner(model._engine, model._prefixes, self._max_running, not self._has_thread)

    def close(self) -> None:
        """Cancel the requests that have not ended, and wait until none runs.

        Their handles have completions with the finish_reason "cancelled". `add` then raises
        ClosedError.
        """
        self._is_closed = True
        self._runner.close()


_lost_runners: list[Runner] = []
