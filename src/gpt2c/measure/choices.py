"""The probability of each of several continuations of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import EngineModel, Measures
from gpt2c.errors import ContextError, OptionError, OptionTypeError
from gpt2c.generate.encoder import Encoder
from gpt2c.generate.prompts import Ids, Prompt, is_lazy, is_single
from gpt2c.measure.scoring import EncodedText, ScoringOptions, score_texts

# How many ids of an iterator's prompts and choices are scored together.
_MAX_IDS: Final = 1 << 14
# How many sets of ids that end a word are measured in one call: each takes 4 bytes per id.
_MAX_SETS: Final = 32


@dataclass(frozen=True, eq=False)
class Choices:
    """How likely each choice is after a prompt.

    choices
        The n choices, texts or lists of ids.
    logprobs
        float64 [n], in nats: the log-probability of each choice, given the prompt.
    n_tokens
        int64 [n]: the number of tokens of each choice.
    neutral_logprobs
        float64 [n]: the same as logprobs, given the neutral prompt; None without one.
    """

    choices: tuple[Prompt, ...]
    logprobs: NDArray[np.float64]
    n_tokens: NDArray[np.int64]
    neutral_logprobs: NDArray[np.float64] | None = None

    @property
    def scores(self) -> NDArray[np.float64]:
        """float64 [n]: logprobs, or logprobs - neutral_logprobs with a neutral prompt."""
        if self.neutral_logprobs is None:
            return self.logprobs
        return self.logprobs - self.neutral_logprobs

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """float64 [n]: the softmax of the scores, which is the probability among the choices."""
        weights: NDArray[np.float64] = np.exp(self.scores - self.scores.max())
        weights /= weights.sum()
        return weights

    @property
    def best_index(self) -> int:
        """The index of the choice with the highest score; the first one if several have it."""
        return int(self.scores.argmax())

    @property
    def best(self) -> Prompt:
        """The choice with the highest score."""
        return self.choices[self.best_index]

    def __repr__(self) -> str:
        """Each choice with its probability."""
        pairs = zip(self.choices, self.probabilities, strict=True)
        return f"<gpt2c.Choices: {', '.join(f'{show(c)} {p:.3g}' for c, p in pairs)}>"


class ChoiceOptions(NamedTuple):
    """How to score choices; see GPT2.choose."""

    neutral: Prompt | None = None
    ends: bool = False
    bos: bool = False
    special_tokens: bool = False


class _Question(NamedTuple):
    """What to score for a prompt: the ids of each choice after the same context."""

    context: NDArray[np.int32]
    continuations: list[NDArray[np.int32]]
    # For each choice None, or the ids that may not follow it where the end of its word is scored.
    not_ends: list[frozenset[int] | None]


class Chooser:
    """Scores the choices of one call of GPT2.choose."""

    def __init__(self, engine: EngineModel, encoder: Encoder, options: ChoiceOptions) -> None:
        """Raises OptionError or OptionTypeError for wrong options."""
        self._engine, self._encoder = engine, encoder
        self._special = flag("special_tokens", options.special_tokens)
        self._ends = flag("ends", options.ends)
        self._start = encoder.start_id("bos=True") if flag("bos", options.bos) else None
        self._neutral = options.neutral
        if self._neutral is not None and not is_single(self._neutral):
            raise OptionTypeError(f"neutral is {show(self._neutral)}; it must be a text or ids")

    def choose(self, prompts: Any, choices: Any) -> Any:
        """Return the Choices of a prompt, those of a list, or an iterator; see GPT2.choose."""
        if is_lazy(prompts):
            return self._choose_lazily(prompts, _checked_choices(choices, "choices"))
        if is_single(prompts):
            return self._choose([(0, prompts, _checked_choices(choices, "choices"))])[0]
        given = list(prompts)
        lists = _lists_of_choices(choices, len(given))
        return self._choose(list(zip(range(len(given)), given, lists, strict=True)))

    def _choose_lazily(self, prompts: Iterable[Any], choices: list[Prompt]) -> Iterator[Choices]:
        waiting: list[tuple[int, Any, list[Prompt]]] = []
        n_ids = 0
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, Sized):
                raise OptionTypeError(f"prompt {index} is {show(prompt)}; it must be a text or ids")
            waiting.append((index, prompt, choices))
            n_ids += (len(prompt) // (4 if isinstance(prompt, str) else 1) + 1) * len(choices)
            if n_ids > _MAX_IDS:
                yield from self._choose(waiting)
                waiting, n_ids = [], 0
        yield from self._choose(waiting)

    def _choose(self, cases: list[tuple[int, Any, list[Prompt]]]) -> list[Choices]:
        """Return the Choices of each prompt; a case has its index, the prompt and its choices."""
        questions = [
            self._question(prompt, choices, f"prompt {index}") for index, prompt, choices in cases
        ]
        # Many prompts have the same choices: score these once after the neutral prompt.
        neutral: dict[tuple[object, ...], int] = {}
        if self._neutral is not None:
            for _, _, choices in cases:
                if _key(choices) not in neutral:
                    neutral[_key(choices)] = len(questions)
                    questions.append(self._question(self._neutral, choices, "neutral"))
        with self._engine.held():
            logprobs = self._score(questions)
        return [
            Choices(
                tuple(choices),
                logprobs[i],
                np.array([len(ids) for ids in questions[i].continuations]),
                logprobs[neutral[_key(choices)]] if neutral else None,
            )
            for i, (_, _, choices) in enumerate(cases)
        ]

    # ---- from texts to ids ----

    def _question(self, prompt: Any, choices: list[Prompt], where: str) -> _Question:
        """Encode a prompt and its choices. Raises OptionError, ContextError or TokenizerError."""
        alone = self._encode(prompt, where)
        joined = []
        for j, choice in enumerate(choices):
            if isinstance(choice, str) != isinstance(prompt, str):
                raise OptionTypeError(
                    f"{where} is {show(prompt)} and choice {j} is {show(choice)}; both must be "
                    "texts, or both ids"
                )
            if isinstance(choice, str):
                joined.append(self._encode(prompt + choice, f"{where} with choice {j}"))
            else:
                joined.append(np.concatenate([alone, self._encode(choice, f"choice {j}")]))
        # A choice may change the last tokens of the prompt: then all choices are scored from there.
        n_context = min(_n_common(alone, ids) for ids in joined)
        start = np.array([] if self._start is None else [self._start], dtype=np.int32)
        context = np.concatenate([start, alone[:n_context]])
        continuations = [ids[n_context:] for ids in joined]
        self._check_lengths(context, continuations, where)
        return _Question(context, continuations, self._not_ends(choices, continuations))

    def _encode(self, text: Any, where: str) -> NDArray[np.int32]:
        """Return the ids without the tokens that the tokenizer puts after every text."""
        ids = self._encoder.encode_for_scoring(text, where, self._special, self._start)
        n_suffix = len(self._encoder.tokenizer.suffix_ids) if isinstance(text, str) else 0
        return ids[: len(ids) - n_suffix]

    def _check_lengths(
        self, context: NDArray[np.int32], continuations: list[NDArray[np.int32]], where: str
    ) -> None:
        if len(context) == 0:
            raise OptionError(
                f"{where}: nothing precedes the first token of the choices; pass bos=True"
            )
        n_positions = self._engine.n_positions
        seen: dict[bytes, int] = {}
        for j, ids in enumerate(continuations):
            # One position is for the token after the choice.
            if (n := len(context) + len(ids) + 1) > n_positions:
                raise ContextError(
                    f"{where} with choice {j} and the token after it has {n} tokens, more than "
                    f"the context's {n_positions} positions; shorten the prompt"
                )
            if (other := seen.setdefault(ids.tobytes(), j)) != j:
                raise OptionError(f"{where}: choices {other} and {j} are the same tokens")

    def _not_ends(
        self, choices: list[Prompt], continuations: list[NDArray[np.int32]]
    ) -> list[frozenset[int] | None]:
        """Return _Question.not_ends: where a choice ends, the next tokens of longer choices."""
        found: list[frozenset[int] | None] = []
        for j, ids in enumerate(continuations):
            next_ids, is_prefix = set(), False
            for k, longer in enumerate(continuations):
                if k == j:
                    continue
                if len(longer) > len(ids) and np.array_equal(longer[: len(ids)], ids):
                    next_ids.add(int(longer[len(ids)]))
                a, b = choices[j], choices[k]
                is_prefix |= isinstance(a, str) and isinstance(b, str) and b.startswith(a)
            found.append(frozenset(next_ids) if next_ids or is_prefix or self._ends else None)
        return found

    # ---- scores ----

    def _score(self, questions: list[_Question]) -> list[NDArray[np.float64]]:
        """Return each question's log-probabilities, float64 [n_choices]."""
        sets = list(dict.fromkeys(s for q in questions for s in q.not_ends if s is not None))
        results = [np.empty(len(question.continuations)) for question in questions]
        for first in range(0, max(len(sets), 1), _MAX_SETS):
            part = {each: i for i, each in enumerate(sets[first : first + _MAX_SETS])}
            places, texts = [], []
            for q, question in enumerate(questions):
                for j, ids in enumerate(question.continuations):
                    ending = question.not_ends[j]
                    if ending in part or (ending is None and first == 0):
                        # The measures of a position need a token there; its own score is not used.
                        after = [] if ending is None else [0]
                        text = np.concatenate([question.context, ids, after]).astype(np.int32)
                        places.append((q, j, ending))
                        texts.append(EncodedText(text, len(question.context)))
            measures = Measures(sets=self._sets(list(part)))
            options = ScoringOptions(self._engine.n_positions, 0, measures)
            scores = score_texts(self._engine, texts, options, looks_ahead=True)
            for (q, j, ending), score in zip(places, scores, strict=True):
                n = len(questions[q].continuations[j])
                results[q][j] = score.logprobs[:n].sum(dtype=np.float64)
                if ending is not None:
                    results[q][j] += float(score.set_logprobs[n, part[ending]])
        return results

    def _sets(self, not_ends: list[frozenset[int]]) -> NDArray[np.float32]:
        """Return for each set the ids that end a word and are not in it; see Measures.sets."""
        added = np.full((len(not_ends), self._engine.n_vocab), -np.inf, dtype=np.float32)
        for row, excluded in zip(added, not_ends, strict=True):
            row[self._encoder.word_ends()] = 0
            row[list(excluded)] = -np.inf
        return added


