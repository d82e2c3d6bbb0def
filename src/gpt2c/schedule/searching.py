"""Run beam searches on the engine: feed the beams, find candidates, assign KV caches.

A step feeds each live beam its last id, all beams of all prompts in one call of the engine; the
first step feeds the prompt, from which all beams branch. The call returns a row for each beam: the
log-probabilities of the next id. Each group turns the rows of its beams into candidates, after the
diversity penalty and the options, and `beams.Group` chooses from them. A beam keeps the sequence
of its parent; if a parent has several children, the first child takes the parent's sequence and
the others copy it.

A row holds all n_vocab log-probabilities, or only those of the most likely ids, which the engine
finds much faster. The most likely ids are enough if the options only ban ids. Each ban and each
diversity penalty removes at most one id from the best, so the row has one extra id for each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.engine.protocol import (
    MAX_LOGPROBS,
    MAX_ROWS,
    NO_IDS,
    EngineModel,
    EngineSequence,
    Scores,
)
from gpt2c.schedule.batching import Batch
from gpt2c.schedule.beams import Beam, Candidate, Group, Hypothesis, SearchOptions, best_of
from gpt2c.schedule.continuation import (
    check_logits,
    empty_scores,
    immediate_result,
    raise_failure,
    score_prompt,
)
from gpt2c.schedule.prefix_cache import MIN_SHARED_PREFIX, PrefixCache, common_prefix
from gpt2c.schedule.requests import Request, Result
from gpt2c.schedule.stops import Watcher

# Stages that ban the same ids in every beam.
_BANS: Final = ("suppress_tokens", "min_new_tokens")


@dataclass(frozen=True)
class _State:
    """What a beam needs in order to continue."""

    sequence: EngineSequence  # the prompt and the beam's ids, without the last id
    watcher: Watcher | None  # None without stop strings


@dataclass(frozen=True)
class _Row:
    """The log-probabilities of the id that follows a beam."""

    log_probs: NDArray[np.float32]  # [n_vocab], or one for each of `ids`
    ids: NDArray[np.int32] | None = None  # the most likely ids, best first; None: all

    def most_likely(self, n: int) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Return the n largest log-probabilities and their ids; ties go to the lower id."""
        x = self.log_probs
        if self.ids is not None:
            order = np.lexsort((self.ids, -x))[:n]
            return x[order].astype(np.float64), self.ids[order]
        threshold = np.partition(x, -n)[-n] if n < len(x) else -np.inf
        ids = np.flatnonzero(x >= threshold)
        ids = ids[np.argsort(-x[ids], kind="stable")[:n]]
        return x[ids].astype(np.float64), ids

    def penalised(self, penalties: dict[int, float]) -> _Row:
        """Return a row with penalties, by id, subtracted."""
        x = self.log_probs.copy()
        for id, penalty in penalties.items():
            x[id if self.ids is None else self.ids == id] -= np.float32(penalty)
        return _Row(x, self.ids)


