"""Beam search: which beams go on, which texts are kept, and when it is over.

As transformers does it, whose two algorithms differ in small things: plain beam search as in
GenerationMixin._beam_search of 5.24, groups as in BeamSearchScorer of 4.56, the last release that
had them. Diverse groups are those of Vijayakumar et al. 2016, "Diverse Beam Search". Nothing here
knows where log-probabilities are from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class BeamPlan:
    """Checked options of a beam search."""

    n_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    n_groups: int = 1
    diversity_penalty: float = 0.0

    @property
    def group_size(self) -> int:
        """Beams of each group."""
        return self.n_beams // self.n_groups


@dataclass(frozen=True)
class Beam(Generic[T]):
    """A text so far; state is whatever its continuation needs."""

    ids: tuple[int, ...]  # the new ones; without the one that ended it
    total: float  # of the ids' log-probabilities, in nats, after all options
    state: T
    finish_reason: str | None = None
    end: int | None = None  # in bytes, where a stop string begins
    end_id: int | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A text that has ended."""

    ids: tuple[int, ...]
    score: float  # a beam's total, divided by its length to the power of the length penalty
    finish_reason: str
    end: int | None
    end_id: int | None


# (beam, id, the new total) -> the beam with the id, and a finish reason where it ends the text
Extend = Callable[[Beam[T], int, float], Beam[T]]


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """A beam and an id that may follow it."""

    beam: Beam[T]
    id: int
    total: float


class Group(Generic[T]):
    """One group of beams, or all of them, and the best of its texts that ended."""

    def __init__(self, plan: BeamPlan, first: Beam[T], most_ids: int) -> None:
        """most_ids is how long its texts can become."""
        self._plan, self._most_ids = plan, most_ids
        self._size = plan.group_size
        self._is_plain = plan.n_groups == 1
        self._n_ids = 0
        self.live: list[Beam[T]] = [first]
        self.finished: list[Hypothesis] = []  # best first
        self.is_done = False

    def advance(
        self, candidates: Sequence[Candidate[T]], last_reason: str | None, extend: Extend[T]
    ) -> None:
        """Takes candidates for the next id, best first; with last_reason it is the texts' last.

        Of those that end a text only the first `size` count, and the first `size` others go on:
        so candidates are needed for one id more than can end a text, that many times.
        """
        self._n_ids += 1
        live: list[Beam[T]] = []
        for rank, candidate in enumerate(candidates):
            is_last = last_reason is not None and self._is_plain
            if len(live) == self._size or (is_last and rank >= self._size):
                break
            beam = extend(candidate.beam, candidate.id, candidate.total)
            reason = beam.finish_reason or (last_reason if is_last else None)
            if reason is None:
                live.append(beam)
            elif rank < self._size:
                self._finish(beam, reason)
        self.live = live
        # transformers' plain search asks what may still come of the best beam that goes on, its
        # groups what may of the best candidate.
        best = live[:1] if self._is_plain else candidates[:1]
        self.is_done = not live or (
            len(self.finished) == self._size
            and (self._plan.early_stopping is True or not self._can_improve(best[0].total))
        )
        if last_reason is not None and not self.is_done:
            for beam in live:
                self._finish(beam, last_reason)
            self.is_done = True

    def _can_improve(self, total: float) -> bool:
        """Whether a beam may end better than the worst text that is kept.

        As if it ended now, or, with "never" where length is rewarded, at the greatest length.
        """
        is_patient = self._plan.early_stopping == "never" and self._plan.length_penalty > 0
        length = self._most_ids if is_patient else self._n_ids
        return self._score(total, length) > self.finished[-1].score

    def _score(self, total: float, length: int) -> float:
        return float(total / float(length) ** self._plan.length_penalty)

    def _finish(self, beam: Beam[T], reason: str) -> None:
        """The id that ended the text counts in its length."""
        score = self._score(beam.total, self._n_ids)
        self.finished.append(Hypothesis(beam.ids, score, reason, beam.end, beam.end_id))
        self.finished.sort(key=lambda finished: -finished.score)
        del self.finished[self._size :]


def best_of(groups: Sequence[Group[T]], n: int) -> list[Hypothesis]:
    """The n best texts of all groups, best first; fewer where there are not so many."""
    finished = [text for group in groups for text in group.finished]
    return sorted(finished, key=lambda text: -text.score)[:n]
