"""The model as its users see it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from gpt2c.backend import load_engine
from gpt2c.batching import Request, Result, run_requests, stream_request
from gpt2c.checkpoint import Checkpoint, from_picogpt, open_checkpoint
from gpt2c.config import GPT2Config
from gpt2c.errors import ContextError, OptionError, OptionTypeError
from gpt2c.generation import (
    DEFAULT_BATCH_SIZE,
    Completion,
    GenerateOptions,
    IdArray,
    Ids,
    Options,
    Prompt,
    StreamOptions,
    check_ids,
    check_options,
    fit_context,
    is_lazy,
    is_single,
)
from gpt2c.hub import locate
from gpt2c.options import integer
from gpt2c.session import Session
from gpt2c.threads import choose_threads
from gpt2c.tokenizer import MissingTokenizer, StreamDecoder, Tokenizer

GPT2_VOCABULARY = 50257  # a checkpoint of this many tokens and no tokenizer files has GPT-2's own


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
        dtype: str = "float32",
        threads: int | None = None,
        backend: str = "auto",
    ) -> None:
        """Reads the checkpoint's weights; :meth:`from_pretrained` is the usual way here.

        tokenizer None is GPT-2's own.
        """
        n_threads, _ = choose_threads(threads)
        self.config: GPT2Config = checkpoint.config
        self._tokenizer = tokenizer
        self._engine = load_engine(checkpoint, dtype, backend, n_threads)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "float32",
        threads: int | None = None,
        backend: str = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> GPT2:
        """A model from a folder in Hugging Face's format, from the hub, or the embedded one.

        path is a folder that holds ``config.json``, ``model.safetensors`` (float64, float32,
        float16 or bfloat16) and, for another vocabulary than GPT-2's, ``vocab.json`` with
        ``merges.txt``; or, where there is no such folder, a name on Hugging Face's hub such as
        "openai-community/gpt2" (extra ``hub``; revision, token and local_files_only are for this
        alone, and HF_HOME and HF_HUB_OFFLINE are honoured). Without it, it is the model that is
        part of the package, "tales".

        dtype is what is computed with: "float32", or on the NumPy backend "float64". threads is
        the most to use; by default what this process may: its CPUs, physical cores and control
        group's quota, or the environment's GPT2C_THREADS. backend is "c", the compiled engine;
        "numpy"; or "auto", which takes the first that runs.

        Raises CheckpointNotFoundError, CheckpointError, ConfigError or TokenizerError, naming the
        file and what is wrong with it; OptionError; BackendError where backend="c" cannot run;
        MissingDependencyError where a name is given and huggingface_hub is not installed.
        """
        folder = locate(path, revision=revision, token=token, local_files_only=local_files_only)
        with open_checkpoint(folder) as checkpoint:
            tokenizer = tokenizer_of(checkpoint)
            return cls(checkpoint, tokenizer, dtype=dtype, threads=threads, backend=backend)

    @classmethod
    def from_picogpt(
        cls, hparams: Mapping[str, Any], params: Mapping[str, Any], **options: Any
    ) -> GPT2:
        """A model from picoGPT's hparams and params, for ids; see checkpoint.from_picogpt."""
        missing = MissingTokenizer("the model was made from arrays, without a tokenizer")
        return cls(from_picogpt(hparams, params), missing, **options)

    @property
    def tokenizer(self) -> Tokenizer | MissingTokenizer:
        """Text to ids and back.

        GPT-2's own is made when it is first needed: it takes 0.15 s, a third of the time to the
        first token of GPT-2 124M, and who gives ids and wants ids does without.
        """
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.gpt2()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | MissingTokenizer) -> None:
        self._tokenizer = tokenizer

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

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 40,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | Sequence[int] | None = None,
        truncate: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Any:
        """Continues a prompt, or each of a list of prompts: the new text, or ids, alone.

        prompts is a text, a list or NumPy array of token ids, or a list of one kind of them. An
        iterator of prompts (a generator, an open file) is answered by an iterator, lazily.
        :meth:`complete` says what the options are, and what is raised.
        """
        completions = self.complete(
            prompts, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
            top_k=top_k, seed=seed, truncate=truncate, batch_size=batch_size,
        )  # fmt: skip
        if isinstance(completions, Completion):
            return completions.new
        if isinstance(completions, list):
            return [completion.new for completion in completions]
        return (completion.new for completion in completions)

    @overload
    def complete(self, prompts: str, **options: Unpack[GenerateOptions]) -> Completion: ...
    @overload
    def complete(
        self, prompts: Sequence[int] | IdArray, **options: Unpack[GenerateOptions]
    ) -> Completion: ...
    @overload
    def complete(
        self, prompts: list[str] | tuple[str, ...], **options: Unpack[GenerateOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompts: Sequence[Ids], **options: Unpack[GenerateOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompts: Iterator[str], **options: Unpack[GenerateOptions]
    ) -> Iterator[Completion]: ...
    @overload
    def complete(
        self, prompts: Iterator[Ids], **options: Unpack[GenerateOptions]
    ) -> Iterator[Completion]: ...

    def complete(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 40,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | Sequence[int] | None = None,
        truncate: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Any:
        """Continues a prompt, or each of a list: a :class:`Completion`, or a list of them.

        The prompts of a list run together, whatever their lengths, and tokens that they begin with
        alike are computed once. An iterator of prompts is answered by an iterator of completions in
        their order: prompts are taken from it as places come free, so that there may be any number.

        max_new_tokens
            Most tokens to generate. The model's end token, or a full context, ends a text before.
        do_sample, temperature, top_k
            Greedy unless do_sample is True or a sampling option is given. temperature divides the
            logits (default 1; 0 is greedy); top_k keeps the k likeliest tokens (0: all).
        seed
            An int from 0 to 2**64 - 1, or a list of one for each prompt; by itself it does not
            turn sampling on. The text is a function of
            the prompt, the options and the seed, whatever runs beside it. None draws one for each
            prompt, and the completion tells it.
        truncate
            "left" keeps the end of a prompt that leaves no room in the context; otherwise a prompt
            longer than the context is an error.
        batch_size
            How many prompts run together, from 1 to 256.

        Raises OptionError or OptionTypeError naming the option, its value and its range;
        ContextError, TokenizerError; NumericalError where the weights give a logit that is not a
        number; CacheMemoryError.
        """
        options = check_options(
            max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
            top_k=top_k, seed=seed, truncate=truncate,
        )  # fmt: skip
        batch_size = integer("batch_size", batch_size, 1, 256)
        self._engine.check_open()
        if is_lazy(prompts):
            return self._complete_each(iter(prompts), options, batch_size)
        single = is_single(prompts)
        prompt_list = [prompts] if single else list(prompts)
        if isinstance(options.seeds, tuple) and len(options.seeds) != len(prompt_list):
            raise OptionError(
                f"seed is a list of {len(options.seeds)}; it must have one for each of the "
                f"{len(prompt_list)} prompts"
            )
        requests = [self._request(p, i, options) for i, p in enumerate(prompt_list)]
        with self._engine.held():
            results = list(run_requests(self._engine, requests, batch_size))
        completions = [
            self._completion(prompt, request, result)
            for prompt, request, result in zip(prompt_list, requests, results, strict=True)
        ]
        return completions[0] if single else completions

    def _complete_each(
        self, prompts: Iterator[Prompt], options: Options, batch_size: int
    ) -> Iterator[Completion]:
        begun: deque[tuple[Prompt, Request]] = deque()

        def requests() -> Iterator[Request]:
            for index, prompt in enumerate(prompts):
                if not is_single(prompt):
                    raise OptionTypeError(
                        f"prompt {index} of the iterator is a list of prompts; it must be one, a "
                        "text or token ids"
                    )
                begun.append((prompt, self._request(prompt, index, options)))
                yield begun[-1][1]

        for result in run_requests(self._engine, requests(), batch_size):
            yield self._completion(*begun.popleft(), result)

    def _completion(self, prompt: Prompt, request: Request, result: Result) -> Completion:
        ids, reason = result
        text = self.tokenizer.decode(ids) if isinstance(prompt, str) else None
        return Completion(text, ids, reason, request.seed)

    @overload
    def stream(self, prompt: str, **options: Unpack[StreamOptions]) -> Iterator[str]: ...
    @overload
    def stream(self, prompt: Ids, **options: Unpack[StreamOptions]) -> Iterator[int]: ...

    def stream(
        self,
        prompt: Any,
        *,
        max_new_tokens: int = 40,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        truncate: str | None = None,
    ) -> Any:
        """Continues one prompt and yields the new text, or ids, as they come.

        The pieces of a text never split a character, and joined are what :meth:`generate` returns.
        Options and errors are those of :meth:`complete`; errors in them are raised at once.
        """
        options = check_options(
            max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
            top_k=top_k, seed=seed, truncate=truncate,
        )  # fmt: skip
        self._engine.check_open()
        if not is_single(prompt):
            if isinstance(prompt, list) and not prompt:
                raise OptionError("stream takes one prompt; found an empty list")
            raise OptionTypeError("stream takes one prompt; found a list of them")
        if isinstance(options.seeds, tuple):
            raise OptionTypeError("stream takes one prompt and so one seed; found a list")
        ids = stream_request(self._engine, self._request(prompt, 0, options))
        return self._pieces(ids) if isinstance(prompt, str) else ids

    def _pieces(self, ids: Iterator[int]) -> Iterator[str]:
        decoder = StreamDecoder(self.tokenizer)
        for id in ids:
            if piece := decoder.push(id):
                yield piece
        if piece := decoder.finish():
            yield piece

    def _request(self, prompt: Prompt, index: int, options: Options) -> Request:
        where = f"prompt {index}"
        ids = self._encode(prompt, where)
        if len(ids) == 0:
            ids = np.array([self._start_id(where)], dtype=np.int32)
        return Request(
            ids=fit_context(ids, self.config.n_positions, options, where),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed_of(index),
            stop_ids=np.array(sorted(self.config.eos_token_ids), dtype=np.int32),
        )

    def _encode(self, prompt: Prompt, where: str) -> NDArray[np.int32]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return check_ids(ids, self.config.vocab_size, where)

    def _start_id(self, where: str) -> int:
        """What the empty prompt starts from: end-of-text, after which GPT-2 begins a new one."""
        candidates = [self.tokenizer.eot_id, *sorted(self.config.eos_token_ids)]
        for id in [*candidates, self.config.bos_token_id]:
            if id is not None and id < self.config.vocab_size:
                return id
        raise OptionError(
            f"{where} is empty, and this model has no end-of-text token to start from"
        )

    # ---- logits ----

    def logits(self, ids: Prompt) -> NDArray[np.float32]:
        """Logits float32 [n_tokens, n_vocab] of the token that follows each of ids (or of a text).

        Raises ContextError where there are more of them than positions.
        """
        checked = self._encode(ids, "logits")
        if len(checked) > self.config.n_positions:
            raise ContextError(
                f"logits: {len(checked)} tokens are more than the context's "
                f"{self.config.n_positions} positions"
            )
        return self.session().feed(checked, all=True)

    def session(self) -> Session:
        """An empty session, to be fed step by step."""
        return Session(self._engine)

    # ---- what runs, and its memory ----

    @property
    def backend(self) -> str:
        """What runs this model: "numpy", or the compiled engine's instruction set."""
        return self._engine.isa

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

    def __enter__(self) -> GPT2:
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

    def __copy__(self) -> GPT2:
        """The model itself: it is immutable."""
        return self

    def __deepcopy__(self, memo: object) -> GPT2:
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
            f"{c.n_positions} positions, vocabulary {c.vocab_size}, on {self.backend}>"
        )


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | MissingTokenizer | None:
    """The tokenizer beside a checkpoint's weights; None for GPT-2's own, where it fits.

    Raises TokenizerError where its files are malformed or do not fit the model.
    """
    folder, n_vocab = checkpoint.folder, checkpoint.config.vocab_size
    if folder is not None:
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        # A link that leads nowhere is a broken tokenizer, not a missing one.
        if os.path.lexists(vocab) and os.path.lexists(merges):
            return Tokenizer.from_files(vocab, merges)
    if n_vocab == GPT2_VOCABULARY:
        return None
    return MissingTokenizer(_what_is_missing(folder, n_vocab), n_vocab=n_vocab)


def _what_is_missing(folder: Path | None, n_vocab: int) -> str:
    return (
        f"{folder}: there is no vocab.json with merges.txt, and a vocabulary of {n_vocab} tokens "
        "is not GPT-2's own"
    )