class Search:
    """One prompt's beam search."""

    def __init__(
        self,
        engine: EngineModel,
        prefixes: PrefixCache,
        request: Request,
        options: SearchOptions,
        sequence: EngineSequence | None,
    ) -> None:
        """Begin the search. It takes over `sequence`, which holds the prompt's first tokens."""
        self._engine, self._prefixes = engine, prefixes
        self.request, self._options = request, options
        self.result: list[Result] | None = None
        self.prefix_key = request.ids[:MIN_SHARED_PREFIX].tobytes()
        # The last id is never fed, so it needs no position in the context.
        self._max_ids = min(request.max_new_tokens, engine.n_positions - len(request.ids) + 1)
        self._n_ids = 0
        self._prompt_scores: Scores | None = None
        if request.scores_prompt:
            sequence, self._prompt_scores = score_prompt(engine, request)
        self._stop_ids = frozenset(request.stop_ids.tolist())
        self._n_candidates = max(2, 1 + len(self._stop_ids)) * options.group_size
        watcher = Watcher(request.stops, request.index) if request.stops.strings else None
        first = Beam((), 0.0, _State(sequence or engine.sequence(), watcher))
        self._groups = [Group(options, first, self._max_ids) for _ in range(options.n_groups)]
        self._beams = [first]  # the beams of the next step, one row each
        self.n_top = self._n_top()

    def _n_top(self) -> int | None:
        """Return how many of the most likely ids a row needs; None if it needs all ids."""
        stages = self.request.plan.stages
        if self.request.logits_processor is not None or any(s.name not in _BANS for s in stages):
            return None
        # Earlier groups chose at most n_beams ids, which may be penalised.
        n = self._n_candidates + (self._options.n_beams if self._options.n_groups > 1 else 0)
        n += sum(len(stage.ids) for stage in stages)
        return n if n <= MAX_LOGPROBS else None

    def inputs(self) -> list[tuple[EngineSequence, NDArray[np.int32]]]:
        """Return each beam's sequence and the ids to feed it in the next step."""
        if self._n_ids == 0:
            sequence = self._beams[0].state.sequence
            return [(sequence, self.request.ids[sequence.length :])]
        return [(b.state.sequence, np.array(b.ids[-1:], dtype=np.int32)) for b in self._beams]

    def shared_length(self, request: Request) -> int:
        """Return the length of the prefix that a request can copy."""
        limit = min(len(request.ids), len(self.request.ids)) - 1
        return min(common_prefix(request.ids, self.request.ids), limit)

    def copy_prefix(self, n: int) -> EngineSequence:
        """Return a sequence of the first n tokens; n must not exceed shared_length(request)."""
        first = self._beams[0].state.sequence
        if first.length < n:  # before the first step, which feeds the prompt
            first.feed(self.request.ids[first.length : n], 0)
        sequence = first.copy()
        sequence.truncate(n)
        return sequence

    def advance(self, rows: list[_Row]) -> None:
        """Choose the next beams from the rows of the current beams; set `result` at the end."""
        if any(np.isnan(row.log_probs).any() for row in rows):
            raise_failure("nan", self.request.index, len(self.request.ids) + self._n_ids)
        self._n_ids += 1
        row_of = {id(beam.state): row for beam, row in zip(self._beams, rows, strict=True)}
        last_reason = self._last_reason()
        chosen: Counter[int] = Counter()  # ids that earlier groups chose in this step
        for group in self._groups:
            if group.is_done:
                # In transformers a finished group chooses padding, which later groups avoid.
                if self.request.pad_id is not None:
                    chosen[self.request.pad_id] += self._options.group_size
                continue
            candidates = self._candidates(group, row_of, chosen)
            # The group must not store self._extended: the reference cycle would keep the KV caches
            # of a finished search until garbage collection.
            group.advance(candidates, last_reason, self._extended)
            chosen.update(beam.ids[-1] for beam in group.live)
        live = [beam for group in self._groups if not group.is_done for beam in group.live]
        if live:
            self._beams = live
            self._assign_sequences()
        else:
            self._end()

    def _candidates(
        self, group: Group[_State], row_of: dict[int, _Row], chosen: Counter[int]
    ) -> list[Candidate[_State]]:
        penalties = {id: self._options.diversity_penalty * n for id, n in chosen.items()}
        beams, totals, ids = [], [], []
        for beam in group.live:
            row = row_of[id(beam.state)]
            row = self._processed(row.penalised(penalties) if penalties else row, beam)
            log_probs, likeliest = row.most_likely(self._n_candidates)
            beams += [beam] * len(likeliest)
            totals.append(beam.total + log_probs)
            ids.append(likeliest)
        all_totals, all_ids = np.concatenate(totals), np.concatenate(ids)
        order = np.argsort(-all_totals, kind="stable")[: self._n_candidates]
        return [
            Candidate(beams[i], int(all_ids[i]), float(all_totals[i]))
            for i in order
            if all_totals[i] > -np.inf
        ]

    def _processed(self, row: _Row, beam: Beam[_State]) -> _Row:
        """Return the row after logits_processor and the stages."""
        x = row.log_probs
        if row.ids is not None:
            if not self.request.plan.stages:
                return row
            is_banned = np.isin(row.ids, self._banned_ids())
            return _Row(x[~is_banned], row.ids[~is_banned])
        if self.request.logits_processor is not None:
            before = [*self.request.ids.tolist(), *beam.ids]
            x = check_logits(self.request.logits_processor(before, x.copy()), len(x))
        if self.request.plan.stages:
            ids, new_ids = self.request.ids, np.array(beam.ids, dtype=np.int32)
            x = self._engine.apply_stages(self.request.plan, x, ids, new_ids)
        return row if x is row.log_probs else _Row(x)

    def _banned_ids(self) -> NDArray[np.int32]:
        """Return the ids that the stages of _BANS ban in this step."""
        n_before = self._n_ids - 1
        banned = [
            stage.ids
            for stage in self.request.plan.stages
            if stage.name != "min_new_tokens" or n_before < stage.count
        ]
        return np.concatenate([NO_IDS, *banned])

    def _extended(self, beam: Beam[_State], id: int, total: float) -> Beam[_State]:
        """Return the beam with another id, and with a finish reason if the id ends it."""
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
        """Return the finish reason if this step is the last, or None."""
        if self._n_ids == self.request.max_new_tokens:
            return "length"
        if self._n_ids == self._max_ids:
            return "context"
        return "time" if self.request.stops.is_late else None

    def _assign_sequences(self) -> None:
        """Give each beam its own sequence.

        A parent's first child takes the parent's sequence. The other children get copies, which
        share pages with it until one of the sequences writes.
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
            raise_failure("nothing", self.request.index, len(self.request.ids) + self._n_ids - 1)
        self._prefixes.put(self.request.ids, self._beams[0].state.sequence)
        self.result = [
            Result(
                list(h.ids), h.finish_reason, h.end, scores, self._prompt_scores,
                draft_counts=(self._n_ids, 0, 0), sequence_score=h.score, end_id=h.end_id,
            )
            for h, scores in zip(best, self._scores(best), strict=True)
        ]  # fmt: skip

    def _scores(self, hypotheses: list[Hypothesis]) -> list[Scores | None]:
        """Score the hypotheses' ids in another pass, because the search keeps only totals."""
        n_top = self.request.n_top
        if n_top is None:
            return [None] * len(hypotheses)
        first = self._beams[0].state.sequence  # begins with the prompt, as all beams do
        all_ids = [np.array(h.ids, dtype=np.int32) for h in hypotheses]
        targets = [ids for ids in all_ids if len(ids)]
        sequences = [first.copy() for _ in targets]
        for sequence in sequences:
            sequence.truncate(len(self.request.ids) - 1)
        if not targets:
            return [empty_scores(n_top)] * len(hypotheses)
        fed = [np.concatenate([self.request.ids[-1:], ids[:-1]]) for ids in targets]
        scores, top = self._engine.score(sequences, fed, targets, n_top)
        ends = np.cumsum([len(ids) for ids in all_ids])[:-1]
        return list(zip(np.split(scores, ends), np.split(top, ends), strict=True))


