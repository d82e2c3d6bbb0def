"""Classify texts, or their tokens, with the head of a fine-tuned classifier."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import ContextError, NumericalError, OptionError
from gpt2c.generate.prompts import is_lazy, is_single
from gpt2c.measure.hidden import hidden_states
from gpt2c.measure.texts import TextsToScore


class Head(Protocol):
    """A linear layer that turns hidden states into logits of labels."""

    @property
    def kind(self) -> str:
        """ "sequence": a text has logits; "token": each of its tokens has."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """The matrix [n_labels, n_embd]."""

    @property
    def bias(self) -> NDArray[np.float32] | None:
        """The bias [n_labels]."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names."""

    @property
    def problem_type(self) -> str | None:
        """transformers' name of what the labels are; None if config.json does not say."""


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier says about a text.

    labels
        The names of all labels.
    logits
        float32 [n_labels], equal to transformers' for this text alone.
    probabilities
        float64 [n_labels]: the softmax of the logits; their sigmoids if several labels may hold at
        once (``problem_type`` "multi_label_classification") or if there is only one label; None for
        a regression, whose results are the logits. This is what transformers' pipeline does.
    chosen
        The labels that hold: the one with the largest logit, or each with a probability of at least
        0.5 if several may hold at once; () for a regression.
    """

    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64] | None
    chosen: tuple[str, ...]

    @property
    def label(self) -> str | None:
        """The label with the largest logit; None for a regression."""
        return None if self.probabilities is None else self.labels[int(self.logits.argmax())]


@dataclass(frozen=True, eq=False)
class TokenClassification:
    """What a classifier says about each token of a text.

    ids
        The tokens, int32 [n_tokens].
    labels
        The names of all labels.
    logits, probabilities
        float32 and float64 [n_tokens, n_labels]: of each token, and their softmax.
    chosen
        The label of each token with the largest logit.
    """

    ids: NDArray[np.int32]
    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    chosen: tuple[str, ...]


class Classifier:
    """Classifies the texts of a call of GPT2.classify."""

    def __init__(
        self,
        engine: EngineModel,
        encoder: TextsToScore,
        head: Head,
        pad_token_id: int | None,
        truncation: bool,
    ) -> None:
        """Raises OptionTypeError unless `truncation` is a bool."""
        self._engine, self._encoder, self._head = engine, encoder, head
        self._pad_token_id = pad_token_id
        self._truncation = flag("truncation", truncation)

    def classify(self, texts: Any) -> Any:
        """Classify a text, or each of a list or an iterator; see GPT2.classify."""
        if is_lazy(texts):
            return self._classified(self._ids(text, i) for i, text in enumerate(texts))
        single = is_single(texts)
        ids = [self._ids(text, i) for i, text in enumerate([texts] if single else texts)]
        with self._engine.held():
            found = list(self._classified(ids))
        return found[0] if single else found

    def _ids(self, text: Any, index: int) -> NDArray[np.int32]:
        ids = self._encoder.encode(text, index).ids
        n_positions = self._engine.n_positions
        if len(ids) == 0:
            raise OptionError(f"text {index} is empty; pass bos=True, or leave the text out")
        if len(ids) > n_positions and not self._truncation:
            raise ContextError(
                f"text {index} has {len(ids)} tokens, more than the context's {n_positions} "
                "positions; shorten it, or pass truncation=True to classify its beginning"
            )
        return ids[:n_positions]

    def _classified(
        self, texts: Iterable[NDArray[np.int32]]
    ) -> Iterator[Classification | TokenClassification]:
        waiting: deque[NDArray[np.int32]] = deque()

        def sequences() -> Iterator[NDArray[np.int32]]:
            for ids in texts:
                waiting.append(ids)
                yield ids

        states = hidden_states(self._engine, sequences(), self._engine.n_layer)
        for index, rows in enumerate(states):
            ids = waiting.popleft()
            if self._head.kind == "token":
                yield self._of_tokens(ids, self._logits(rows, index))
            else:
                place = self._place(ids)
                yield self._of_text(self._logits(rows[place : place + 1], index)[0])

    def _place(self, ids: NDArray[np.int32]) -> int:
        """Return the place of the token whose hidden state is the text's, as in transformers.

        It is the last token that is not the padding token, or the first token if all are.
        """
        if self._pad_token_id is None:
            return len(ids) - 1
        others = np.flatnonzero(ids != self._pad_token_id)
        return int(others[-1]) if len(others) else 0

    def _logits(self, rows: NDArray[Any], index: int) -> NDArray[np.float32]:
        """Return the logits [n_rows, n_labels] of hidden states, computed in float64.

        Each logit is a sum of its own, not a part of a product of matrices, so that its bits do not
        depend on the other rows.
        """
        weight = self._head.weight.astype(np.float64)
        logits = np.array([(weight * row).sum(axis=1) for row in rows.astype(np.float64)])
        if self._head.bias is not None:
            logits += self._head.bias
        if np.isnan(logits).any():
            raise NumericalError(f"text {index}: a logit of the classifier is NaN")
        return logits.astype(np.float32)

    def _of_text(self, logits: NDArray[np.float32]) -> Classification:
        labels, problem = self._head.labels, self._head.problem_type
        if problem == "regression":
            return Classification(labels, logits, None, ())
        is_multiple = problem == "multi_label_classification"
        probabilities = (_sigmoid if is_multiple or len(labels) == 1 else _softmax)(logits)
        best = (labels[int(logits.argmax())],)
        above = tuple(
            label for label, p in zip(labels, probabilities, strict=True) if p >= 0.5
        )  # fmt: skip
        return Classification(labels, logits, probabilities, above if is_multiple else best)

    def _of_tokens(
        self, ids: NDArray[np.int32], logits: NDArray[np.float32]
    ) -> TokenClassification:
        labels = self._head.labels
        chosen = tuple(labels[best] for best in logits.argmax(axis=1))
        return TokenClassification(ids, labels, logits, _softmax(logits), chosen)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax over the last axis."""
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the result 0
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))
