"""Beam search: which beams go on, which texts are kept, and when it is over.

As transformers does it, whose two algorithms differ in small things: plain beam search as in
GenerationMixin._beam_search of 5.24, groups as in BeamSearchScorer of 4.56, the last release that
had them. Diverse groups are those of Vijayakumar et al. 2016, "Diverse Beam Search". Nothing here
knows where log-probabilities are from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypedDict, TypeVar

from gpt2c.checks.options import flag, integer, number
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError

MOST_BEAMS: Final = 1024
_MOST_LENGTH_PENALTY: Final = 50.0  # beyond it powers of a length would leave the floats
_MOST_DIVERSITY: Final = 1e4  # as of a logit's bias

T = TypeVar("T")


class BeamOptions(TypedDict, total=False):
    """Keyword arguments of beam search; see GPT2.complete for what they are."""

    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | str | None
    num_beam_groups: int | None
    diversity_penalty: float | None


# With which the options do nothing, as in transformers.
NEUTRAL: Final[Mapping[str, object]] = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}


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


def check_beams(given: Mapping[str, Any]) -> BeamPlan | None:
    """The plan of BeamOptions, those that are None not being given; None: there is one beam.

    Raises OptionError or OptionTypeError naming the option, its value and its range.
    """
    options = {**NEUTRAL, **{name: value for name, value in given.items() if value is not None}}
    n_beams = integer("num_beams", options["num_beams"], 1, MOST_BEAMS)
    plan = BeamPlan(
        n_beams,
        number(
            "length_penalty",
            options["length_penalty"],
            -_MOST_LENGTH_PENALTY,
            _MOST_LENGTH_PENALTY,
        ),
        _early_stopping(options["early_stopping"]),
        integer("num_beam_groups", options["num_beam_groups"], 1, MOST_BEAMS),
        number("diversity_penalty", options["diversity_penalty"], 0, _MOST_DIVERSITY),
    )
    if n_beams == 1:
        for name, neutral in NEUTRAL.items():
            if options[name] != neutral:
                raise OptionError(f"{name} is given without num_beams, which turns beams on")
        return None
    if n_beams % plan.n_groups:
        raise OptionError(
            f"num_beam_groups is {plan.n_groups}; it must divide num_beams, which is {n_beams}"
        )
    if plan.n_groups > 1 and not plan.diversity_penalty:
        raise OptionError(
            "num_beam_groups is given without a diversity_penalty above 0, so that all groups "
            "would find the same"
        )
    if plan.n_groups == 1 and plan.diversity_penalty:
        raise OptionError(
            "diversity_penalty is given without num_beam_groups, which it keeps apart"
        )
    return plan


def _early_stopping(value: object) -> bool | str:
    if isinstance(value, str):
        if value != "never":
            raise OptionError(f"early_stopping is {show(value)}; it must be True, False or 'never'")
        return value
    try:
        return flag("early_stopping", value)
    except OptionTypeError:
        raise OptionTypeError(
            f"early_stopping is {show(value)}; it must be True, False or 'never'"
        ) from None


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
