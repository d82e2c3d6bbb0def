"""Score texts in groups of windows that share passes, and prefixes where windows begin alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import (
    MAX_ROWS,
    NO_MEASURES,
    PAGE_POSITIONS,
    SCORE_TYPE,
    TOP_TYPE,
    EngineModel,
    EngineSequence,
    MeasuredScores,
    Measures,
)
from gpt2c.errors import NumericalError
from gpt2c.measure.scores import Score
from gpt2c.measure.windows import Window, find_sources, windows_of, with_end

# The max number of KV cache pages that the windows of one call of the engine may use, and the max
# number that earlier windows may keep for others to copy. (MAX_ROWS limits a call's rows.) 32 pages
# take 150 MB for GPT-2 124M.
_MAX_PAGES: Final = 32
# The max number of queued texts. Without it, the queue could grow without limit: texts without a
# token to score add no rows, so they never fill a group.
_MAX_QUEUED: Final = 10_000
# How many ids of a list's texts are compared at a time to find common prefixes.
_MAX_COMPARED: Final = 1 << 18


class EncodedText(NamedTuple):
    """A text's ids, int32 [n], of which the first n_given are conditioned on and not scored."""

    ids: NDArray[np.int32]
    n_given: int


class ScoringOptions(NamedTuple):
    """How to score: the stride of windows, the number of alternatives, and what to measure.

    `window` is the number of tokens in a window, of which the last is not fed, so it may be one
    more than the context's positions; None means as many as these positions.
    """

    stride: int
    n_top: int = 0
    measures: Measures = NO_MEASURES
    window: int | None = None


@dataclass(eq=False)
class _QueuedText:
    """A text, and its windows. It has finished when all of them have scores."""

    text: EncodedText
    tasks: list[_Task] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return all(task.scores is not None for task in self.tasks)


