"""A model in memory: where its weights come from, what runs it, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import flag, similar
from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config
from gpt2c.engine.threads import choose_threads
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.generate.generation_config import ModelDefaults, read_generation_config
from gpt2c.progress import LoadingBar
from gpt2c.text.special_tokens import ids_in, with_named_tokens
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.checkpoint import Checkpoint, from_picogpt, open_checkpoint, save_checkpoint
from gpt2c.weights.hub import locate
from gpt2c.weights.loading import load_engine, loaded_checkpoint
from gpt2c.weights.named_tokenizer import tokenizer_for
from gpt2c.weights.tokenizer_files import save_tokenizer


class LoadedModel:
    """The weights of a :class:`gpt2c.GPT2`, its configuration and its tokenizer."""

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
        """Reads the checkpoint's weights; :meth:`from_pretrained` is the usual way here.

        tokenizer None is GPT-2's own.
        """
        n_threads, _ = choose_threads(threads)
        self._folder, self._vocabulary = checkpoint.folder, checkpoint.vocabulary
        self._tokenizer = tokenizer
        self.config: GPT2Config = checkpoint.config
        self._defaults = ModelDefaults()
        beside = self._folder if checkpoint.vocabulary is None else None
        self.config, said = with_named_tokens(self.config, beside, tokenizer)
        if self._folder is not None:
            self.config, self._defaults = read_generation_config(self._folder, self.config)
        self._named_ids = ids_in(said) | self._defaults.named_ids
        bar = LoadingBar(4 * self.config.n_parameters) if flag("progress", progress) else None
        try:
            self._engine = load_engine(checkpoint, dtype, backend, n_threads, bar)
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

    def _token_bytes(self, id: int) -> bytes:
        """The bytes of a token of the model; empty if its tokenizer lacks it."""
        tokenizer = self.tokenizer
        return tokenizer.token_bytes(id) if id < getattr(tokenizer, "n_vocab", id + 1) else b""

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
        save = partial(save_tokenizer, checkpoint, tokenizer=self._tokenizer)
        save_checkpoint(checkpoint, Path(folder), save)

    def weight(self, name: str) -> NDArray[np.float32]:
        """A copy of a tensor by GPT-2's own name for it, such as "wte.weight" or "h.0.ln_1.bias".

        float32, in the shape that GPT-2 has it in: c_attn, c_proj and c_fc are [in, out]. Of a
        quantised model it is what is computed with, widened. "lm_head.weight", where it is tied, is
        "wte.weight".

        Raises OptionError for a name that this model does not have.
        """
        tensors = loaded_checkpoint(self._engine, self.config).tensors
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            name = "wte.weight"
        if not isinstance(name, str) or name not in tensors:
            raise OptionError(
                f"weight: {show(name)} is no tensor of this model; they are "
                f"{show_list(list(tensors))}{similar(str(name)[:99], tensors)}"
            )
        source = tensors[name]
        return source.read(0, source.shape[0]).reshape(source.shape)

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
