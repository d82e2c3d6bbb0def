"""Reads and checks the configuration of a GPT-2 model: HF's ``config.json``."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.errors import ConfigError

_log = logging.getLogger(__name__)

# The max of each size. It is far above any GPT-2, and products of three sizes stay below 2**63.
MAX_SIZE: Final = 2**20
# The size of GPT-2's vocabulary, and that size rounded up to a multiple of 64, as in nanoGPT and
# llm.c.
GPT2_VOCAB_SIZE: Final = 50257
PADDED_VOCAB_SIZE: Final = 50304
_MAX_FILE_BYTES = 4 * 2**20  # large, because classifiers keep all their labels in config.json

# HF's names of activations -> the engine's names. `gelu_fast` rounds sqrt(2/pi) to 0.7978845608, an
# error of 4e-12, which vanishes in float32. The other tanh GELUs are the same formula, written
# differently.
ACTIVATIONS: Final = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

# HF's other names of keys (GPT2Config.attribute_map).
_ALIASES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}

# Keys that can change the architecture -> the values with which it stays GPT-2's. null is allowed
# for every key; any other value is an error.
_SUPPORTED_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "quantization_config": (),
    "compression_config": (),
    "pruned_heads": ({}, []),
    "per_layer_config": ({}, []),
    "layer_types": (),
    "attention_layers": (),
    "attention_types": (),
    "sliding_window": (),
    "attention_head_type": ("multihead",),
    "multi_query": (False,),
    "position_embedding_type": ("absolute",),
    "alibi": (False,),
    "use_alibi": (False,),
    "rotary": (False,),
    "rotary_dim": (),
    "rotary_pct": (),
    "rotary_emb_base": (),
    "rope_theta": (),
    "rope_scaling": (),
    "rope_parameters": (),
    "num_experts": (),
    "num_local_experts": (),
}

# Keys of HF's GPT2Config and PretrainedConfig, in new and old versions, that GPT2Config does not
# need: they concern training, defaults of generation, other heads and book-keeping. The exception
# is n_ctx, which _read_n_ctx reads.
_HARMLESS_KEYS = """
    model_type architectures transformers_version _name_or_path name_or_path _commit_hash
    torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss use_cache output_past return_dict
    output_attentions output_hidden_states chunk_size_feed_forward gradient_checkpointing
    attn_implementation _attn_implementation _attn_implementation_autoset
    attn_pdrop embd_pdrop resid_pdrop initializer_range n_ctx n_special predict_special_tokens
    summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout id2label label2id num_labels _num_labels problem_type finetuning_task
    task_specific_params tokenizer_class prefix is_decoder cross_attention_hidden_size
    sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty
