"""Beam search: which beams continue, which hypotheses are kept, and when the search ends.

This module is independent of the engine: it gets the candidates of a step, and returns the beams of
the next step. Each group ranks its candidates, which are pairs of a beam and a next id, by the sum
of log-probabilities. A candidate that ends its sequence becomes a hypothesis if it is among the
first n, n being the size of the group; the first n candidates that continue become the new beams. A
group keeps its n best hypotheses, by the sum divided by length^length_penalty. Once a group has n
hypotheses, early_stopping decides when the group is done: immediately, or when its best beam is
estimated to end no better than the worst hypothesis. In each step the groups run one after the
other, so that each group can penalise the ids that earlier groups chose.

Everything follows transformers, whose two implementations differ in details: a single group
follows GenerationMixin._beam_search of 5.24, several groups follow BeamSearchScorer of 4.56, the
last release that had them. Diverse groups are from Vijayakumar et al. 2016, "Diverse Beam Search".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class SearchOptions:
    """Checked options of a beam search."""

    n_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    n_groups: int = 1
    diversity_penalty: float = 0.0

    @property
    def group_size(self) -> int:
        """The number of beams in each group."""
        return self.n_beams // self.n_groups


@dataclass(frozen=True)
class Beam(Generic[T]):
    """A partial sequence; state is whatever the caller needs to continue the sequence."""

    ids: tuple[int, ...]  # the new ids, without the id that ended the sequence
    total: float  # the sum of the ids' log-probabilities, in nats, after all options
    state: T
    finish_reason: str | None = None
    end: int | None = None  # where a stop string begins, in bytes
    end_id: int | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence."""

    ids: tuple[int, ...]
    score: float  # the beam's total, divided by length^length_penalty
    finish_reason: str
    end: int | None
    end_id: int | None


# (beam, id, the new total) -> the beam with that id, with a finish reason if the id ends it
Extend = Callable[[Beam[T], int, float], Beam[T]]


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """A beam and an id that may follow; total includes the id's log-probability."""

    beam: Beam[T]
    id: int
    total: float


class Group(Generic[T]):
    """One group of beams and its best hypotheses."""

    def __init__(self, options: SearchOptions, first: Beam[T], max_ids: int) -> None:
        """Make a group that starts from one beam; max_ids is the max number of new ids."""
        self._options, self._max_ids = options, max_ids
        self._size = options.group_size
        self._is_only_group = options.n_groups == 1
        self._n_ids = 0
        self.live: list[Beam[T]] = [first]
        self.finished: list[Hypothesis] = []  # best first
        self.is_done = False

    def advance(
        self, candidates: Sequence[Candidate[T]], last_reason: str | None, extend: Extend[T]
    ) -> None:
        """Advance by one id; candidates come best first.

        last_reason is the finish reason of all sequences if this step is the last. To find enough
        beams that continue, the candidates must be the best (number of stop ids + 1) * size.
        """
        self._n_ids += 1
        live: list[Beam[T]] = []
        for rank, candidate in enumerate(candidates):
            is_last = last_reason is not None and self._is_only_group
            if len(live) == self._size or (is_last and rank >= self._size):
                break
            beam = extend(candidate.beam, candidate.id, candidate.total)
            reason = beam.finish_reason or (last_reason if is_last else None)
            if reason is None:
                live.append(beam)
            elif rank < self._size:
                self._finish(beam, reason)
        self.live = live
        # As in transformers, a single group compares its best continuing beam with its hypotheses;
        # each of several groups compares its best candidate, even one that ends its sequence.
        best = live[:1] if self._is_only_group else candidates[:1]
        self.is_done = not live or (
            len(self.finished) == self._size
            and (self._options.early_stopping is True or not self._can_improve(best[0].total))
        )
        if last_reason is not None and not self.is_done:
            for beam in live:
                self._finish(beam, last_reason)
            self.is_done = True

    def _can_improve(self, total: float) -> bool:
        """Whether a beam with this total may beat the worst hypothesis.

        The beam is scored at its current length, or at the max length with early_stopping="never"
        and a length_penalty above 0.
        """
        at_max = self._options.early_stopping == "never" and self._options.length_penalty > 0
        length = self._max_ids if at_max else self._n_ids
        return self._score(total, length) > self.finished[-1].score

    def _score(self, total: float, length: int) -> float:
        return float(total / float(length) ** self._options.length_penalty)

    def _finish(self, beam: Beam[T], reason: str) -> None:
        score = self._score(beam.total, self._n_ids)  # the length includes the id that ended it
        self.finished.append(Hypothesis(beam.ids, score, reason, beam.end, beam.end_id))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self._size :]


def best_of(groups: Sequence[Group[T]], n: int) -> list[Hypothesis]:
    """Return the n best hypotheses of all groups, best first; fewer if the groups found fewer."""
    finished = [hypothesis for group in groups for hypothesis in group.finished]
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)[:n]