def _key(choices: Sequence[Prompt]) -> tuple[object, ...]:
    return tuple(c if isinstance(c, str) else tuple(np.asarray(c).tolist()) for c in choices)


def _n_common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return how many of the first ids are equal."""
    n = min(len(a), len(b))
    differences = np.flatnonzero(a[:n] != b[:n])
    return int(differences[0]) if len(differences) else n


def _checked_choices(choices: Any, name: str) -> list[Prompt]:
    """Return the choices of one prompt. Raises OptionError or OptionTypeError."""
    if isinstance(choices, str | Mapping) or not isinstance(choices, Sequence):
        raise OptionTypeError(f"{name} is {show(choices)}; it must be a list of texts or of ids")
    found: list[Prompt] = []
    for j, choice in enumerate(choices):
        if not isinstance(choice, str | list | tuple | np.ndarray):
            raise OptionTypeError(f"{name}[{j}] is {show(choice)}; it must be a text or ids")
        if len(choice) == 0:
            raise OptionError(f"{name}[{j}] is empty; it must have at least one token")
        if not is_single(choice):
            raise OptionTypeError(f"{name}[{j}] is {show(choice)}; it must be a text or ids")
        found.append(choice)
    if not found:
        raise OptionError(f"{name} is empty; give at least one choice")
    return found


def _lists_of_choices(choices: Any, n_prompts: int) -> list[list[Prompt]]:
    """Return the choices of each prompt: one list for all prompts, or a list for each."""
    is_each = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not is_each or not len(choices) or any(map(_is_choice, choices)):
        return [_checked_choices(choices, "choices")] * n_prompts
    if len(choices) != n_prompts:
        raise OptionError(
            f"there are {n_prompts} prompts and {len(choices)} lists of choices; give one list "
            "for all prompts, or one for each"
        )
    return [_checked_choices(each, f"choices[{i}]") for i, each in enumerate(choices)]


def _is_choice(item: Ids | str | Sequence[Prompt]) -> bool:
    return not isinstance(item, list | tuple) or len(item) == 0 or is_single(item)