class SearchBatch(Batch[list[Result]]):
    """A batch of beam searches: each step is one call of the engine for all of their beams."""

    def __init__(
        self, engine: EngineModel, prefixes: PrefixCache, size: int, options: SearchOptions
    ) -> None:
        """Make an empty batch of at most `size` searches and MAX_ROWS beams.

        The limit on beams bounds the memory of rows of n_vocab log-probabilities.
        """
        super().__init__(engine, prefixes, max(1, min(size, MAX_ROWS // options.n_beams)))
        self._options = options

    def _immediate_result(self, request: Request) -> list[Result] | None:
        result = immediate_result(self._engine, request)
        return None if result is None else [result]

    def _start(self, request: Request, sequence: EngineSequence | None) -> Search:
        return Search(self._engine, self._prefixes, request, self._options, sequence)

    def _advance(self, running: list[Search]) -> None:
        """Run one step of all searches."""
        inputs = [search.inputs() for search in running]
        # n_top is the same in all searches: it depends on the call's options only.
        rows = self._rows([pair for pairs in inputs for pair in pairs], running[0].n_top)
        for search, pairs in zip(running, inputs, strict=True):
            search.advance(rows[: len(pairs)])
            rows = rows[len(pairs) :]

    def _rows(
        self, inputs: list[tuple[EngineSequence, NDArray[np.int32]]], n_top: int | None
    ) -> list[_Row]:
        sequences, ids = [sequence for sequence, _ in inputs], [ids for _, ids in inputs]
        if n_top is None:
            return [_Row(x) for x in self._engine.log_probs(sequences, ids)]
        tops = self._engine.top_log_probs(sequences, ids, n_top)
        # A small vocabulary may have fewer than n_top ids; the rest are -1.
        tops_by_row = [top[top["id"] >= 0] for top in tops]
        return [_Row(top["log_prob"], top["id"]) for top in tops_by_row]
