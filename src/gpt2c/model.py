"""The model as its users see it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag, integer, shows_options
from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import MOST_LOGPROBS, EngineModel
from gpt2c.engine.threads import choose_threads
from gpt2c.errors import ContextError, OptionError, OptionTypeError
from gpt2c.generate.completing import Completer
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
from gpt2c.look.probing import Edit, Ints, Names, forward
from gpt2c.measure.scores import Score, score_texts
from gpt2c.progress import LoadingBar
from gpt2c.session import Session
from gpt2c.text.special_tokens import ids_in
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.checkpoint import Checkpoint, from_picogpt, open_checkpoint, save_checkpoint
from gpt2c.weights.hub import locate
from gpt2c.weights.loading import load_engine, loaded_checkpoint, read_tensor
from gpt2c.weights.named_tokenizer import tokenizer_for
from gpt2c.weights.tokenizer_files import save_tokenizer, with_named_tokens


class GPT2:
    """A GPT-2 on the CPU.

    >>> model = GPT2.from_pretrained()  # the embedded one; or a folder, or a name on the hub
    >>> model.generate("Once upon a time", max_new_tokens=40)

    A model is immutable: any number of threads may use it at once, each call with a cache of its
    own. ``close()``, or leaving a ``with`` block, frees its memory once running calls are done.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | MissingTokenizer | None,
        *,
        dtype: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        progress: bool = False,
    ) -> None:
        """Read the checkpoint's weights; :meth:`from_pretrained` is the usual way here.

        A tokenizer of None is GPT-2's own.
        """
        n_threads, _ = choose_threads(threads)
        self._folder, self._vocabulary = checkpoint.folder, checkpoint.vocabulary
        beside = self._folder if checkpoint.vocabulary is None else None
        config, named = with_named_tokens(checkpoint.config, beside, tokenizer)
        self._defaults = ModelDefaults()
        if self._folder is not None:
            config, self._defaults = read_generation_config(self._folder, config)
        self.config: GPT2Config = config
        self._named_ids = ids_in(named) | self._defaults.named_ids
        self._encoder = Encoder(config, tokenizer)
        bar = LoadingBar(4 * config.n_parameters) if flag("progress", progress) else None
        try:
            self._engine: EngineModel = load_engine(checkpoint, dtype, backend, n_threads, bar)
        finally:
            if bar is not None:
                bar.close()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "auto",
        threads: int | None = None,
        backend: str = "auto",
        progress: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        tokenizer: str | os.PathLike[str] | Tokenizer | MissingTokenizer | None = None,
        activation: str | None = None,
        hparams: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load a checkpoint from disk or the hub, or the embedded model.

        path is a checkpoint of any kind that docs/checkpoints.md lists, told by its content: a
        folder in Hugging Face's format (``config.json`` with ``model.safetensors`` or
        ``pytorch_model.bin``, whole or in shards), OpenAI's own, or a file of nanoGPT, minGPT,
        llm.c, GGUF or NumPy. Or, where there is nothing of that name, a name on Hugging Face's hub
        such as "openai-community/gpt2" (extra ``hub``; revision, token and local_files_only are for
        this alone, and HF_HOME and HF_HUB_OFFLINE are honoured). Without it, it is the model that
        is part of the package, "tales".

        The tokenizer comes from the file or its folder: ``tokenizer.json``, ``vocab.json`` with
        ``merges.txt``, or nanoGPT's ``meta.pkl``; without any, it is GPT-2's own, if the vocabulary
        has its size (``model.tokenizer.source`` says which). If it cannot be read, passing text is
        an error, but token ids work. tokenizer names another: a path to one of these files, or to a
        folder that has one, "gpt2" for GPT-2's own, or a Tokenizer. ``generation_config.json``
        gives EOS tokens, and defaults for the options of calls.

        activation overrides the checkpoint's activation function, by transformers' names:
        "gelu_new" for a nanoGPT trained before 17 May 2023 (docs/checkpoints.md). hparams replaces
        ``hparams.json`` if a TensorFlow or NumPy checkpoint has none: a path, a dict such as
        {"n_head": 12}, or an OpenAI size such as "124M".

        progress shows a bar where loading takes over two seconds (with the package tqdm). dtype is
        what is computed with: "float32"; "int8", in about a quarter of the memory and a third of
        the time of a token, or "int4", in a fifth of both (docs/quantization.md); on the NumPy
        backend "float64"; or "auto", what the checkpoint was quantised to, and otherwise float32.
        threads is the max number of threads; the default is GPT2C_THREADS, else OMP_NUM_THREADS,
        else the least of this process's CPUs, physical cores and control group quota. backend is
        "c", the compiled engine; "numpy"; or "auto", which takes the first that runs.

        Raises CheckpointNotFoundError, CheckpointError, ConfigError or TokenizerError, naming the
        file and what is wrong with it; OptionError; BackendError where backend="c" cannot run;
        MissingDependencyError, naming the package, where one is needed and not installed.
        """
        folder = locate(path, revision=revision, token=token, local_files_only=local_files_only)
        with open_checkpoint(folder, activation=activation, hparams=hparams) as checkpoint:
            found = tokenizer_for(checkpoint, tokenizer)
            return cls(
                checkpoint, found, dtype=dtype, threads=threads, backend=backend,
                progress=progress,
            )  # fmt: skip

    @classmethod
    def from_picogpt(
        cls, hparams: Mapping[str, Any], params: Mapping[str, Any], **options: Any
    ) -> Self:
        """A model from picoGPT's hparams and params, for ids; see checkpoint.from_picogpt."""
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
        """Continues a prompt, or each of a list of prompts: the new text, or ids, alone.

        prompts is a text, a list or NumPy array of token ids, or a list of one kind of them. An
        iterator of prompts (a generator, an open file) is answered by an iterator, lazily.
        :meth:`complete` says what the options are, and what is raised. With num_return_sequences
        each prompt's result is a list of so many.
        """
        checked = self._options(options, GenerateOptions, "generate")

        def new(completion: Completion | list[Completion]) -> Any:
            return [c.new for c in completion] if isinstance(completion, list) else completion.new

        if is_lazy(prompts):
            return (new(done) for done in self._completer(checked).complete_lazily(iter(prompts)))
        single = is_single(prompts)  # asked before the work, which may outlive what was given
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
        """Continues a prompt, or each of a list: a :class:`Completion`, or a list of them.

        The prompts of a list run together, whatever their lengths, and tokens that they begin with
        alike are computed once. An iterator of prompts is answered by an iterator of completions in
        their order: prompts are taken from it as places come free, so that there may be any number.
        docs/sampling.md has the options' definitions, their papers and their order.

        max_new_tokens
            Most tokens to generate. The model's end token, or a full context, ends a text before.
        do_sample, temperature, top_k, top_p, min_p, typical_p, top_n_sigma, epsilon_cutoff,
        eta_cutoff, xtc_probability, xtc_threshold, mirostat_tau, mirostat_eta
            Greedy unless do_sample is True or one of the others is given. temperature divides the
            logits (default 1; 0 is greedy); the others remove unlikely ids (xtc: likely ones).
        repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram_size,
        dry_multiplier, dry_base, dry_allowed_length, dry_range, dry_sequence_breakers
            Against repetition. presence and frequency count the new tokens, the others the prompt
            too.
        logit_bias, suppress_tokens, bad_words, min_new_tokens
            Numbers added to ids' logits; ids, and texts or lists of ids, that never come; how many
            tokens come before one may end the text. A text that is one token stands for its id.
        sampler_order
            The stages' names in another order than gpt2c.SAMPLER_ORDER.
        seed
            An int from 0 to 2**64 - 1, or a list of one for each prompt; by itself it does not
            turn sampling on. The text is a function of
            the prompt, the options and the seed, whatever runs beside it. None draws one for each
            prompt, and the completion tells it.
        num_return_sequences
            So many texts for each prompt, all drawn from its seed, or the best of num_beams, best
            first; its result is then a list.
        num_beams, length_penalty, early_stopping
            Beam search with so many beams, as transformers does it: the texts of the greatest
            sequence_score. Above 0 (default: 1) length_penalty rewards length. early_stopping ends
            the search with the first num_beams texts (True), when better ones are unlikely (False,
            the default), or are impossible ("never"). With sampling, a callback or
            overflow="slide" it is an error; drafts are not used.
        num_beam_groups, diversity_penalty
            Beams in so many groups, each of which is kept by the penalty, taken from
            log-probabilities, from the ids that the groups before chose at the same place.
        stop_strings, stop_token_ids
            What ends a text, besides the model's end token; none of it is part of the text.
        max_time
            Seconds from the call after which every text ends; those not begun by then are empty.
        callback
            callback(index of the prompt, its new ids so far) after each token; what is true ends
            the text. Of num_return_sequences all have their prompt's index.
        logits_processor
            logits_processor(ids of prompt and text, float32 [n_vocab]) returns the logits that are
            used, before every other option; with num_beams it is given log-probabilities. Slower:
            without num_beams prompts run one after the other.
        logprobs, echo
            From 0 to 128: log-probabilities of the new tokens, and of so many alternatives; with
            echo of the prompt's tokens too, of those that truncate or overflow kept. In a prompt,
            unlike in a text that is scored, special tokens stand for themselves.
        overflow
            What a full context does: "stop" ends the text, "slide" goes on from the last half of
            the context as from a new prompt, which costs feeding that half again; all options then
            see that half alone. A prompt longer than the context is cut to its last half.
        draft, num_assistant_tokens
            "auto" (the default), "packing", "lookup" or a smaller GPT2 guesses tokens, which are
            verified together: the same text, to the bit of its log-probabilities, in fewer passes;
            None does not (docs/drafts.md). num_assistant_tokens, from 1 to 24, guesses always so
            many.
        truncate
            "left" keeps the end of a prompt that leaves no room in the context; otherwise a prompt
            longer than the context is an error.
        batch_size
            How many prompts run together, from 1 to 256.
        progress
            Show a bar of finished texts (with the package tqdm).

        Raises OptionError or OptionTypeError naming the option, its value and its range;
        ContextError, TokenizerError; NumericalError where the weights give a logit that is not a
        number; CacheMemoryError.
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
            if checked.stop_strings and isinstance(self._encoder.given_tokenizer, MissingTokenizer):
                self._encoder.given_tokenizer.encode("")  # says that there is none
            return checked

        checked = with_usable_defaults(given, self._defaults, allowed.__annotations__, check)
        self._engine.check_open()
        return replace(checked, lengths=Lengths.of(given, self._defaults))

    def _completer(self, options: Options) -> Completer:
        draft = options.draft._engine if isinstance(options.draft, GPT2) else options.draft
        return Completer(self._engine, self.config, self._encoder, replace(options, draft=draft))

    @overload
    def stream(self, prompt: str, **options: Unpack[StreamOptions]) -> Iterator[str]: ...
    @overload
    def stream(self, prompt: Ids, **options: Unpack[StreamOptions]) -> Iterator[int]: ...

    @shows_options(StreamOptions, DEFAULTS)
    def stream(self, prompt: Any, **options: Any) -> Any:
        """Continues one prompt and yields the new text, or ids, as they come.

        The pieces of a text never split a character nor show part of a stop string, and joined are
        what :meth:`generate` returns. Options and errors are those of :meth:`complete`; errors in
        them are raised at once.
        """
        return self._stream(prompt, options, "stream").pieces()

    @overload
    def stream_async(self, prompt: str, **options: Unpack[StreamOptions]) -> AsyncIterator[str]: ...
    @overload
    def stream_async(self, prompt: Ids, **options: Unpack[StreamOptions]) -> AsyncIterator[int]: ...

    @shows_options(StreamOptions, DEFAULTS)
    def stream_async(self, prompt: Any, **options: Any) -> Any:
        """The same for ``async for``: the work is done in a thread, beside the event loop.

        When the iterator is closed, or its task cancelled, the work stops within a token, or, in a
        long prompt, 256 of its tokens.
        """
        return self._stream(prompt, options, "stream_async").pieces_async()

    def _stream(self, prompt: Any, given: Mapping[str, Any], method: str) -> TextStream:
        options = self._options(given, StreamOptions, method)
        if not is_single(prompt):
            if isinstance(prompt, list) and not prompt:
                raise OptionError(f"{method} takes one prompt; found an empty list")
            raise OptionTypeError(f"{method} takes one prompt; found a list of them")
        if isinstance(options.seeds, tuple):
            raise OptionTypeError(f"{method} takes one prompt and so one seed; found a list")
        (request,) = self._completer(options).requests(prompt, 0)
        return TextStream(
            self._engine, request, self._encoder.token_bytes if isinstance(prompt, str) else None
        )

    # ---- scores ----

    @overload
    def score(
        self,
        texts: str | Sequence[int] | IdArray,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
        top_logprobs: int = 0,
    ) -> Score: ...
    @overload
    def score(
        self,
        texts: list[str] | tuple[str, ...] | Sequence[Ids],
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
        top_logprobs: int = 0,
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        texts: Iterator[Prompt],
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
        top_logprobs: int = 0,
    ) -> Iterator[Score]: ...

    def score(
        self,
        texts: Any,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
        top_logprobs: int = 0,
    ) -> Any:
        """What the model says of a text's or ids' tokens, or of each of a list: a :class:`Score`.

        Short texts run together; the bits are those of each alone. An iterator of texts is answered
        by an iterator, lazily and in memory that is bounded. The ids of a text are those of a
        prompt, but for its special tokens.

        bos
            Score the first token too, as what follows the bos token. A bos token that the tokenizer
            itself puts before every text is then not among the text's own ids.
        special_tokens
            Whether a special token in a text, such as "<|endoftext|>", is its one id, as in a
            prompt. By default it is the characters that it is written with.
        stride
            How far apart the windows begin in which a text longer than the context is scored;
            default half of the context. Each token is scored in the first window that holds it,
            given what of that window precedes it.
        top_logprobs
            From 0 to 128: so many of the likeliest ids in each token's place, too.

        Raises OptionError, OptionTypeError, TokenizerError; NumericalError where the weights give a
        logit that is not a number; CacheMemoryError.
        """
        n_positions = self.config.n_positions
        special = flag("special_tokens", special_tokens)
        step = max(n_positions // 2, 1)
        if stride is not None:
            step = integer("stride", stride, 1, n_positions)
        n_top = integer("top_logprobs", top_logprobs, 0, MOST_LOGPROBS)
        encoder, start = self._encoder, None
        if flag("bos", bos):
            start = encoder.start_id("bos=True")
        self._engine.check_open()
        if is_lazy(texts):
            ids = (encoder.encode_scored(text, i, special, start) for i, text in enumerate(texts))
            return score_texts(self._engine, ids, start, step, n_top)
        single = is_single(texts)
        text_list = [texts] if single else list(texts)
        all_ids = [encoder.encode_scored(t, i, special, start) for i, t in enumerate(text_list)]
        with self._engine.held():
            scores = list(score_texts(self._engine, all_ids, start, step, n_top))
        return scores[0] if single else scores

    @overload
    def perplexity(
        self,
        texts: str | Sequence[int] | IdArray,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
    ) -> float: ...
    @overload
    def perplexity(
        self,
        texts: list[str] | tuple[str, ...] | Sequence[Ids],
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
    ) -> list[float]: ...

    def perplexity(
        self,
        texts: Any,
        *,
        bos: bool = False,
        special_tokens: bool = False,
        stride: int | None = None,
    ) -> Any:
        """Of a text, or of each of a list: exp of the mean negative log-probability of its tokens.

        Windows of n_positions tokens every `stride` (default half of them) are the usual recipe for
        a text that is longer than the context, as transformers' documentation has it. The options
        are those of :meth:`score`.

        Raises what :meth:`score` raises.
        """
        if is_lazy(texts):
            raise OptionTypeError("perplexity takes texts or ids; an iterator is for score")
        scores = self.score(texts, bos=bos, special_tokens=special_tokens, stride=stride)
        return scores.perplexity if isinstance(scores, Score) else [s.perplexity for s in scores]

    # ---- logits ----

    def logits(self, ids: Prompt) -> NDArray[np.float32]:
        """Logits float32 [n_tokens, n_vocab] of the token that follows each of ids (or of a text).

        Raises ContextError where there are more of them than positions.
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
        """What the model computes of ids (or a text) on its way, and what it would if that changed.

        >>> seen = model.forward("Once upon a time", capture=["resid_post", "h.0.probs", "logits"])
        >>> seen["resid_post"].shape, seen["h.0.probs"].shape  # n_layer first; heads first
        >>> model.forward(ids, edit={"h.3.attn_out": lambda x: 0 * x})["logits"]  # without it

        capture
            Names of points: embed, ln_f, logits, and of each block resid_pre, ln_1, q, k, v,
            scores, probs, attn_out, resid_mid, ln_2, mlp_pre, mlp_act, mlp_out, resid_post.
            "h.3.probs" is block 3's, "probs" all blocks' in one array. Only these are kept.
        edit
            By the same names: a function of a point's values that returns others, or an array of
            them (or what broadcasts to it), for all tokens of the text. Without a block's number it
            is for each. It may keep what it is given, and is called once a block. What is captured
            is what came of it. A token never looks at later ones, whatever its scores are.
        positions
            Tokens whose values are captured (ascending; negative ones count from the end); None:
            all. Logits are computed of these alone.

        Returns a dict by the names of capture: float32 [n, n_embd]; of mlp_pre and mlp_act
        [n, n_inner]; of q, k and v [n_head, n, head_dim]; of scores (-inf where a token does not
        look) and probs [n_head, n, n_tokens]; of logits [n, n_vocab]; of all blocks with n_layer
        before that. Their bits are those of :meth:`logits`; what no edit changes keeps them.

        Raises OptionError or OptionTypeError naming what is wrong with an option; ContextError;
        CacheMemoryError; and whatever a function of edit raises. Where it forks and the child
        returns, ForkError in the child, unless the call ran on one thread.
        """
        checked = self._encoder.encode(ids, "forward")
        return forward(self._engine, self.config, checked, capture, edit, positions)

    def session(self) -> Session:
        """An empty session, to be fed step by step."""
        return Session(self._engine)

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """Options that the model's ``generation_config.json`` gives where a call does not."""
        return MappingProxyType(dict(self._defaults.options))

    # ---- the tokenizer and the weights ----

    @property
    def tokenizer(self) -> Tokenizer | MissingTokenizer:
        """Text to ids and back. GPT-2's own is made when it is first needed."""
        return self._encoder.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | MissingTokenizer) -> None:
        self._encoder.given_tokenizer = tokenizer

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder in Hugging Face's format, which transformers loads too.

        It has ``config.json``, ``model.safetensors`` in float32 (of a quantised model
        ``gpt2c.safetensors``, which gpt2c alone loads), and the tokenizer's files and
        ``generation_config.json`` of the checkpoint that the model was loaded from. A new folder
        appears when all of it is written; in one that is there each file is replaced as a whole,
        and files of other names, such as those of another tokenizer, stay.

        Raises CheckpointError where it cannot be written.
        """
        if not isinstance(folder, str | os.PathLike) or not isinstance(os.fspath(folder), str):
            raise OptionTypeError(f"folder is {show(folder)}; it must be a str or a Path")
        checkpoint = replace(
            loaded_checkpoint(self._engine, self.config),
            folder=self._folder,
            vocabulary=self._vocabulary,
        )
        save = partial(save_tokenizer, checkpoint, tokenizer=self._encoder.given_tokenizer)
        save_checkpoint(checkpoint, Path(folder), save)

    def weight(self, name: str) -> NDArray[np.float32]:
        """A copy of a tensor by GPT-2's own name for it, such as "wte.weight" or "h.0.ln_1.bias".

        float32, in the shape that GPT-2 has it in: c_attn, c_proj and c_fc are [in, out]. Of a
        quantised model it is what is computed with, widened. "lm_head.weight", where it is tied, is
        "wte.weight".

        Raises OptionError for a name that this model does not have.
        """
        return read_tensor(self._engine, self.config, name)

    # ---- what runs, and its memory ----

    @property
    def backend(self) -> str:
        """What runs this model: "numpy", or the compiled engine's instruction set."""
        return self._engine.isa

    @property
    def dtype(self) -> str:
        """What the weights are in: "float32", "int8", "int4" or "float64"."""
        return self._engine.dtype

    @property
    def threads(self) -> int:
        """The most threads that one call runs on."""
        return self._engine.n_threads

    @property
    def n_bytes(self) -> int:
        """Memory that the weights take, as they are packed for the engine."""
        return self._engine.n_bytes

    def close(self) -> None:
        """Frees the weights once running calls are done; later calls raise ClosedError."""
        self._engine.close()

    def __enter__(self) -> Self:
        """The model itself; it is closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the model."""
        self.close()

    def __copy__(self) -> Self:
        """The model itself: it is immutable."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """The model itself: it is immutable."""
        return self

    def __reduce__(self) -> NoReturn:
        """A model is not pickled; load it where it is needed."""
        raise OptionTypeError(
            "a model cannot be pickled; call GPT2.from_pretrained in the other process"
        )

    def __repr__(self) -> str:
        """The model's shape and what runs it."""
        c = self.config
        return (
            f"<gpt2c.GPT2: n_layer {c.n_layer}, n_embd {c.n_embd}, n_head {c.n_head}, "
            f"{c.n_positions} positions, vocabulary {c.vocab_size}, {self.dtype} on {self.backend}>"
        )