@dataclass(eq=False)
class _Task:
    """A window to score, its sequences and its scores."""

    window: Window
    donor: _Task | None = None  # whose first n_shared ids the task copies
    n_shared: int = 0
    dependents: list[_Task] = field(default_factory=list)
    n_waiting: int = 0  # dependents that have not copied yet
    sequences: list[EngineSequence] = field(default_factory=list)  # the other model's is second
    scores: MeasuredScores | None = None

    @property
    def n_rows(self) -> int:
        """The number of ids to feed."""
        return len(self.window.fed) - self.n_shared

    @property
    def n_pages(self) -> int:
        """The number of pages that the window adds; the last page that it shares is copied."""
        return -(-len(self.window.fed) // PAGE_POSITIONS) - self.n_shared // PAGE_POSITIONS


def score_texts(
    engine: EngineModel,
    texts: Iterable[EncodedText],
    options: ScoringOptions,
    *,
    looks_ahead: bool,
) -> Iterator[Score]:
    """Yield the score of each text's ids after the given ones, in order.

    Texts are read lazily: as many as fill a pass, or with looks_ahead many more, so that texts that
    begin alike are found whatever their order. If reading raises an exception, the scores of the
    earlier texts are yielded first.

    Raises NumericalError, naming the text and the position, if a logit is NaN.
    """
    scorer = _Scorer(engine, options, looks_ahead)
    failure: Exception | None = None
    source = iter(texts)
    try:
        while failure is None:
            try:
                text = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            scorer.add(text)
            yield from scorer.pop_finished()
        scorer.run()
        yield from scorer.pop_finished()
        if failure is not None:
            raise failure
    finally:
        failure = None  # it refers to this frame: the cycle would keep the texts (see run_requests)


class _Scorer:
    """Collects texts, and scores their windows in groups, each in one call of the engine."""

    def __init__(self, engine: EngineModel, options: ScoringOptions, looks_ahead: bool) -> None:
        """Begin with an empty queue."""
        self._engine, self._options, self._looks_ahead = engine, options, looks_ahead
        self._queue: deque[_QueuedText] = deque()
        self._waiting: list[_Task] = []
        self._n_rows = self._n_pages = 0  # of the waiting tasks
        self._n_finished = 0  # texts

    def add(self, text: EncodedText) -> None:
        """Queue a text; score what waits whenever it is enough."""
        queued = _QueuedText(text)
        self._queue.append(queued)
        if len(self._queue) > _MAX_QUEUED:
            self.run()
        size = self._options.window or self._engine.n_positions
        windows = windows_of(text.ids, max(text.n_given, 1), size, self._options.stride)
        if self._options.measures.other is not None:
            windows = with_end(windows, text.ids, min(size, self._engine.n_positions))
        queued.tasks = [_Task(window) for window in windows]
        for task in queued.tasks:
            if self._is_enough(task):
                self.run()
            self._waiting.append(task)
            self._n_rows += task.n_rows
            self._n_pages += task.n_pages

    def _is_enough(self, task: _Task) -> bool:
        """Return whether to score what waits before the task."""
        if self._looks_ahead:
            return self._n_rows + task.n_rows > _MAX_COMPARED
        return self._n_rows + task.n_rows > MAX_ROWS or self._n_pages + task.n_pages > _MAX_PAGES

    def run(self) -> None:
        """Score all waiting tasks."""
        tasks, self._waiting = self._waiting, []
        self._n_rows = self._n_pages = 0
        sources = find_sources([task.window for task in tasks])
        for task, source in zip(tasks, sources, strict=True):
            if source is not None:
                task.donor, task.n_shared = tasks[source.donor], source.n_shared
                task.donor.dependents.append(task)
                task.donor.n_waiting += 1
        _GroupRunner(self._engine, self._options, tasks).run()

    def pop_finished(self) -> Iterator[Score]:
        """Remove the finished texts at the front of the queue, and yield their scores.

        Raises NumericalError; see score_texts.
        """
        while self._queue and self._queue[0].is_finished:
            queued = self._queue.popleft()
            yield _joined(queued, self._n_finished, self._options)
            self._n_finished += 1


class _GroupRunner:
    """Scores tasks in groups. A task runs after the one that it copies from."""

    def __init__(self, engine: EngineModel, options: ScoringOptions, tasks: list[_Task]) -> None:
        self._engine, self._options = engine, options
        limit = engine.cache_limit // max(engine.page_bytes, 1)
        self._max_pages = min(2 * _MAX_PAGES, limit) if limit else 2 * _MAX_PAGES
        # First come the tasks whose donors have run, because they let pages go.
        self._ready: deque[_Task] = deque()
        self._roots = deque(task for task in tasks if task.donor is None)
        self._donors: list[_Task] = []  # that have run, and that other tasks wait to copy

    def run(self) -> None:
        """Score all tasks."""
        while self._ready or self._roots:
            if group := self._next_group():
                self._run_group(group)
            else:
                self._give_up_sharing()

    def _next_group(self) -> list[_Task]:
        """Start as many tasks as fit in one call; return an empty list if donors take the room."""
        group: list[_Task] = []
        n_rows = n_pages = 0
        while queue := self._ready or self._roots:
            task = queue[0]
            n_held = sum(donor.n_pages for donor in self._donors)
            fits_in_call = n_rows + task.n_rows <= MAX_ROWS and n_pages + task.n_pages <= _MAX_PAGES
            fits = fits_in_call and n_held + n_pages + task.n_pages <= self._max_pages
            if not fits and (group or self._donors):
                break
            self._start(queue.popleft())
            group.append(task)
            n_rows += task.n_rows
            n_pages += task.n_pages
        return group

    def _start(self, task: _Task) -> None:
        """Give a task its sequences."""
        donor = task.donor
        if donor is None:
            other = self._options.measures.other
            engines = [self._engine] if other is None else [self._engine, other]
            task.sequences = [engine.sequence() for engine in engines]
            return
        task.sequences = [sequence.copy() for sequence in donor.sequences]
        for sequence in task.sequences:
            sequence.truncate(task.n_shared)
        task.scores = _copied_scores(donor, task)
        donor.n_waiting -= 1
        if donor.n_waiting == 0:
            self._donors.remove(donor)
            donor.sequences = []

    def _run_group(self, group: list[_Task]) -> None:
        windows = [_unshared_part(task) for task in group]
        options = self._options
        with ExitStack() as held:
            held.enter_context(self._engine.held())
            if options.measures.other is not None:
                held.enter_context(options.measures.other.held())
            found = self._engine.measure(
                [task.sequences[0] for task in group],
                [window.fed for window in windows],
                [window.targets for window in windows],
                options.n_top,
                options.measures,
                [sequence for task in group for sequence in task.sequences[1:]],
            )
        ends = np.cumsum([len(window.targets) for window in windows])[:-1]
        parts = zip(*(np.split(array, ends) for array in found), strict=True)
        for task, (scores, top, values) in zip(group, parts, strict=True):
            task.scores = _concatenated(task.scores, (scores, top, values))
            if task.dependents:
                self._donors.append(task)
                self._ready.extend(task.dependents)
            else:
                task.sequences = []

    def _give_up_sharing(self) -> None:
        """Let all donors go; the tasks that would copy from them run on their own."""
        for task in self._ready:
            task.donor, task.n_shared = None, 0
        for donor in self._donors:
            donor.sequences = []
        self._donors.clear()
        self._roots.extendleft(self._ready)
        self._ready.clear()


def _copied_scores(donor: _Task, task: _Task) -> MeasuredScores | None:
    """Return the donor's scores of the targets that the task shares with it; None for none."""
    n_shared, n_unscored = task.n_shared, task.window.n_unscored
    if donor.scores is None or n_shared <= n_unscored:
        return None
    part = slice(n_unscored - donor.window.n_unscored, n_shared - donor.window.n_unscored)
    scores, top, values = donor.scores
    return scores[part], top[part], values[part]


def _concatenated(first: MeasuredScores | None, second: MeasuredScores) -> MeasuredScores:
    if first is None:
        return second
    scores, top, values = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    return scores, top, values


def _unshared_part(task: _Task) -> Window:
    """Return what a task itself feeds and scores."""
    fed, targets = task.window
    return Window(fed[task.n_shared :], targets[max(task.n_shared - task.window.n_unscored, 0) :])


def _joined(queued: _QueuedText, index: int, options: ScoringOptions) -> Score:
    """Join the scores of a text's windows; `index` is the text's number in messages."""
    n_top, measures = options.n_top, options.measures
    ids = queued.text.ids[queued.text.n_given :]
    found = [
        (
            np.empty(0, dtype=SCORE_TYPE),
            np.empty((0, n_top), dtype=TOP_TYPE),
            np.empty((0, measures.n_values), dtype=np.float32),
        ),
        *(task.scores for task in queued.tasks if task.scores is not None),
    ]
    scores, top, values = map(np.concatenate, zip(*found, strict=True))
    # The last target is not the text's if with_end added it.
    n_scored = len(scores) - (measures.other is not None and bool(queued.tasks))
    n_before = len(ids) - n_scored  # 1 if nothing precedes the first token, else 0
    if np.isnan(scores["log_prob"]).any():
        position = n_before + int(np.flatnonzero(np.isnan(scores["log_prob"]))[0])
        raise NumericalError(
            f"text {index}: a logit at position {position} is NaN; do the weights have NaN or "
            "infinite values?"
        )
    end_value = float(values[-1, -2]) if n_scored < len(scores) else None
    scores, top, values = scores[:n_scored], top[:n_scored], values[:n_scored]
    nans = np.full(n_before, np.nan, dtype=np.float32)
    no_top = np.full((n_before, n_top), -1, dtype=np.int32)
    top_ids = np.concatenate([no_top, top["id"]])
    top_logprobs = np.concatenate([no_top.astype(np.float32), top["log_prob"]])
    top_logprobs[top_ids < 0] = np.nan
    values = np.concatenate([np.full((n_before, measures.n_values), np.nan, np.float32), values])
    n_orders, first = len(measures.orders), int(measures.second_moment)
    return Score(
        ids,
        np.concatenate([nans, scores["log_prob"]]),
        np.concatenate([np.zeros(n_before, dtype=np.int32), scores["rank"]]),
        np.concatenate([nans, scores["entropy"]]),
        top_ids,
        top_logprobs,
        second_moments=values[:, 0] if measures.second_moment else None,
        renyi_entropies=values[:, first : first + n_orders],
        set_logprobs=values[:, first + n_orders :][:, : len(measures.sets)],
        cross_entropies=values[:, -2] if measures.other is not None else None,
        other_logprobs=values[:, -1] if measures.other is not None else None,
        end_cross_entropy=end_value,
    )
