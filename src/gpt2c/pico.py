"""For programs written for picoGPT: its way of loading a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpt2c.checkpoint import open_checkpoint, to_picogpt
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointNotFoundError, ConfigError, OptionTypeError
from gpt2c.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.tokenizer_files import tokenizer_of
from gpt2c.untrusted import show


def load_encoder_hparams_and_params(
    model_size: str, models_dir: str | os.PathLike[str]
) -> tuple[Tokenizer | MissingTokenizer, dict[str, int], dict[str, Any]]:
    """picoGPT's triple (encoder, hparams, params) of the checkpoint in models_dir/model_size.

    That is one of OpenAI's folders ("124M" has ``model.ckpt.*``, ``hparams.json``,
    ``encoder.json`` and ``vocab.bpe``) or any other checkpoint that gpt2c reads. Nothing is
    downloaded, unlike in picoGPT.

    encoder has encode(text) -> list[int] and decode(ids) -> str. hparams is {"n_vocab", "n_ctx",
    "n_embd", "n_head", "n_layer"}. params nests NumPy's float32 arrays: {"wte": [n_vocab, n_embd],
    "wpe": [n_ctx, n_embd], "blocks": [{"ln_1": {"g", "b"}, "attn": {"c_attn": {"w", "b"},
    "c_proj"}, "ln_2", "mlp": {"c_fc", "c_proj"}}], "ln_f": {"g", "b"}}; matrices are [in, out].
    ``gpt2c.gen_text(prompt, n, model=(encoder, hparams, params))`` runs them.

    Raises CheckpointNotFoundError, CheckpointError, ConfigError or TokenizerError; ConfigError also
    for a model that picoGPT's form has no words for, such as one with another activation.
    """
    if not isinstance(model_size, str):
        raise OptionTypeError(f"model_size is {show(model_size)}; it must be a folder's name")
    path = Path(models_dir) / model_size
    if not os.path.exists(path):
        raise CheckpointNotFoundError(
            f"{path}: there is no such folder; expected a checkpoint of that name, OpenAI's or "
            "another, in models_dir"
        )
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        _check_plain(config, path)
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


def _check_plain(config: GPT2Config, path: Path) -> None:
    plain = GPT2Config()
    for name in (
        "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
        "tie_word_embeddings",
    ):  # fmt: skip
        if getattr(config, name) != getattr(plain, name):
            raise ConfigError(
                f"{path}: {name} is {getattr(config, name)!r}; picoGPT's form is for "
                f"{getattr(plain, name)!r} alone. GPT2.from_pretrained takes it"
            )
    if config.activation != plain.activation:
        raise ConfigError(
            f"{path}: activation_function is {config.activation_function!r}; picoGPT's form is for "
            f"{plain.activation_function!r} alone. GPT2.from_pretrained takes it"
        )
