"""The calls that continue texts."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, overload

from gpt2c.checks.options import shows_options
from gpt2c.generate.completing import Completer, check_single
from gpt2c.generate.generation_config import Lengths, with_usable_defaults
from gpt2c.generate.options import (
    DEFAULTS,
    CompleteOptions,
    Completion,
    GenerateOptions,
    Options,
    StreamOptions,
    check_options,
)
from gpt2c.generate.prompts import IdArray, Ids, is_lazy, is_single
from gpt2c.generate.sampling import Vocabulary
from gpt2c.generate.streaming import TextStream
from gpt2c.model.loaded import LoadedModel
from gpt2c.text.tokenizer import MissingTokenizer

_log = logging.getLogger(__name__)


class GeneratingModel(LoadedModel):
    """The part of GPT2 that continues texts."""

    _warned_of_head = False  # that the model is a classifier

    @overload
    def generate(self, prompts: str, **options: Unpack[GenerateOptions]) -> str: ...
    @overload
    def generate(
        self, prompts: Sequence[int] | IdArray, **options: Unpack[GenerateOptions]
    ) -> list[int]: ...
    @overload
    def generate(
        self, prompts: list[str] | tuple[str, ...], **options: Unpack[GenerateOptions]
    ) -> list[str]: ...
    @overload
    def generate(
        self, prompts: Sequence[Ids], **options: Unpack[GenerateOptions]
    ) -> list[list[int]]: ...
    @overload
    def generate(
        self, prompts: Iterator[str], **options: Unpack[GenerateOptions]
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self, prompts: Iterator[Ids], **options: Unpack[GenerateOptions]
    ) -> Iterator[list[int]]: ...

    @shows_options(GenerateOptions, DEFAULTS)
    def generate(self, prompts: Any, **options: Any) -> Any:
        """Continue a prompt, or each prompt of a list; return only the new text, or the new ids.

        :meth:`complete` describes prompts, options and errors. The result is a text for a text, ids
        for ids, a list for a list of prompts, and an iterator for an iterator of prompts. With
        num_return_sequences, each prompt's result is a list.
        """
        checked = self._options(options, GenerateOptions, "generate")

        def new(completion: Completion | list[Completion]) -> Any:
            return [c.new for c in completion] if isinstance(completion, list) else completion.new

        if is_lazy(prompts):
            return (new(done) for done in self._completer(checked).complete_lazily(iter(prompts)))
        single = is_single(prompts)  # checked first: the caller may change the list meanwhile
        completions = self._completer(checked).complete_list(prompts)
        return new(completions[0]) if single else list(map(new, completions))

    @overload
    def complete(self, prompts: str, **options: Unpack[CompleteOptions]) -> Completion: ...
    @overload
    def complete(
        self, prompts: Sequence[int] | IdArray, **options: Unpack[CompleteOptions]
    ) -> Completion: ...
    @overload
    def complete(
        self, prompts: list[str] | tuple[str, ...], **options: Unpack[CompleteOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompts: Sequence[Ids], **options: Unpack[CompleteOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompts: Iterator[str], **options: Unpack[CompleteOptions]
    ) -> Iterator[Completion]: ...
    @overload
    def complete(
        self, prompts: Iterator[Ids], **options: Unpack[CompleteOptions]
    ) -> Iterator[Completion]: ...

    @shows_options(CompleteOptions, DEFAULTS)
    def complete(self, prompts: Any, **options: Any) -> Any:
        """Continue a prompt, or each prompt of a list; return a :class:`Completion` for each.

        prompts is a text, a list or NumPy array of token ids, or a list of such prompts, all texts
        or all ids. The prompts of a list run together, whatever their lengths, and a prefix that
        they share is computed once. For an iterator of prompts (a generator, an open file), the
        result is an iterator of completions in the same order. The prompts are then read lazily,
        so their number is not limited.

        Options that are not given have the defaults of the model's ``generation_config.json``, or
        the defaults named here. docs/sampling.md has exact definitions, the papers, and the order
        in which the options act.

        Where a text ends:

        max_new_tokens
            The max number of new tokens (default 40). A text ends earlier at one of the model's EOS
            tokens, or when the context is full.
        min_new_tokens
            The number of new tokens that must come before an EOS token or one of stop_token_ids.
        stop_strings, stop_token_ids
            Strings and token ids that end a text, besides the EOS tokens. The result leaves out
            the string or token that ended it.
        eos_token_id
            The EOS tokens of this call: an id, a list of ids, or None for no EOS token. Without
            this option they are the model's own.
        max_time
            A time limit in seconds, counted from the call, at which all texts end. Texts that have
            not begun by then are empty.
        callback
            A function that is called after each token, as callback(index, ids), with the index of
            the prompt and the new ids so far. A truthy result ends the text. With
            num_return_sequences, the index is the same for all texts of a prompt.
        overflow
            What happens when the context is full. "stop", the default, ends the text. "slide"
            continues with the last half of the context as a new prompt, which takes the time to
            feed that half again; from then on, options that depend on earlier tokens see only that
            half. A prompt longer than the context is cut to its last n_positions // 2 tokens.
            "crop" chooses each further token from the last n_positions tokens alone, as nanoGPT
            and minGPT do. It computes the whole context again for each of these tokens, because
            all their positions change.
        truncate
            "left" drops the beginning of a prompt that leaves too little room for new tokens in the
            context. Without it, a prompt longer than the context is an error.

        How a token is chosen; by default, the most likely one (greedy decoding):

        do_sample, temperature
            do_sample=True turns sampling on, and so does temperature or any of the filters that
            follow. temperature divides the logits (default 1); 0 means greedy.
        top_k, top_p, min_p, typical_p, top_n_sigma, epsilon_cutoff, eta_cutoff
            Filters that remove unlikely ids.
        xtc_probability, xtc_threshold
            A filter that sometimes removes the most likely ids.
        mirostat_tau, mirostat_eta
            A filter that removes unlikely ids, adjusted to keep the surprisal near tau.
        repetition_penalty, no_repeat_ngram_size, dry_multiplier, dry_base, dry_allowed_length,
        dry_range, dry_sequence_breakers
            Stages against the repetition of tokens in the prompt and the new text.
        presence_penalty, frequency_penalty
            Stages against the repetition of new tokens only.
        logit_bias
            A dict from ids to the numbers to add to their logits. An id in logit_bias,
            suppress_tokens or stop_token_ids may also be given as a text that is one token.
        suppress_tokens, bad_words
            suppress_tokens lists ids that are never generated; bad_words lists texts, or lists of
            ids, that are never generated.
        sampler_order
            The names of the stages, in the order in which they run, including every stage used
            (default gpt2c.SAMPLER_ORDER).
        logits_processor
            A function that is called before all other options, as logits_processor(ids, logits),
            with the ids of the prompt and the new tokens, and float32 [n_vocab]. It returns the
            logits to use. With num_beams it gets log-probabilities. Without num_beams it turns
            batching off, which is slower.
        seed
            An int from 0 to 2**64 - 1, or a list with one for each prompt. The prompt, the options
            and the seed determine the text, whichever other prompts run with it. By default each
            prompt gets a random seed, which its completion records. A seed alone does not turn
            sampling on.
        num_return_sequences
            The number of texts for each prompt. The result of a prompt is then a list. With
            sampling, all its texts are drawn from the prompt's seed; with num_beams, the list has
            the best texts, best first.

        Beam search, as in transformers:

        num_beams
            The number of beams (default 1, no beam search). The results are the texts with the
            highest sequence_score. Sampling, callback and overflow are errors with
            num_beams, and drafts are not used.
        length_penalty
            Longer texts are rewarded if it is above 0 (default 1).
        early_stopping
            When the search ends, once num_beams texts are finished: immediately (True); when better
            texts are unlikely (False, the default); or when they are impossible ("never").
        num_beam_groups, diversity_penalty
            The number of groups of beams, and the number to subtract from an id's log-probability
            for each beam of an earlier group that chose the id at the same position.

        What is returned besides the text:

        logprobs
            A number n from 0 to 128. Return each new token's log-probability, and the n most likely
            ids at its position with their log-probabilities.
        echo
            Return the same for the prompt's tokens, except those that truncate or overflow cut off.
            Their ids may differ from those of :meth:`score`, because a special token in a prompt
            becomes its id.

        Speed:

        draft, num_assistant_tokens
            Speculative decoding (docs/drafts.md): tokens are drafted, and the model verifies
            several in one pass. The text and the bits of its log-probabilities stay the same.
            draft names what drafts: "packing" (a 4-bit copy of the model), "lookup" (prompt
            lookup), a smaller GPT2, or "auto" (the default), which uses the first two when they
            save time. None turns drafting off. num_assistant_tokens, from 1 to 24, fixes the number
            of tokens to draft at a time.
        batch_size
            The max number of sequences, or beam searches, that run together: 1 to 256 (default 32).
        progress
            Show a bar of finished texts (needs the package tqdm).

        Raises OptionError or OptionTypeError naming the option, its value and its range;
        ContextError; TokenizerError; NumericalError if the weights give a NaN logit;
        CacheMemoryError; and ClosedError.
        """
        checked = self._options(options, CompleteOptions, "complete")
        if is_lazy(prompts):
            return self._completer(checked).complete_lazily(iter(prompts))
        single = is_single(prompts)
        completions = self._completer(checked).complete_list(prompts)
        return completions[0] if single else completions

    def _options(self, given: Mapping[str, Any], allowed: type, method: str) -> Options:
        c = self.config
        vocabulary = Vocabulary(
            c.vocab_size, frozenset(c.eos_token_ids), lambda: self.tokenizer,
            self._encoder.n_padding,
            self._named_ids | {id for id in (c.bos_token_id, c.pad_token_id) if id is not None},
        )  # fmt: skip

        def check(options: Mapping[str, Any]) -> Options:
            checked = check_options(options, allowed, method, vocabulary)
            if checked.stop_strings and isinstance(
                self._encoder.loaded_tokenizer, MissingTokenizer
            ):
                self._encoder.loaded_tokenizer.encode("")  # raises TokenizerError
            return checked

        checked = with_usable_defaults(given, self._defaults, allowed.__annotations__, check)
        self._engine.check_open()
        if self._classifier is not None and not self._warned_of_head:
            self._warned_of_head = True
            _log.warning(
                "%s: this model is a classifier, so its training did not keep the texts that it "
                "generates; call classify for labels, or load the language model that it was made "
                "from to generate texts", method,
            )  # fmt: skip
        return replace(checked, lengths=Lengths.of(given, self._defaults))

    def _completer(self, options: Options) -> Completer:
        draft = options.draft._engine if isinstance(options.draft, LoadedModel) else options.draft
        options = replace(options, draft=draft)
        return Completer(self._engine, self._prefixes, self.config, self._encoder, options)

    @overload
    def stream(self, prompt: str, **options: Unpack[StreamOptions]) -> Iterator[str]: ...
    @overload
    def stream(self, prompt: Ids, **options: Unpack[StreamOptions]) -> Iterator[int]: ...

    @shows_options(StreamOptions, DEFAULTS)
    def stream(self, prompt: Any, **options: Any) -> Any:
        """Continue one prompt; return an iterator that yields the new text, or ids, piece by piece.

        A piece never splits a character and never shows part of a stop string. Joined, the pieces
        are what :meth:`generate` returns. :meth:`complete` describes the options and errors; an
        error in the options is raised by this call, before the first piece is read.
        """
        return self._stream(prompt, options, "stream").pieces()

    @overload
    def stream_async(self, prompt: str, **options: Unpack[StreamOptions]) -> AsyncIterator[str]: ...
    @overload
    def stream_async(self, prompt: Ids, **options: Unpack[StreamOptions]) -> AsyncIterator[int]: ...

    @shows_options(StreamOptions, DEFAULTS)
    def stream_async(self, prompt: Any, **options: Any) -> Any:
        """Do what :meth:`stream` does, for ``async for``, without blocking the event loop.

        Any number of streams share the model's forward passes. One thread runs them; it ends with
        the last stream. A callback, a logits_processor and stop strings run in the event loop's
        thread. With a logits_processor, a thread of the loop's executor runs the model, so only as
        many of these streams run at the same time as the executor has threads. If the iterator is
        closed or its task cancelled, the work stops within one token, or within 256 tokens of a
        long prompt.
        """
        return self._stream(prompt, options, "stream_async").pieces_async()

    def _stream(self, prompt: Any, given: Mapping[str, Any], method: str) -> TextStream:
        options = self._options(given, StreamOptions, method)
        check_single(prompt, options, method)
        (request,) = self._completer(options).requests(prompt, 0)
        token_bytes = self._encoder.token_bytes if isinstance(prompt, str) else None
        return TextStream(self._engine, self._prefixes, self._dispatcher, request, token_bytes)
