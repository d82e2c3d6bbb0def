"""GPT2: the class that loads a model, and generates and scores text with it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT64_MAX, flag, integer, shows_options
from gpt2c.checks.untrusted import show
from gpt2c.closable import Closable
from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import EngineModel
from gpt2c.engine.threads import choose_threads
from gpt2c.errors import ContextError, OptionTypeError
from gpt2c.forks import IMPORTING
from gpt2c.generate.completing import Completer, check_single
from gpt2c.generate.encoder import Encoder
from gpt2c.generate.generation_config import (
    Lengths,
    ModelDefaults,
    read_generation_config,
    with_usable_defaults,
)
from gpt2c.generate.options import (
    DEFAULTS,
    CompleteOptions,
    Completion,
    GenerateOptions,
    Options,
    StreamOptions,
    check_options,
)
from gpt2c.generate.prompts import IdArray, Ids, Prompt, is_lazy, is_single
from gpt2c.generate.sampling import Vocabulary
from gpt2c.generate.streaming import TextStream
from gpt2c.progress import LoadingBar
from gpt2c.schedule.dispatcher import Dispatcher
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.session import Session
from gpt2c.text.special_tokens import ids_in
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.checkpoint import Checkpoint, from_picogpt, open_checkpoint, save_checkpoint
from gpt2c.weights.hub import locate
from gpt2c.weights.loading import load_engine, loaded_checkpoint, read_tensor, tensor_name
from gpt2c.weights.named_tokenizer import tokenizer_for
from gpt2c.weights.tokenizer_files import save_tokenizer, with_special_ids

if TYPE_CHECKING:
    from gpt2c.look.probing import Edit, Ints, Names
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


class GPT2(Closable):
    """A GPT-2 model on the CPU.

    >>> model = GPT2.from_pretrained()  # the embedded model; or pass a folder or a hub name
    >>> model.generate("Once upon a time", max_new_tokens=40)

    A model's weights never change. Any number of threads and asyncio tasks may use it at the same
    time, and share its forward passes. ``close()``, or the end of a ``with`` block, frees the
    memory once running calls have ended.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | MissingTokenizer | None,
        *,
        dtype: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = 64 * 2**20,
        progress: bool = False,
    ) -> None:
        """Read the checkpoint's weights. Most callers use :meth:`from_pretrained` instead.

        If the tokenizer is None, the model uses GPT-2's own tokenizer. :meth:`from_pretrained`
        describes the other options and the errors.
        """
        n_threads, _ = choose_threads(threads)
        max_prefix_bytes = integer("prefix_cache_bytes", prefix_cache_bytes, 0, INT64_MAX)
        self._folder, self._vocabulary = checkpoint.folder, checkpoint.vocabulary
        tokenizer_folder = self._folder if checkpoint.vocabulary is None else None
        config, raw_config = with_special_ids(checkpoint.config, tokenizer_folder, tokenizer)
        self._defaults = ModelDefaults()
        if self._folder is not None:
            config, self._defaults = read_generation_config(self._folder, config)
        self.config: GPT2Config = config
        self._named_ids = ids_in(raw_config) | self._defaults.named_ids
        self._encoder = Encoder(config, tokenizer)
        bar = LoadingBar(4 * config.n_parameters) if flag("progress", progress) else None
        try:
            self._engine: EngineModel = load_engine(
                checkpoint, dtype, backend, n_threads, kv_cache_bytes, bar
            )
        finally:
            if bar is not None:
                bar.close()
        self._prefixes = PrefixCache(self._engine, max_prefix_bytes)
        self._dispatcher = Dispatcher()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = 64 * 2**20,
        progress: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        tokenizer: str | os.PathLike[str] | Tokenizer | MissingTokenizer | None = None,
        activation: str | None = None,
        hparams: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load a model from disk or from Hugging Face's hub, or the embedded model.

        path
            A checkpoint on disk, in any format of docs/checkpoints.md; its content decides which.
            It may be a folder in Hugging Face's format (``config.json`` with ``model.safetensors``
            or ``pytorch_model.bin``, whole or in shards), OpenAI's original files, or a file of
            nanoGPT, minGPT, llm.c, GGUF or NumPy. A path that does not exist is a name on the
            hub, such as "openai-community/gpt2" (needs the extra ``hub``). By default, the model is
            "tales", which is part of the package.
        dtype
            The format of the weights: "float32"; "int8", which takes about a quarter of the memory
            and a third of the time per token; "int4", a fifth of both (docs/quantization.md);
            "float64", on the NumPy backend only. "auto", the default, keeps the format of a
            quantised checkpoint, and is float32 for others.
        threads
            The max number of threads. The default is GPT2C_THREADS, else OMP_NUM_THREADS, else the
            min of this process's CPUs, the physical cores and the control group's quota.
        backend
            "c", the compiled engine; "numpy"; or "auto", the first of the two that runs.
        kv_cache_bytes
            The max memory of the KV caches of all calls and sessions together, in bytes; at least a
            page of 64 tokens (GPT-2 124M takes 73,728 bytes per token in float32). The default is
            half of the memory that this process may use, control groups included, or one full
            context if that is more. If it is full, calls wait; docs/scheduler.md says when they
            raise CacheMemoryError.
        prefix_cache_bytes
            The max memory, within kv_cache_bytes, in which the model keeps the KV caches of
            finished texts. A prompt that begins like one of them, with at least 16 equal tokens,
            does not compute these tokens again. It never changes a result. 0 turns it off.
        progress
            Show a bar if loading takes over two seconds (needs the package tqdm).
        revision, token, local_files_only
            How to fetch a model from the hub. HF_HOME and HF_HUB_OFFLINE are honoured.
        tokenizer
            A tokenizer to use instead of the checkpoint's: the path of a tokenizer file or of a
            folder that has one, "gpt2" for GPT-2's own, or a Tokenizer. By default the tokenizer is
            read from the checkpoint's file or folder: ``tokenizer.json``, ``vocab.json`` with
            ``merges.txt``, or nanoGPT's ``meta.pkl``. Without these files the model uses GPT-2's
            own tokenizer, provided that the vocabulary has GPT-2's size. If no tokenizer can be
            read, the model takes only token ids, and raises an error for texts.
            ``model.tokenizer.source`` says where the tokenizer comes from.
        activation
            The activation function, by transformers' name, instead of the checkpoint's: "gelu_new"
            for a nanoGPT model trained before 17 May 2023 (docs/checkpoints.md).
        hparams
            Hyperparameters for a TensorFlow or NumPy checkpoint without ``hparams.json``: a path to
            such a file, a dict such as {"n_head": 12}, or an OpenAI size such as "124M".

        The checkpoint's ``generation_config.json`` sets EOS tokens and defaults for the options of
        calls.

        Raises CheckpointNotFoundError, CheckpointError, ConfigError or TokenizerError, naming the
        file and what is wrong with it; OptionError; BackendError if backend="c" cannot run; and
        MissingDependencyError, naming the package to install.
        """
        folder = locate(path, revision=revision, token=token, local_files_only=local_files_only)
        with open_checkpoint(folder, activation=activation, hparams=hparams) as checkpoint:
            found = tokenizer_for(checkpoint, tokenizer)
            return cls(
                checkpoint, found, dtype=dtype, threads=threads, backend=backend,
                kv_cache_bytes=kv_cache_bytes, prefix_cache_bytes=prefix_cache_bytes,
                progress=progress,
            )  # fmt: skip

    @classmethod
    def from_picogpt(
        cls, hparams: Mapping[str, Any], params: Mapping[str, Any], **options: Any
    ) -> Self:
        """Make a model from picoGPT's hparams and params; see checkpoint.from_picogpt.

        The model has no tokenizer, so it takes ids. The options are dtype, threads, backend,
        kv_cache_bytes, prefix_cache_bytes and progress, as in :meth:`from_pretrained`.
        """
        missing = MissingTokenizer("the model was made from arrays, without a tokenizer")
        return cls(from_picogpt(hparams, params), missing, **options)

    # ---- generation ----

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
            highest sequence_score. Sampling, callback and overflow="slide" are errors with
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
        return replace(checked, lengths=Lengths.of(given, self._defaults))

    def _completer(self, options: Options) -> Completer:
        draft = options.draft._engine if isinstance(options.draft, GPT2) else options.draft
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
            the sum of p log q, which is what q's surprisal would be on average.

        Raises OptionError, OptionTypeError or TokenizerError; NumericalError if the weights give a
        NaN logit; CacheMemoryError; and ClosedError.
        """
        if other is not None and not isinstance(other, GPT2):
            raise OptionTypeError(f"other is {show(other)}; it must be a GPT2 model")
        with IMPORTING:  # lazily: generating does not need them
            from gpt2c.measure.options import check_scoring
            from gpt2c.measure.scoring import score_texts
            from gpt2c.measure.texts import TextsToScore, pairs_to_score

        self._engine.check_open()
        options = check_scoring(
            self._engine, stride=stride, top_logprobs=top_logprobs, second_moments=second_moments,
            renyi_orders=renyi_orders, id_sets=id_sets,
            other=None if other is None else other._engine,
        )  # fmt: skip
        encoder = TextsToScore(self._encoder, bos, special_tokens)
        if is_lazy(texts):
            if continuations is not None:
                raise OptionTypeError("with continuations, texts must be a list, not an iterator")
            encoded = (encoder.encode(text, i) for i, text in enumerate(texts))
            return score_texts(self._engine, encoded, options, looks_ahead=False)
        is_list, pairs = pairs_to_score(texts, continuations)
        texts_to_score = [
            encoder.encode(context, i, continuation)
            for i, (context, continuation) in enumerate(pairs)
        ]
        with self._engine.held():
            scores = list(score_texts(self._engine, texts_to_score, options, looks_ahead=True))
        return scores if is_list else scores[0]

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

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The default options of calls, from the model's ``generation_config.json``."""
        return MappingProxyType(dict(self._defaults.options))

    # ---- the tokenizer and the weights ----

    @property
    def tokenizer(self) -> Tokenizer | MissingTokenizer:
        """Encodes texts to ids, and decodes ids. GPT-2's own tokenizer is made lazily."""
        return self._encoder.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | MissingTokenizer) -> None:
        self._encoder.loaded_tokenizer = tokenizer

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder in Hugging Face's format, which transformers loads too.

        The folder has ``config.json``, ``model.safetensors`` in float32, and the tokenizer's files
        and ``generation_config.json`` of the checkpoint that the model was loaded from. A quantised
        model is written as ``gpt2c.safetensors`` instead, which only gpt2c loads. A new folder
        appears atomically, once all files are written. In an existing folder, each file is replaced
        atomically, and files with other names stay, such as those of another tokenizer.

        Raises CheckpointError if a file cannot be written or copied; TokenizerError if the
        tokenizer was made in memory; OptionTypeError; ClosedError; and MissingDependencyError
        without the package safetensors.
        """
        if not isinstance(folder, str | os.PathLike) or not isinstance(os.fspath(folder), str):
            raise OptionTypeError(f"folder is {show(folder)}; it must be a str or a Path")
        checkpoint = replace(
            loaded_checkpoint(self._engine, self.config),
            folder=self._folder,
            vocabulary=self._vocabulary,
        )
        save = partial(save_tokenizer, checkpoint, tokenizer=self._encoder.loaded_tokenizer)
        save_checkpoint(checkpoint, Path(folder), save)

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return a copy of a tensor, by GPT-2's name for it: "wte.weight" or "h.0.ln_1.bias".

        It is float32, in GPT-2's shape: c_attn, c_proj and c_fc are [in, out]. Quantised weights
        are dequantised. "lm_head.weight" is "wte.weight" if the two are tied.

        Raises OptionError for a name that this model does not have, and ClosedError.
        """
        return read_tensor(self._engine, self.config, name)

    def stored_dtype(self, name: str) -> str:
        """Return the dtype in which the engine stores a tensor, by GPT-2's name for it.

        A float32 model stores a matrix as "float16" or "bfloat16" if all its weights fit exactly.
        That halves the memory of the matrix and changes no bit of a result. The embeddings of an
        int4 model are "int8"; vectors and "wpe.weight" are "float32".

        Raises OptionError for a name that this model does not have, and ClosedError.
        """
        return self._engine.stored_dtype(tensor_name(self.config, name))

    # ---- what runs, and its memory ----

    @property
    def backend(self) -> str:
        """What runs the model: "numpy", or the compiled engine's instruction set."""
        return self._engine.isa

    @property
    def dtype(self) -> str:
        """The format of the weights: "float32", "int8", "int4" or "float64"."""
        return self._engine.dtype

    @property
    def threads(self) -> int:
        """The max number of threads of a call."""
        return self._engine.n_threads

    @property
    def n_bytes(self) -> int:
        """The memory of the weights, in bytes, as the engine packs them."""
        return self._engine.n_bytes

    @property
    def kv_cache_bytes(self) -> int:
        """The memory of the KV cache now, in bytes: that of calls, sessions and the prefix cache.

        What several of them share counts once.
        """
        return self._engine.cache_bytes

    @property
    def kv_cache_limit(self) -> int:
        """The max of kv_cache_bytes, as :meth:`from_pretrained` chose it; 0 means no limit."""
        return self._engine.cache_limit

    def close(self) -> None:
        """Free the weights once running calls have ended; later calls raise ClosedError."""
        self._prefixes.close()
        self._engine.close()

    def __copy__(self) -> Self:
        """Return the model itself, because it is immutable."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return the model itself, because it is immutable."""
        return self

    def __reduce__(self) -> NoReturn:
        """Raise OptionTypeError: a model cannot be pickled."""
        raise OptionTypeError(
            "a model cannot be pickled; call GPT2.from_pretrained in the other process"
        )

    def __repr__(self) -> str:
        """Return the model's shape, dtype and backend."""
        c = self.config
        return (
            f"<gpt2c.GPT2: n_layer {c.n_layer}, n_embd {c.n_embd}, n_head {c.n_head}, "
            f"{c.n_positions} positions, vocabulary {c.vocab_size}, {self.dtype} on {self.backend}>"
        )