"""
_HARMLESS = frozenset(_HARMLESS_KEYS.split())


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The architecture and the special tokens of a GPT-2 model, with HF's names and defaults.

    The constructor checks every field: sizes must be integers from 1 to 2**20 (`n_layer` may be 0),
    `n_embd` must be a multiple of `n_head` if there are blocks, the activation must be known, and
    `layer_norm_epsilon` must be from 0 to 1e38.

    A special token outside the vocabulary can be neither generated nor fed, so it becomes None (or
    is dropped from a tuple of EOS ids). This includes the default, 50256.

    Raises ConfigError, naming the field, the value found and what was expected.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False  # no effect: scores are float32 anyway
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        """Check every field, and convert integers of other types to int."""
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            if name != "n_inner" or self.n_inner is not None:
                minimum = 0 if name == "n_layer" else 1
                self._set_field(name, _checked_size(name, getattr(self, name), minimum))
        if self.n_layer > 0 and self.n_embd % self.n_head != 0:
            raise ConfigError(
                f"n_embd must be a multiple of n_head, found n_embd {self.n_embd} "
                f"and n_head {self.n_head}"
            )
        function = self.activation_function
        if not isinstance(function, str) or function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function must be one of {', '.join(sorted(ACTIVATIONS))}, "
                f"found {show(function)}"
            )
        self._set_field("layer_norm_epsilon", _checked_epsilon(self.layer_norm_epsilon))
        for name in (
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "tie_word_embeddings",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"{name} must be true or false, found {show(getattr(self, name))}"
                )
        self._set_field("bos_token_id", self._valid_id("bos_token_id", self.bos_token_id))
        self._set_field("pad_token_id", self._valid_id("pad_token_id", self.pad_token_id))
        self._set_field("eos_token_id", self._valid_eos_ids())

    @property
    def inner(self) -> int:
        """The width of the MLP's hidden layer: `n_inner`, or four times `n_embd`."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def activation(self) -> str:
        """The engine's name of the activation, one of ACTIVATIONS' values."""
        return ACTIVATIONS[self.activation_function]

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """All EOS ids as a set, which may be empty."""
        if self.eos_token_id is None:
            return frozenset()
        if isinstance(self.eos_token_id, tuple):
            return frozenset(self.eos_token_id)
        return frozenset((self.eos_token_id,))

    @property
    def n_parameters(self) -> int:
        """The number of weights; a tied head adds none."""
        width, inner = self.n_embd, self.inner
        embeddings = (self.vocab_size + self.n_positions) * width
        attention = 4 * width * width + 4 * width
        mlp = 2 * width * inner + inner + width
        block = attention + mlp + 4 * width  # with two layer norms
        head = 0 if self.tie_word_embeddings else self.vocab_size * width
        return embeddings + self.n_layer * block + 2 * width + head

    @classmethod
    def from_json(cls, path: str | Path) -> GPT2Config:
        """Read a ``config.json``.

        Raises CheckpointNotFoundError if there is no such file, and ConfigError, naming the file,
        if its contents are wrong.
        """
        path = Path(path)
        return cls.from_dict(
            read_json_object(path, limit=_MAX_FILE_BYTES, error=ConfigError), str(path)
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> GPT2Config:
        """Return a configuration made from HF's keys; missing keys get HF's defaults.

        Unknown keys are ignored with a warning in the log, because people keep notes in their
        configurations.

        Raises ConfigError for an invalid value, and for a key that changes the architecture. Every
        message begins with `where`.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: found {show(values)}, expected an object")
        _check_architecture(values, where)
        names = {field.name for field in fields(cls)}
        found: dict[str, Any] = {}
        unknown: list[str] = []
        for key, value in values.items():
            name = _ALIASES.get(key, key)
            if name in names:
                if name in found and found[name] != value:
                    raise ConfigError(
                        f"{where}: {name} is given twice, under two names: as "
                        f"{show(found[name])} and as {show(value)}"
                    )
                found[name] = value
            elif key not in _HARMLESS and key not in _SUPPORTED_VALUES:
                unknown.append(str(key))
        if unknown:
            _log.warning("%s: unknown keys are ignored: %s", where, show_list(sorted(unknown)))
        _read_n_ctx(values, found, where)
        try:
            config = cls(**found)
        except ConfigError as reason:
            raise ConfigError(f"{where}: {reason}") from None
        eos = found.get("eos_token_id")
        if eos is not None and config.eos_token_id is None and eos != []:
            _log.warning("%s: eos_token_id %s is not in the vocabulary", where, show(eos))
        return config

    @classmethod
    def from_sizes(cls, where: str, **values: Any) -> GPT2Config:
        """Return the configuration of a checkpoint that states little more than its sizes.

        BOS and EOS default to GPT-2's if the vocabulary has GPT-2's size, padded or not, and to
        None otherwise. Raises ConfigError; the message begins with `where`.
        """
        if values.get("vocab_size") not in (GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE):
            values = {"bos_token_id": None, "eos_token_id": None, **values}
        try:
            return cls(**values)
        except ConfigError as reason:
            raise ConfigError(f"{where}: {reason}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of HF's config.json: all fields, and the keys that name the class."""
        values: dict[str, Any] = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    def _set_field(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the only way to set a field of a frozen dataclass

    def _valid_id(self, name: str, value: object) -> int | None:
        """Return a token id as an int, or None if it is null or outside the vocabulary."""
        if value is None:
            return None
        id = _as_int(value)
        if id is None:
            raise ConfigError(f"{name} must be a token id or null, found {show(value)}")
        return id if 0 <= id < self.vocab_size else None

    def _valid_eos_ids(self) -> int | tuple[int, ...] | None:
        value: object = self.eos_token_id
        if not isinstance(value, list | tuple):
            return self._valid_id("eos_token_id", value)
        if None in value:
            raise ConfigError(
                f"eos_token_id must be null, a token id or a list of token ids, found {show(value)}"
            )
        ids = [self._valid_id("eos_token_id", item) for item in value]
        kept = tuple(dict.fromkeys(id for id in ids if id is not None))
        if len(kept) < 2:
            return kept[0] if kept else None
        return kept


def _as_int(value: object) -> int | None:
    """Return an int or a NumPy integer as an int; None for a bool or any other value."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _checked_size(name: str, value: object, minimum: int) -> int:
    size = _as_int(value)
    if size is None or not minimum <= size <= MAX_SIZE:
        raise ConfigError(
            f"{name} must be an integer from {minimum} to {MAX_SIZE}, found {show(value)}"
        )
    return size


def _checked_epsilon(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"layer_norm_epsilon must be a number, found {show(value)}")
    # Compare before converting: float() of a very large int raises OverflowError.
    if not 0 <= value <= 1e38 or not math.isfinite(value):
        raise ConfigError(
            f"layer_norm_epsilon must be finite and from 0 to 1e38, found {show(value)}"
        )
    return float(value)


def _check_architecture(values: Mapping[str, Any], where: str) -> None:
    if values.get("model_type", "gpt2") != "gpt2":
        raise ConfigError(f"{where}: model_type must be 'gpt2', found {show(values['model_type'])}")
    for key, allowed in _SUPPORTED_VALUES.items():
        value = values.get(key)
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{where}: {key} {show(value)} is not supported: it is not part of GPT-2's "
                "architecture, the only one that gpt2c runs"
            )


def _read_n_ctx(values: Mapping[str, Any], found: dict[str, Any], where: str) -> None:
    """Read n_ctx, the old name of n_positions, into `found`.

    If both are given, n_positions wins, because it is the length of wpe. transformers no longer
    reads n_ctx, so people forget to change it.
    """
    n_ctx = values.get("n_ctx")
    if n_ctx is None:
        return
    if "n_positions" not in found:
        found["n_positions"] = n_ctx
    elif found["n_positions"] != n_ctx:
        _log.warning(
            "%s: n_positions is %s, so n_ctx %s is ignored",
            where,
            show(found["n_positions"]),
            show(n_ctx),
        )


def tensor_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a model by its name, in the order of the forward pass."""
    width, inner = config.n_embd, config.inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.n_positions, width),
    }
    for block in range(config.n_layer):
        h = f"h.{block}."
        shapes[h + "ln_1.weight"] = (width,)
        shapes[h + "ln_1.bias"] = (width,)
        shapes[h + "attn.c_attn.weight"] = (width, 3 * width)
        shapes[h + "attn.c_attn.bias"] = (3 * width,)
        shapes[h + "attn.c_proj.weight"] = (width, width)
        shapes[h + "attn.c_proj.bias"] = (width,)
        shapes[h + "ln_2.weight"] = (width,)
        shapes[h + "ln_2.bias"] = (width,)
        shapes[h + "mlp.c_fc.weight"] = (width, inner)
        shapes[h + "mlp.c_fc.bias"] = (inner,)
        shapes[h + "mlp.c_proj.weight"] = (inner, width)
        shapes[h + "mlp.c_proj.bias"] = (width,)
    shapes["ln_f.weight"] = (width,)
    shapes["ln_f.bias"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes
