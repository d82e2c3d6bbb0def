"""GPT2: the class that loads a model, generates and scores text with it, and looks inside it.

It is built in steps, in a file each: loading (loaded.py), generating (generating.py), classifying
(classifying.py) and the other calls that read given texts (this file).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.errors import ContextError, OptionTypeError
from gpt2c.forks import IMPORTING
from gpt2c.generate.prompts import IdArray, Ids, Prompt, is_lazy
from gpt2c.model.classifying import ClassifyingModel
from gpt2c.session import Session

if TYPE_CHECKING:
    from gpt2c.look.probing import Edit, Ints, Names
    from gpt2c.measure.choices import Choices
    from gpt2c.measure.embeddings import Pooling
    from gpt2c.measure.scores import Score


class PerplexityOptions(TypedDict, total=False):
    """Keyword arguments of GPT2.perplexity; GPT2.score describes them."""

    bos: bool
    special_tokens: bool
    stride: int | None


class ScoreOptions(PerplexityOptions, total=False):
    """Keyword arguments of GPT2.score."""

    top_logprobs: int
    second_moments: bool
    renyi_orders: Sequence[float]
    id_sets: Sequence[Iterable[int]]
    other: GPT2 | None


class EmbedOptions(TypedDict, total=False):
    """Keyword arguments of GPT2.embed."""

    layer: int
    pooling: Pooling
    bos: bool
    special_tokens: bool
    stride: int | None


class ChooseOptions(TypedDict, total=False):
    """Keyword arguments of GPT2.choose."""

    neutral: Prompt | None
    ends: bool
    bos: bool
    special_tokens: bool


class GPT2(ClassifyingModel):
    """A GPT-2 model on the CPU.

    >>> model = GPT2.from_pretrained()  # the embedded model; or pass a folder or a hub name
    >>> model.generate("Once upon a time", max_new_tokens=40)

    A model's weights never change. Any number of threads and asyncio tasks may use it at the same
    time, and share its forward passes. ``close()``, or the end of a ``with`` block, frees the
    memory once running calls have ended.
    """

    # ---- scores ----

    @overload
    def score(
        self,
        texts: str | Sequence[int] | IdArray,
        continuations: str | Sequence[int] | IdArray | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Score: ...
    @overload
    def score(
        self,
        texts: list[str] | tuple[str, ...] | Sequence[Ids],
        continuations: Prompt | list[str] | tuple[str, ...] | Sequence[Ids] | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        texts: str | Sequence[int] | IdArray,
        continuations: list[str] | tuple[str, ...] | Sequence[Ids],
        **options: Unpack[ScoreOptions],
    ) -> list[Score]: ...
    @overload
    def score(
        self, texts: Iterator[Prompt], **options: Unpack[ScoreOptions]
    ) -> Iterator[Score]: ...

    def score(
        self,
        texts: Any,
        continuations: Any = None,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
        top_logprobs: int = 0,
        second_moments: bool = False,
        renyi_orders: Sequence[float] = (),
        id_sets: Sequence[Iterable[int]] = (),
        other: GPT2 | None = None,
    ) -> Any:
        """Score a text or ids, or each of a list; return a :class:`Score` for each.

        A score has each token's log-probability, rank and entropy. Short texts run together, and
        texts of a list that begin alike compute the beginning once; neither changes the bits of a
        score. For an iterator of texts the result is an iterator, which reads the texts lazily and
        in bounded memory. A text is encoded like a prompt, except for the names of special tokens.

        continuations
            A text or ids, or a list of them. Then `texts` are contexts: only the continuations are
            scored, each given the context before it. Both are lists of the same length, or one of
            them is a single item that goes with each item of the other. A context and its
            continuation are encoded separately, so the space between words should be at the
            beginning of the continuation, where GPT-2's tokens have it.
        bos
            Score the first token too, given the BOS token before it. A BOS token that the tokenizer
            itself puts before every text is then left out of the text's ids.
        special_tokens
            Whether the name of a special token in a text, such as "<|endoftext|>", is encoded as
            its id, as in a prompt. By default it is encoded as plain characters.
        stride
            A text longer than the context is scored in windows of n_positions tokens that begin
            `stride` tokens apart (default: half of the context). Each token is scored in the first
            window that holds it, given the tokens before it in that window.
        top_logprobs
            A number n from 0 to 128. Return the n most likely ids at each token's position too.
        second_moments
            Return the second moment of log p at each position too: the sum of p (log p)^2 over the
            vocabulary. Minus the square of the entropy, it is the variance of log p.
        renyi_orders
            Orders above 0 other than 1, such as 0.5, 2 or math.inf. Return the Renyi entropies too:
            log(sum of p^order) / (1 - order), and for infinity -log of the largest p.
        id_sets
            Sets of ids. Return the log of each set's probability too.
        other
            Another model q, of the same vocabulary and backend. Return the cross-entropy too: minus
            the sum of p log q, which is what q's surprisal would be on average; and log q of each
            token.

        Raises OptionError, OptionTypeError or TokenizerError; NumericalError if the weights give a
        NaN logit; CacheMemoryError; and ClosedError.
        """
        if other is not None and not isinstance(other, GPT2):
            raise OptionTypeError(f"other is {show(other)}; it must be a GPT2 model")
        with IMPORTING:  # lazily: generating does not need them
            from gpt2c.measure.options import check_scoring
            from gpt2c.measure.texts import TextsToScore, score_given

        self._engine.check_open()
        options = check_scoring(
            self._engine, stride=stride, top_logprobs=top_logprobs, second_moments=second_moments,
            renyi_orders=renyi_orders, id_sets=id_sets,
            other=None if other is None else other._engine,
        )  # fmt: skip
        encoder = TextsToScore(self._encoder, bos, special_tokens)
        return score_given(self._engine, encoder, texts, continuations, options)

    @overload
    def perplexity(
        self, texts: str | Sequence[int] | IdArray, **options: Unpack[PerplexityOptions]
    ) -> float: ...
    @overload
    def perplexity(
        self,
        texts: list[str] | tuple[str, ...] | Sequence[Ids],
        **options: Unpack[PerplexityOptions],
    ) -> list[float]: ...

    def perplexity(
        self,
        texts: Any,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
    ) -> Any:
        """Return the perplexity of a text or ids, or of each of a list.

        The perplexity is exp of the mean negative log-probability of the tokens. A text longer than
        the context is scored in windows, as transformers' documentation recommends; the options are
        those of :meth:`score`.

        Raises the same errors as :meth:`score`.
        """
        if is_lazy(texts):
            raise OptionTypeError(
                "perplexity takes texts or ids, not an iterator; pass a list, or use score"
            )
        scores = self.score(texts, bos=bos, special_tokens=special_tokens, stride=stride)
        return [s.perplexity for s in scores] if isinstance(scores, list) else scores.perplexity

    # ---- choices ----

    @overload
    def choose(
        self,
        prompts: str | Sequence[int] | IdArray,
        choices: Sequence[str] | Sequence[Ids],
        **options: Unpack[ChooseOptions],
    ) -> Choices: ...
    @overload
    def choose(
        self,
        prompts: list[str] | tuple[str, ...],
        choices: Sequence[str] | Sequence[Sequence[str]],
        **options: Unpack[ChooseOptions],
    ) -> list[Choices]: ...
    @overload
    def choose(
        self,
        prompts: Sequence[Ids],
        choices: Sequence[Ids] | Sequence[Sequence[Ids]],
        **options: Unpack[ChooseOptions],
    ) -> list[Choices]: ...
    @overload
    def choose(
        self,
        prompts: Iterator[Prompt],
        choices: Sequence[str] | Sequence[Ids],
        **options: Unpack[ChooseOptions],
    ) -> Iterator[Choices]: ...

    def choose(
        self,
        prompts: Any,
        choices: Any,
        *,
        neutral: Prompt | None = None,
        ends: bool = False,
        bos: bool = False,
        special_tokens: bool = False,
    ) -> Any:
        """Score several continuations of a prompt, or of each of a list; return :class:`Choices`.

        >>> model.choose("The sky is", [" blue", " green"]).best

        A choice has the tokens that it has in prompt + choice, encoded together, so the space
        between them may be in either. Where a choice changes the last tokens of its prompt (as "The
        sky is " + "blue" does), the choices are scored from these tokens on, given the tokens
        before them. Where a choice begins another one, such as "New York" and "New York City", its
        probability includes that of its end: that the next token does not continue its word, and
        does not continue to the longer choice. So choices exclude each other, and their
        probabilities sum to at most 1. Each prompt is computed once.

        choices
            Texts, or lists of ids if the prompts are ids; for a list of prompts, also a list with
            a list of choices for each. Prompts of an iterator are read lazily; they share choices.
        neutral
            A prompt without content, such as "Answer:", to correct for how likely the choices are
            by themselves: scores are log p(choice | prompt) - log p(choice | neutral), the PMI_DC
            of Holtzman et al. 2021 ("Surface Form Competition").
        ends
            Include the end of each choice, not only of those that begin another one.
        bos, special_tokens
            As for :meth:`score`. An empty prompt needs bos=True.

        Raises OptionError, OptionTypeError or TokenizerError; ContextError if a prompt and a choice
        do not fit in the context; NumericalError; CacheMemoryError; and ClosedError.
        """
        with IMPORTING:
            from gpt2c.measure.choices import ChoiceOptions, Chooser

        self._engine.check_open()
        options = ChoiceOptions(neutral, ends, bos, special_tokens)
        return Chooser(self._engine, self._encoder, options).choose(prompts, choices)

    # ---- embeddings ----

    @overload
    def embed(
        self,
        texts: str | Sequence[int] | IdArray | list[str] | tuple[str, ...] | Sequence[Ids],
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]: ...
    @overload
    def embed(
        self, texts: Iterator[Prompt], **options: Unpack[EmbedOptions]
    ) -> Iterator[NDArray[np.float32]]: ...

    def embed(
        self,
        texts: Any,
        *,
        layer: int = -1,
        pooling: Pooling = "mean",
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
    ) -> Any:
        """Turn a text or ids into a vector, or each of a list: its tokens' hidden states, pooled.

        Returns float32 [n_embd] for one text, [n_texts, n_embd] for a list, and for an iterator of
        texts an iterator of vectors, which reads the texts lazily and in bounded memory. Texts of
        any lengths share passes, which never changes a bit of a vector.

        layer
            Which hidden states, counted as in transformers' hidden_states: 0 is the embeddings, i
            the residual stream after i blocks, and n_layer, or -1, the output of the last layer
            norm, ln_f, after all blocks. Only the blocks that are needed run.
        pooling
            "mean", the mean over the tokens (in float64); "last", the last token's; or a function
            that gets the hidden states of a text, float32 [n_tokens, n_embd], and returns a vector
            of a fixed size.
        bos
            Put the BOS token before each text. It is pooled like any token. Without it an empty
            text is an error.
        special_tokens
            Whether the name of a special token in a text becomes its id, as for :meth:`score`.
        stride
            Embed a text longer than the context in windows of n_positions tokens that begin
            `stride` tokens apart, and pool all tokens; each has the hidden state of the first
            window that holds it. By default such a text is an error.

        Raises OptionError, OptionTypeError or TokenizerError; ContextError; NumericalError if a
        hidden state is NaN; CacheMemoryError; and ClosedError.
        """
        with IMPORTING:
            from gpt2c.measure.embeddings import check_embedding, embed_given
            from gpt2c.measure.texts import TextsToScore

        self._engine.check_open()
        options = check_embedding(self._engine, layer, pooling, stride)
        encoder = TextsToScore(self._encoder, bos, special_tokens)
        return embed_given(self._engine, encoder, texts, options)

    # ---- logits ----

    def logits(self, ids: Prompt) -> NDArray[np.float32]:
        """Return float32 [n_tokens, n_vocab]: the logits after each token of ids, or of a text.

        Raises ContextError if there are more tokens than positions; OptionError, OptionTypeError or
        TokenizerError for wrong ids or texts; CacheMemoryError; and ClosedError.
        """
        checked = self._encoder.encode(ids, "logits")
        if len(checked) > self.config.n_positions:
            raise ContextError(
                f"logits: {len(checked)} tokens are more than the context's "
                f"{self.config.n_positions} positions"
            )
        return self.session().feed(checked, all=True)

    def forward(
        self,
        ids: Prompt,
        *,
        capture: str | Names = ("logits",),
        edit: Mapping[str, Edit] | None = None,
        positions: int | Ints | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run ids or a text through the model; capture the activations, and edit them on the way.

        >>> seen = model.forward("Once upon a time", capture=["resid_post", "h.0.probs", "logits"])
        >>> seen["resid_post"].shape, seen["h.0.probs"].shape  # n_layer, n, n_embd; n_head, n, n
        >>> ablated = model.forward(ids, edit={"h.3.attn_out": lambda x: 0 * x})["logits"]

        capture
            The names of the hook points (activations) to return. The model's points are embed, ln_f
            and logits; each block's are resid_pre, ln_1, q, k, v, scores, probs, attn_out,
            resid_mid, ln_2, mlp_pre, mlp_act, mlp_out and resid_post. "h.3.probs" is the point in
            block 3; "probs" is the point in all blocks, in one array. Points that are not named
            take no memory.
        edit
            A dict from the same names to edits. An edit is an array of new values, or a function
            that gets a point's values and returns new ones. The new values must broadcast to the
            shape of the old ones, for all tokens. A name without a block's number edits every
            block. A function is called once per block, and may keep the array that it gets. Points
            are captured after they are edited. A token never attends to later tokens, whatever
            scores an edit returns.
        positions
            The tokens whose values are captured, ascending; negative numbers count from the end.
            The default is all. Logits are computed only for these tokens.

        Returns a dict keyed by the names in capture. The arrays are float32 [n, n_embd], n being
        the number of captured tokens, with these exceptions: mlp_pre and mlp_act are [n, n_inner];
        q, k and v [n_head, n, head_dim]; scores (-inf where a token does not attend) and probs
        [n_head, n, n_tokens]; logits [n, n_vocab]. An array of all blocks has n_layer as its first
        dimension. Logits have the bits of :meth:`logits`; values that no edit affects keep
        their bits.

        Raises OptionError or OptionTypeError naming what is wrong with an option; ContextError;
        CacheMemoryError; and whatever a function of edit raises. If such a function forks, the call
        raises ForkError in the child, unless the call uses one thread.
        """
        with IMPORTING:
            from gpt2c.look.probing import forward  # lazily: generating does not need it

        checked = self._encoder.encode(ids, "forward")
        return forward(self._engine, self.config, checked, capture, edit, positions)

    def session(self) -> Session:
        """Return an empty session, which the caller feeds step by step. Raises ClosedError."""
        return Session(self._engine)
