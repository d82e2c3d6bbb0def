"""Beam searches on the engine: what is fed, what the candidates are, and who shares whose cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import (
    MAX_ROWS,
    MOST_LOGPROBS,
    NO_IDS,
    EngineModel,
    EngineSequence,
    Scores,
)
from gpt2c.schedule.batching import (
    SHARED_PREFIX,
    Batch,
    at_once,
    checked_logits,
    common_prefix,
    empty_scores,
    fail,
    score_prompt,
)
from gpt2c.schedule.beams import Beam, BeamPlan, Candidate, Group, Hypothesis, best_of
from gpt2c.schedule.requests import Request, Result
from gpt2c.schedule.stops import Watcher

# Stages that rule out ids whatever the text: some more of the likeliest make up for them.
_BANS: Final = ("suppress_tokens", "min_new_tokens")


@dataclass(frozen=True)
class _State:
    """Of a beam: where its keys and values are, all but its last id's, and its stop strings'."""

    sequence: EngineSequence
    watcher: Watcher | None


@dataclass(frozen=True)
class _Row:
    """What the model says of the id that follows a beam."""

    log_probs: NDArray[np.float32]  # [n_vocab], or of the likeliest ids, best first
    ids: NDArray[np.int32] | None = None  # those ids

    @classmethod
    def of_top(cls, top: NDArray[np.void]) -> _Row:
        """Of an array of TOP_TYPE."""
        return cls(top["log_prob"], top["id"])

    def greatest(self, n: int) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The n greatest and their ids, best first, the lower id first of equal ones."""
        x = self.log_probs
        if self.ids is not None:
            order = np.argsort(-x, kind="stable")[:n]
            return x[order].astype(np.float64), self.ids[order]
        least = np.partition(x, -n)[-n] if n < len(x) else -np.inf
        ids = np.flatnonzero(x >= least)
        ids = ids[np.argsort(-x[ids], kind="stable")[:n]]
        return x[ids].astype(np.float64), ids

    def less(self, amounts: dict[int, float]) -> _Row:
        """With amounts taken from the log-probabilities of ids."""
        x = self.log_probs.copy()
        for id, amount in amounts.items():
            x[id if self.ids is None else self.ids == id] -= np.float32(amount)
        return _Row(x, self.ids)


