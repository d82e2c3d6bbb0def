"""picoGPT's functions on gpt2c's engine: a program written for picoGPT only changes its import.

>>> from gpt2c.pico import generate, gpt2, load_encoder_hparams_and_params

Each call packs the weights again, because the program may have changed them since the last call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT32_MAX, integer
from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.errors import (
    CheckpointNotFoundError,
    ConfigError,
    ContextError,
    OptionError,
    OptionTypeError,
)
from gpt2c.generate.prompts import Ids, check_ids
from gpt2c.model import GPT2
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.checkpoint import open_checkpoint, to_picogpt
from gpt2c.weights.tokenizer_files import tokenizer_of


def gpt2(
    inputs: Ids,
    wte: Any,
    wpe: Any,
    blocks: Sequence[Mapping[str, Any]],
    ln_f: Mapping[str, Any],
    n_head: int,
) -> NDArray[np.float32]:
    """Return float32 logits [n_seq, n_vocab]: row i predicts the token after inputs[i].

    The other arguments are the params of :func:`load_encoder_hparams_and_params`, or arrays of the
    same shapes in float16, float32 or float64, which are rounded to float32:
    ``gpt2(inputs, **params, n_head=hparams["n_head"])``.

    Raises CheckpointError or ConfigError if these are not the weights of a GPT-2, OptionError or
    OptionTypeError if inputs are not ids of its vocabulary, and ContextError if there are more
    inputs than rows of wpe.
    """
    params = {"wte": wte, "wpe": wpe, "blocks": blocks, "ln_f": ln_f}
    with GPT2.from_picogpt({"n_head": n_head}, params) as model:
        ids = check_ids(inputs, model.config.vocab_size, "inputs")
        _check_room(model, len(ids), 0)
        return model.logits(ids)


def generate(
    inputs: Ids, params: Mapping[str, Any], n_head: int, n_tokens_to_generate: int
) -> list[int]:
    """Decode greedily and return the n_tokens_to_generate new ids.

    As in picoGPT, a list of inputs is extended with the new ids, and no EOS token ends generation.
    Unlike picoGPT, this shows no progress bar and uses a KV cache. params and n_head are those of
    :func:`gpt2`.

    Raises the errors of gpt2; ContextError, before any work, also if the new tokens do not fit in
    the context; OptionError also if inputs are empty; NumericalError if a logit is not a number.
    An error leaves inputs unchanged.
    """
    n_new = integer("n_tokens_to_generate", n_tokens_to_generate, 0, INT32_MAX)
    with GPT2.from_picogpt({"n_head": n_head}, params) as model:
        ids = check_ids(inputs, model.config.vocab_size, "inputs")
        _check_room(model, len(ids), n_new)
        if n_new == 0:
            return []
        if len(ids) == 0:
            raise OptionError("inputs is empty; it must hold at least one id to continue from")
        new_ids = model.generate(ids, max_new_tokens=n_new, do_sample=False)
    if isinstance(inputs, list):
        inputs += new_ids
    return new_ids


def _check_room(model: GPT2, n_given: int, n_new: int) -> None:
    """Raise ContextError if the ids exceed the context. The last new id needs no position."""
    n_positions = model.config.n_positions
    if n_given + max(n_new - 1, 0) > n_positions:
        new = f" and {n_new} to generate" if n_new else ""
        raise ContextError(
            f"inputs has {n_given} ids{new}, more than wpe's {n_positions} positions hold; give "
            "fewer"
        )


def load_encoder_hparams_and_params(
    model_size: str, models_dir: str | os.PathLike[str]
) -> tuple[Tokenizer | MissingTokenizer, dict[str, int], dict[str, Any]]:
    """Load models_dir/model_size; return picoGPT's triple (encoder, hparams, params).

    The checkpoint is one of OpenAI's folders ("124M" has ``model.ckpt.*``, ``hparams.json``,
    ``encoder.json`` and ``vocab.bpe``) or any other checkpoint that gpt2c reads. Unlike picoGPT,
    this downloads nothing.

    encoder has encode(text) -> list[int] and decode(ids) -> str. hparams is {"n_vocab", "n_ctx",
    "n_embd", "n_head", "n_layer"}. params nests float32 arrays: {"wte": [n_vocab, n_embd],
    "wpe": [n_ctx, n_embd], "blocks": [{"ln_1": {"g", "b"}, "attn": {"c_attn": {"w", "b"},
    "c_proj"}, "ln_2", "mlp": {"c_fc", "c_proj"}}], "ln_f": {"g", "b"}}; matrices are [in, out].
    :func:`gpt2`, :func:`generate` and ``gpt2c.gen_text(prompt, n, model=(encoder, hparams,
    params))`` take these three.

    Raises CheckpointNotFoundError, CheckpointError, ConfigError or TokenizerError; ConfigError also
    for a model that picoGPT's format cannot express, for example one with another activation.
    """
    if not isinstance(model_size, str):
        raise OptionTypeError(f"model_size is {show(model_size)}; it must be a folder's name")
    if not isinstance(models_dir, str | os.PathLike) or not isinstance(os.fspath(models_dir), str):
        raise OptionTypeError(f"models_dir is {show(models_dir)}; it must be a str or a Path")
    path = Path(models_dir) / model_size
    if not os.path.exists(path):
        raise CheckpointNotFoundError(
            f"{path}: there is no such folder; expected a checkpoint, OpenAI's or another, with "
            "that name in models_dir"
        )
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        _check_expressible(config, path)
        tokenizer = tokenizer_of(checkpoint)
        hparams = {
            "n_vocab": config.vocab_size,
            "n_ctx": config.n_positions,
            "n_embd": config.n_embd,
            "n_head": config.n_head,
            "n_layer": config.n_layer,
        }
        params = to_picogpt(checkpoint)
    return Tokenizer.gpt2() if tokenizer is None else tokenizer, hparams, params


def _check_expressible(config: GPT2Config, path: Path) -> None:
    """Raise ConfigError for a configuration that picoGPT's format cannot express."""
    plain = GPT2Config()
    names = [
        "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
        "tie_word_embeddings",
    ]  # fmt: skip
    if config.activation != plain.activation:  # several names mean the same activation
        names.append("activation_function")
    for name in names:
        found, expected = getattr(config, name), getattr(plain, name)
        if found != expected:
            raise ConfigError(
                f"{path}: {name} is {found!r}; picoGPT's format supports only {expected!r}. Load "
                "the model with GPT2.from_pretrained"
            )
