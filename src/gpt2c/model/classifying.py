"""The part of GPT2 that classifies texts, for models with the head of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, overload

from gpt2c.errors import OptionError
from gpt2c.forks import IMPORTING
from gpt2c.generate.prompts import IdArray, Ids, Prompt
from gpt2c.model.generating import GeneratingModel

if TYPE_CHECKING:
    from gpt2c.measure.classifying import Classification, TokenClassification

    Classified: TypeAlias = Classification | TokenClassification


class ClassifyOptions(TypedDict, total=False):
    """Keyword arguments of GPT2.classify."""

    bos: bool
    special_tokens: bool
    truncation: bool


class ClassifyingModel(GeneratingModel):
    """The part of GPT2 that classifies texts."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels; () for other models."""
        return () if self._classifier is None else self._classifier.labels

    @property
    def classifies_tokens(self) -> bool:
        """Whether the model classifies each token of a text, not the text."""
        return self._classifier is not None and self._classifier.kind == "token"

    @overload
    def classify(
        self, texts: str | Sequence[int] | IdArray, **options: Unpack[ClassifyOptions]
    ) -> Classified: ...
    @overload
    def classify(
        self,
        texts: list[str] | tuple[str, ...] | Sequence[Ids],
        **options: Unpack[ClassifyOptions],
    ) -> list[Classified]: ...
    @overload
    def classify(
        self, texts: Iterator[Prompt], **options: Unpack[ClassifyOptions]
    ) -> Iterator[Classified]: ...

    def classify(
        self,
        texts: Any,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        truncation: bool = False,
    ) -> Any:
        """Classify a text or ids, or each of a list, with the head of a fine-tuned classifier.

        >>> model = GPT2.from_pretrained("folder of a GPT2ForSequenceClassification")
        >>> model.classify("What a film!").label

        Returns a Classification for a text; or, if the model is a GPT2ForTokenClassification, a
        TokenClassification, which has a label for each token. The result is a list for a list, and
        for an iterator of texts an iterator, which reads them lazily. The logits equal
        transformers' for each text alone; texts of any lengths share passes, without padding, which
        changes no bit.

        bos
            Put the BOS token before each text.
        special_tokens
            Whether the name of a special token in a text becomes its id, as transformers' tokenizer
            does; by default it is plain characters, as for :meth:`score`.
        truncation
            Classify the first n_positions tokens of a longer text, which is an error by default.

        Raises OptionError if the model has no such head; OptionError, OptionTypeError or
        TokenizerError for wrong texts; ContextError; NumericalError; CacheMemoryError; and
        ClosedError.
        """
        with IMPORTING:
            from gpt2c.measure.classifying import Classifier
            from gpt2c.measure.texts import TextsToScore

        self._engine.check_open()
        if self._classifier is None:
            raise OptionError(
                "classify: this model has no head of a classifier (score.weight, or "
                "classifier.weight and classifier.bias); load a GPT2ForSequenceClassification or "
                "GPT2ForTokenClassification, or call choose to compare the probabilities of "
                "continuations"
            )
        encoder = TextsToScore(self._encoder, bos, special_tokens)
        pad_token_id = self.config.pad_token_id
        classifier = Classifier(self._engine, encoder, self._classifier, pad_token_id, truncation)
        return classifier.classify(texts)