class Search:
    """One prompt's beam search."""

    def __init__(
        self, engine: EngineModel, request: Request, plan: BeamPlan, sequence: EngineSequence | None
    ) -> None:
        """sequence, which is taken, holds the prompt's first tokens."""
        self._engine, self.request, self._plan = engine, request, plan
        self.result: list[Result] | None = None
        self.head = request.ids[:SHARED_PREFIX].tobytes()
        # The last id need not be fed, so a full context still yields one.
        self._most_ids = min(request.max_new_tokens, engine.n_positions - len(request.ids) + 1)
        self._n_ids = 0
        self._prompt_scores: Scores | None = None
        if request.scores_prompt:
            sequence, self._prompt_scores = score_prompt(engine, request)
        self._stop_ids = frozenset(request.stop_ids.tolist())
        self._n_candidates = max(2, 1 + len(self._stop_ids)) * plan.group_size
        watcher = Watcher(request.stops, request.index) if request.stops.strings else None
        first = Beam((), 0.0, _State(sequence or engine.sequence(), watcher))
        self._groups = [Group(plan, first, self._most_ids) for _ in range(plan.n_groups)]
        self._beams = [first]  # that are fed
        self.n_top = self._n_top()

    def _n_top(self) -> int | None:
        """How many of each row's likeliest ids are enough; None: all have to be seen."""
        stages = self.request.plan.stages
        if self.request.logits_processor is not None or any(s.name not in _BANS for s in stages):
            return None
        # As many as there are beams can be penalised for what other groups chose.
        n = self._n_candidates + (self._plan.n_beams if self._plan.n_groups > 1 else 0)
        n += sum(len(stage.ids) for stage in stages)
        return n if n <= MOST_LOGPROBS else None

    def feeds(self) -> list[tuple[EngineSequence, NDArray[np.int32]]]:
        """Sequences, and the ids that are fed to each: a row for each beam."""
        if self._n_ids == 0:
            sequence = self._beams[0].state.sequence
            return [(sequence, self.request.ids[sequence.length :])]
        return [(b.state.sequence, np.array(b.ids[-1:], dtype=np.int32)) for b in self._beams]

    def n_shared(self, request: Request) -> int:
        """How many tokens both prompts begin with, of those that a copy can have."""
        most = min(len(request.ids), len(self.request.ids)) - 1
        return min(common_prefix(request.ids, self.request.ids), most)

    def shared(self, n: int) -> EngineSequence:
        """A sequence of the prompt's first n tokens."""
        own = self._beams[0].state.sequence
        if own.length < n:  # the prompt waits for its first step
            own.feed(self.request.ids[own.length : n], 0)
        sequence = own.copy()
        sequence.truncate(n)
        return sequence

    def take(self, rows: list[_Row]) -> None:
        """Goes on by what the model says after each of the ids that were fed."""
        if any(np.isnan(row.log_probs).any() for row in rows):
            fail("nan", self.request.index, len(self.request.ids) + self._n_ids)
        self._n_ids += 1
        row_of = {id(beam.state): row for beam, row in zip(self._beams, rows, strict=True)}
        last_reason = self._last_reason()
        chosen: Counter[int] = Counter()  # by the groups before
        for group in self._groups:
            if group.is_done:
                # transformers' groups go on with padding, which later ones are kept from.
                if self.request.pad_id is not None:
                    chosen[self.request.pad_id] += self._plan.group_size
                continue
            candidates = self._candidates(group, row_of, chosen)
            # Given anew each time: a group that kept it would keep the caches of a search that is
            # over until garbage is collected.
            group.advance(candidates, last_reason, self._extended)
            chosen.update(beam.ids[-1] for beam in group.live)
        live = [beam for group in self._groups if not group.is_done for beam in group.live]
        if live:
            self._beams = live
            self._share_out()
        else:
            self._end()

    def _candidates(
        self, group: Group[_State], row_of: dict[int, _Row], chosen: Counter[int]
    ) -> list[Candidate[_State]]:
        penalties = {id: self._plan.diversity_penalty * n for id, n in chosen.items()}
        beams, totals, ids = [], [], []
        for beam in group.live:
            row = row_of[id(beam.state)]
            row = self._processed(row.less(penalties) if penalties else row, beam)
            log_probs, likeliest = row.greatest(self._n_candidates)
            beams += [beam] * len(likeliest)
            totals.append(beam.total + log_probs)
            ids.append(likeliest)
        total, id_ = np.concatenate(totals), np.concatenate(ids)
        order = np.argsort(-total, kind="stable")[: self._n_candidates]
        return [
            Candidate(beams[i], int(id_[i]), float(total[i])) for i in order if total[i] > -np.inf
        ]

    def _processed(self, row: _Row, beam: Beam[_State]) -> _Row:
        """After the options that change single ids' log-probabilities."""
        x = row.log_probs
        if row.ids is not None:
            if not self.request.plan.stages:
                return row
            is_banned = np.isin(row.ids, self._banned_ids())
            return _Row(x[~is_banned], row.ids[~is_banned])
        if self.request.logits_processor is not None:
            before = [*self.request.ids.tolist(), *beam.ids]
            x = checked_logits(self.request.logits_processor(before, x.copy()), len(x))
        if self.request.plan.stages:
            ids, new_ids = self.request.ids, np.array(beam.ids, dtype=np.int32)
            x = self._engine.apply_stages(self.request.plan, x, ids, new_ids)
        return row if x is row.log_probs else _Row(x)

    def _banned_ids(self) -> NDArray[np.int32]:
        """Of _BANS, at this step."""
        n_before = self._n_ids - 1
        banned = [
            stage.ids
            for stage in self.request.plan.stages
            if stage.name != "min_new_tokens" or n_before < stage.count
        ]
        return np.concatenate([NO_IDS, *banned])

    def _extended(self, beam: Beam[_State], id: int, total: float) -> Beam[_State]:
        if id in self._stop_ids:
            return replace(beam, total=total, finish_reason="stop", end_id=id)
        ids, state = (*beam.ids, id), beam.state
        if state.watcher is not None:
            watcher = state.watcher.copy()
            if watcher.push(id) == "stop":
                ids = tuple(watcher.ids)
                return replace(beam, ids=ids, total=total, finish_reason="stop", end=watcher.end)
            state = replace(state, watcher=watcher)
        return replace(beam, ids=ids, total=total, state=state)

    def _last_reason(self) -> str | None:
        """Why no text can become longer than it is after this step."""
        if self._n_ids == self.request.max_new_tokens:
            return "length"
        if self._n_ids == self._most_ids:
            return "context"
        return "time" if self.request.stops.is_late else None

    def _share_out(self) -> None:
        """Gives each beam a sequence: the first of a parent's children takes the parent's, the

        others copies, which share its pages until they write to them.
        """
        taken: set[int] = set()
        for group in self._groups:
            if group.is_done:
                group.live = []
            for i, beam in enumerate(group.live):
                sequence = beam.state.sequence
                if id(sequence) in taken:
                    sequence = sequence.copy()
                taken.add(id(sequence))
                group.live[i] = replace(beam, state=_State(sequence, beam.state.watcher))
        self._beams = [beam for group in self._groups for beam in group.live]

    def _end(self) -> None:
        best = best_of(self._groups, self.request.n_best)
        if not best:
            fail("nothing", self.request.index, len(self.request.ids) + self._n_ids - 1)
        self.result = [
            Result(
                list(text.ids), text.finish_reason, text.end, scores, self._prompt_scores,
                draft_counts=(self._n_ids, 0, 0), sequence_score=text.score, end_id=text.end_id,
            )
            for text, scores in zip(best, self._scores(best), strict=True)
        ]  # fmt: skip

    def _scores(self, texts: list[Hypothesis]) -> list[Scores | None]:
        """What the model says of the texts' ids, once more: less is kept while it searches."""
        n_top = self.request.n_top
        if n_top is None:
            return [None] * len(texts)
        own = self._beams[0].state.sequence  # which begins with the prompt
        all_ids = [np.array(text.ids, dtype=np.int32) for text in texts]
        targets = [ids for ids in all_ids if len(ids)]
        sequences = [own.copy() for _ in targets]
        for sequence in sequences:
            sequence.truncate(len(self.request.ids) - 1)
        if not targets:
            return [empty_scores(n_top)] * len(texts)
        fed = [np.concatenate([self.request.ids[-1:], ids[:-1]]) for ids in targets]
        scores, top = self._engine.score(sequences, fed, targets, n_top)
        ends = np.cumsum([len(ids) for ids in all_ids])[:-1]
        return list(zip(np.split(scores, ends), np.split(top, ends), strict=True))


