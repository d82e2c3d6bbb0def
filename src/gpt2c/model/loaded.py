"""Loading a model, its tokenizer and weights, and what runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT64_MAX, flag, integer
from gpt2c.checks.untrusted import show
from gpt2c.closable import Closable
from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import EngineModel
from gpt2c.engine.threads import choose_threads
from gpt2c.errors import OptionTypeError
from gpt2c.forks import IMPORTING
from gpt2c.generate.encoder import Encoder
from gpt2c.generate.generation_config import ModelDefaults, read_generation_config
from gpt2c.progress import LoadingBar
from gpt2c.schedule.dispatcher import Dispatcher
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.text.special_tokens import ids_in
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.adapters import Adapters, open_with_adapters
from gpt2c.weights.checkpoint import Checkpoint, from_picogpt, save_checkpoint
from gpt2c.weights.hub import locate
from gpt2c.weights.loading import load_engine, loaded_checkpoint, read_tensor, tensor_name
from gpt2c.weights.named_tokenizer import tokenizer_for
from gpt2c.weights.tokenizer_files import save_tokenizer, with_special_ids


class LoadedModel(Closable):
    """The part of GPT2 that loads a model, saves it, and describes it and what runs it."""

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
        shared: bool = False,
        progress: bool = False,
    ) -> None:
        """Read the checkpoint's weights. Most callers use :meth:`from_pretrained` instead.

        If the tokenizer is None, the model uses GPT-2's own tokenizer. :meth:`from_pretrained`
        describes the other options and the errors.
        """
        n_threads, _ = choose_threads(threads)
        max_prefix_bytes = integer("prefix_cache_bytes", prefix_cache_bytes, 0, INT64_MAX)
        self._folder, self._vocabulary = checkpoint.folder, checkpoint.vocabulary
        self._adapters, self._classifier = checkpoint.adapters, checkpoint.classifier
        tokenizer_folder = self._folder if checkpoint.vocabulary is None else None
        config, raw_config = with_special_ids(checkpoint.config, tokenizer_folder, tokenizer)
        self._defaults = ModelDefaults()
        if self._folder is not None:
            config, self._defaults = read_generation_config(self._folder, config)
        self.config: GPT2Config = config
        self._named_ids = ids_in(raw_config) | self._defaults.named_ids
        self._encoder = Encoder(config, tokenizer)
        load = _engine_loader(flag("shared", shared))
        bar = LoadingBar(4 * config.n_parameters) if flag("progress", progress) else None
        try:
            self._engine = load(checkpoint, dtype, backend, n_threads, kv_cache_bytes, bar)
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
        shared: bool = False,
        progress: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        tokenizer: str | os.PathLike[str] | Tokenizer | MissingTokenizer | None = None,
        activation: str | None = None,
        hparams: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        adapter: Adapters | None = None,
        n_head: int | None = None,
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
        shared
            Whether the weights lie in memory that all processes of this user share, as long as one
            of them uses it (docs/processes.md). If this system cannot do that, the model warns with
            a SharingWarning and loads weights of its own.
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
        adapter
            A LoRA adapter as peft saves it, to merge into the weights: a folder or a name on the
            hub. A list merges several adapters, and a pair (folder, weight) in the list multiplies
            an adapter's change by a weight (docs/adapters.md).
        n_head
            The number of attention heads, for a checkpoint that does not store it, such as one of
            the book "Build a Large Language Model (From Scratch)" (docs/checkpoints.md).

        The checkpoint's ``generation_config.json`` sets EOS tokens and defaults for the options of
        calls.

        Raises CheckpointNotFoundError, CheckpointError, ConfigError or TokenizerError, naming the
        file and what is wrong with it; OptionError; BackendError if backend="c" cannot run; and
        MissingDependencyError, naming the package to install.
        """
        folder = locate(path, revision=revision, token=token, local_files_only=local_files_only)
        with open_with_adapters(
            folder, adapter, activation=activation, hparams=hparams, n_head=n_head,
            token=token, local_files_only=local_files_only,
        ) as checkpoint:  # fmt: skip
            found = tokenizer_for(checkpoint, tokenizer)
            return cls(
                checkpoint, found, dtype=dtype, threads=threads, backend=backend,
                kv_cache_bytes=kv_cache_bytes, prefix_cache_bytes=prefix_cache_bytes,
                shared=shared, progress=progress,
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
            classifier=self._classifier,
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

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        """The folders and weights of the adapters that were merged into the model's weights."""
        return tuple((adapter.source, adapter.weight) for adapter in self._adapters)

    # ---- what runs, and its memory ----

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the model's weights as loaded, and of what else its logits depend on.

        It does not depend on the checkpoint's format or on the backend (docs/surprisal.md). The
        first use reads all weights: half a second for GPT-2 124M. Raises ClosedError.
        """
        with IMPORTING:
            from gpt2c.weights.fingerprint import fingerprint  # lazily: few calls need it

        head = {} if self._classifier is None else self._classifier.tensors
        return fingerprint(self._engine, self.config, head)

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


def _engine_loader(shared: bool) -> Callable[..., EngineModel]:
    """Return load_engine, or the function that loads shared weights."""
    if not shared:
        return load_engine
    with IMPORTING:
        from gpt2c.weights.sharing.loading import load_shared_engine  # lazily: few calls need it

    return load_shared_engine