class SearchBatch(Batch[list[Result]]):
    """Beam searches, all beams of all prompts in one call of the engine a step."""

    def __init__(self, engine: EngineModel, size: int, plan: BeamPlan) -> None:
        """Nothing runs."""
        # Each beam is a row of one forward call and, if options need all log-probabilities, a row
        # of the vocabulary's size in memory.
        super().__init__(engine, max(1, min(size, MAX_ROWS // plan.n_beams)))
        self._plan = plan

    def _at_once(self, request: Request) -> list[Result] | None:
        if (result := at_once(self._engine, request)) is None:
            return None
        return [result]

    def _start(self, request: Request, sequence: EngineSequence | None) -> Search:
        return Search(self._engine, request, self._plan, sequence)

    def _advance(self, running: list[Search]) -> None:
        """One step."""
        feeds = [search.feeds() for search in running]
        # n_top depends on options alone, and is the same of all.
        rows = self._rows([feed for each in feeds for feed in each], running[0].n_top)
        for search, fed in zip(running, feeds, strict=True):
            search.take(rows[: len(fed)])
            rows = rows[len(fed) :]

    def _rows(
        self, feeds: list[tuple[EngineSequence, NDArray[np.int32]]], n_top: int | None
    ) -> list[_Row]:
        sequences, ids = [sequence for sequence, _ in feeds], [ids for _, ids in feeds]
        if n_top is None:
            return [_Row(x) for x in self._engine.log_probs(sequences, ids)]
        top = self._engine.top_log_probs(sequences, ids, n_top)
        return [_Row.of_top(row[row["id"] >= 0]) for row in top]
