"""State dicts of TransformerLens' HookedTransformer.

Its matrices of attention have an axis for the heads. By default, HookedTransformer.from_pretrained
folds the layer norms' weights and biases into the next matrices, which leaves layer norms without
parameters and gives the unembedding a bias, b_U [n_vocab]. GPT-2 has no such bias: this module
includes it in the last layer norm and the head.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError, ConfigError
from gpt2c.formats.pickle_values import describe, fields_of, has_fields
from gpt2c.formats.raw_file import RawTensor
from gpt2c.formats.tensors import BackingFile, TensorSource, check_finite
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.layouts.joined import Part, joined, plain_part, viewed
from gpt2c.weights.checkpoint.shared.names import bare_name
from gpt2c.weights.checkpoint.shared.views import WholeReadSource

_log = logging.getLogger(__name__)

FIRST: Final = "embed.W_E"
_TOP: Final = {
    "embed.W_E": "wte.weight",
    "pos_embed.W_pos": "wpe.weight",
    "ln_final.w": "ln_f.weight",
    "ln_final.b": "ln_f.bias",
}
_PLAIN: Final = {  # in a block: stored as GPT-2 stores them
    "ln1.w": "ln_1.weight",
    "ln1.b": "ln_1.bias",
    "attn.b_O": "attn.c_proj.bias",
    "ln2.w": "ln_2.weight",
    "ln2.b": "ln_2.bias",
    "mlp.W_in": "mlp.c_fc.weight",
    "mlp.b_in": "mlp.c_fc.bias",
    "mlp.W_out": "mlp.c_proj.weight",
    "mlp.b_out": "mlp.c_proj.bias",
}
_THIRDS: Final = ("Q", "K", "V")
_IGNORED: Final = ("attn.mask", "attn.IGNORE")
_BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,6})\.(.+)", re.ASCII)
# Settings of a HookedTransformerConfig that would change the logits, and the values that GPT-2 has.
_NEEDED: Final[Mapping[str, tuple[object, ...]]] = {
    "normalization_type": ("LN", "LNPre"),
    "positional_embedding_type": ("standard",),
    "attn_only": (False,),
    "attention_dir": ("causal",),
    "use_attn_scale": (True,),
    "use_local_attn": (False, None),
    "parallel_attn_mlp": (False,),
    "gated_mlp": (False,),
    "final_rms": (False,),
    "logits_soft_cap": (-1.0, -1, None),
    "attn_scores_soft_cap": (-1.0, -1, None),
}
_ACTIVATIONS: Final = {
    "gelu": "gelu", "gelu_new": "gelu_new", "gelu_fast": "gelu_fast", "relu": "relu",
    "silu": "silu", "gelu_pytorch_tanh": "gelu_pytorch_tanh", None: "gelu_new",
}  # fmt: skip
# The max ratio of the last layer norm's weights for which b_U is included: a larger one would let
# rounding errors grow too much.
_MAX_RATIO: Final = 1e3
_CHUNK: Final = 4096  # rows of the head that are changed at a time


def open_transformer_lens(
    stored: Mapping[str, RawTensor],
    path: Path,
    file: BackingFile,
    enclosing: tuple[Mapping[Any, Any], ...] = (),
) -> Checkpoint:
    """Return the checkpoint of a state dict, `stored` by its names in the file; it owns the file.

    `enclosing` has the dicts that contain the state dict; a HookedTransformerConfig in one of them
    is checked.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    where = str(path)
    settings = _settings(enclosing, where)
    names = {bare_name(full): full for full in stored}
    sources, attention = _sources(names, stored, where)
    width = _width(sources, where)
    n_head = _join_attention(sources, attention, names, stored, width, where)
    _complete_norms(sources, settings, width, where)
    sources["lm_head.weight"] = _head(names, stored, where)
    full = names.get("unembed.b_U")
    if full is not None and {"ln_f.weight", "ln_f.bias"} <= sources.keys():
        _absorb_head_bias(sources, stored[full], where)
    n_layer = sum(name.endswith(".ln_1.weight") for name in sources)
    fc = sources.get("h.0.mlp.c_fc.weight")
    if n_layer and fc is None:
        raise CheckpointError(f"{where}: has no MLPs, which GPT-2 needs (an attention-only model)")
    inner = fc.shape[1] if fc is not None and len(fc.shape) == 2 else 4 * width
    config = GPT2Config.from_sizes(
        where,
        vocab_size=sources["wte.weight"].shape[0],
        n_positions=sources["wpe.weight"].shape[0] if "wpe.weight" in sources else 1,
        n_embd=width,
        n_layer=n_layer,
        n_head=n_head,
        n_inner=None if inner == 4 * width else inner,
        activation_function=settings["act_fn"],
        layer_norm_epsilon=settings["eps"],
        scale_attn_by_inverse_layer_idx=settings["scale_attn_by_inverse_layer_idx"],
        tie_word_embeddings=False,
    )
    return Checkpoint(config, checked_tensors(config, sources, where), path.parent, (file,))


def _settings(enclosing: tuple[Mapping[Any, Any], ...], where: str) -> dict[str, Any]:
    """Return what the file's HookedTransformerConfig says, and GPT-2's values without one."""
    settings: dict[str, Any] = {}
    for values in enclosing:
        for key in ("config", "cfg"):
            if has_fields(values.get(key), ("n_layers", "d_model", "n_ctx")):
                settings = fields_of(values[key])
    for name, allowed in _NEEDED.items():
        # Compare only plain values: a file may hold anything here.
        value = settings.get(name, allowed[0])
        if not isinstance(value, str | bool | int | float | None) or value not in allowed:
            raise ConfigError(
                f"{where}: {name} of its HookedTransformerConfig is {describe(value)}, expected "
                f"{show(allowed[0])}, as in GPT-2"
            )
    activation = settings.get("act_fn")
    if not isinstance(activation, str | None) or activation not in _ACTIVATIONS:
        raise ConfigError(
            f"{where}: act_fn of its HookedTransformerConfig is {describe(activation)}, expected "
            f"one of {', '.join(sorted(filter(None, _ACTIVATIONS)))}"
        )
    by_layer = settings.get("scale_attn_by_inverse_layer_idx", False)
    return {
        "act_fn": _ACTIVATIONS[activation],
        "eps": settings.get("eps", 1e-5),
        "scale_attn_by_inverse_layer_idx": by_layer is True,
        "is_known": bool(settings),
    }


def _sources(
    names: Mapping[str, str], stored: Mapping[str, RawTensor], where: str
) -> tuple[dict[str, TensorSource], dict[int, dict[str, str]]]:
    """Return the tensors that need no joining, and by block the names of the others."""
    sources: dict[str, TensorSource] = {}
    attention: dict[int, dict[str, str]] = {}
    unknown = []
    for name, full in names.items():
        match = _BLOCK.fullmatch(name)
        short = match[2] if match else name
        to = (_PLAIN if match else _TOP).get(short)
        if (match and short in _IGNORED) or short in ("unembed.W_U", "unembed.b_U"):
            continue
        if to is not None:
            gpt2_name = f"h.{int(match[1])}.{to}" if match else to
            sources[gpt2_name] = viewed(gpt2_name, plain_part(full, stored[full]))
        elif match and short[:-1] in ("attn.W_", "attn.b_") and short[-1] in (*_THIRDS, "O"):
            attention.setdefault(int(match[1]), {})[short] = full
        else:
            unknown.append(full)
    if unknown:
        raise CheckpointError(
            f"{where}: looks like TransformerLens' model of another architecture than GPT-2's: "
            f"unexpected tensors: {show_list(sorted(unknown))}"
        )
    return sources, attention


def _width(sources: Mapping[str, TensorSource], where: str) -> int:
    wte = sources.get("wte.weight")
    if wte is None or len(wte.shape) != 2 or not wte.shape[1]:
        raise CheckpointError(f"{where}: tensor {FIRST!r}: expected [d_vocab, d_model]")
    return wte.shape[1]


def _join_attention(
    sources: dict[str, TensorSource],
    attention: Mapping[int, Mapping[str, str]],
    names: Mapping[str, str],
    stored: Mapping[str, RawTensor],
    width: int,
    where: str,
) -> int:
    """Add each block's c_attn and the weight of its c_proj; return the number of heads.

    W_Q, W_K and W_V are [n_head, n_embd, d_head], W_O is [n_head, d_head, n_embd], and the biases
    b_Q, b_K and b_V are [n_head, d_head].
    """
    n_head = 1
    for block, found in attention.items():
        wanted = [f"attn.{kind}_{third}" for kind in "Wb" for third in _THIRDS]
        if missing := [name for name in (*wanted, "attn.W_O") if name not in found]:
            raise CheckpointError(f"{where}: block {block}: missing tensors: {show_list(missing)}")
        n_head = stored[found["attn.W_Q"]].shape[0] if stored[found["attn.W_Q"]].shape else 0
        d_head = width // n_head if n_head and width % n_head == 0 else 0
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(wanted[:3], (n_head, width, d_head))
        shapes |= dict.fromkeys(wanted[3:], (n_head, d_head))
        shapes["attn.W_O"] = (n_head, d_head, width)
        for name, shape in shapes.items():
            if stored[found[name]].shape != shape or not d_head:
                raise CheckpointError(
                    f"{where}: tensor {show(found[name])}: found shape "
                    f"{list(stored[found[name]].shape)}, expected heads whose width is d_model "
                    f"{width} divided by their number, as in GPT-2"
                )
        weights = [
            Part(found[name], stored[found[name]], (width, width), _heads_to_columns)
            for name in wanted[:3]
        ]
        biases = [Part(found[name], stored[found[name]], (width,), np.ravel) for name in wanted[3:]]
        c_attn = f"h.{block}.attn.c_attn"
        sources[f"{c_attn}.weight"] = joined(f"{c_attn}.weight", weights, (width, width), where)
        sources[f"{c_attn}.bias"] = joined(f"{c_attn}.bias", biases, (width,), where)
        c_proj = f"h.{block}.attn.c_proj.weight"
        output = Part(found["attn.W_O"], stored[found["attn.W_O"]], (width, width), _rows_of_heads)
        sources[c_proj] = viewed(c_proj, output)
    return n_head


def _heads_to_columns(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [n_head, n_embd, d_head] as [n_embd, n_head * d_head]."""
    return array.transpose(1, 0, 2).reshape(array.shape[1], -1)


def _rows_of_heads(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [n_head, d_head, n_embd] as [n_head * d_head, n_embd]."""
    return array.reshape(-1, array.shape[2])


def _complete_norms(
    sources: dict[str, TensorSource], settings: Mapping[str, Any], width: int, where: str
) -> None:
    """Add the weights, ones, and the biases, zeros, of layer norms that were folded away."""
    n_layer = 1 + max((int(name.split(".")[1]) for name in sources if name[:2] == "h."), default=-1)
    n_layer = min(n_layer, len(sources))  # a file may name a block of any number
    norms = [f"h.{block}.{norm}" for block in range(n_layer) for norm in ("ln_1", "ln_2")]
    names = [f"{norm}.{leaf}" for norm in [*norms, "ln_f"] for leaf in ("weight", "bias")]
    present = [name in sources for name in names]
    if all(present):
        return
    if any(present):
        return  # the error about missing tensors names them
    if not settings["is_known"]:
        _log.warning(
            "%s: has no weights of layer norms; it is loaded as a model whose layer norms were "
            "folded (normalization_type 'LNPre'), and would be wrong for a model without layer "
            "norms",
            where,
        )
    for name in names:
        fill = 1.0 if name.endswith("weight") else 0.0
        sources[name] = _constant(name, width, fill)


def _constant(name: str, width: int, fill: float) -> TensorSource:
    return WholeReadSource(name, (width,), "F32", lambda: np.full(width, fill, dtype=np.float32))


def _head(names: Mapping[str, str], stored: Mapping[str, RawTensor], where: str) -> TensorSource:
    """Return lm_head.weight [n_vocab, n_embd] from W_U [n_embd, n_vocab]."""
    full = names.get("unembed.W_U")
    if full is None or len(stored[full].shape) != 2:
        raise CheckpointError(f"{where}: tensor 'unembed.W_U': expected [d_model, d_vocab]")
    part = Part(full, stored[full], stored[full].shape[::-1], np.transpose)
    return viewed("lm_head.weight", part)


def _absorb_head_bias(sources: dict[str, TensorSource], head_bias: RawTensor, where: str) -> None:
    """Change the head and the bias of the last layer norm so that they include b_U [n_vocab].

    A normalised vector x [n_embd] has the sum 0. With the norm's weight w, the vectors w * x are
    thus orthogonal to 1 / w: adding a multiple of 1 / w to any row of the head changes no logit,
    but for what the norm's bias contributes. Adding w to that bias makes it contribute, and c / n
    times 1 / w is added to the head's rows, with the c [n_vocab] that gives b_U.

    Raises CheckpointError for a wrong shape; reading raises it if a weight of the norm is 0.
    """
    head, weight, bias = (sources[name] for name in ("lm_head.weight", "ln_f.weight", "ln_f.bias"))
    if head_bias.shape != head.shape[:1] or not weight.shape == head.shape[1:] == bias.shape:
        raise CheckpointError(
            f"{where}: tensor 'unembed.b_U': found shape {list(head_bias.shape)}, expected "
            f"{list(head.shape[:1])}"
        )

    def read(source: TensorSource | RawTensor) -> NDArray[np.float64]:
        values = source.read(0, source.shape[0])
        check_finite(values, source.name, 0, where)
        return values.astype(np.float64)

    def new_bias() -> NDArray[np.float32]:
        if not read(head_bias).any():
            return bias.read(0, bias.shape[0])
        return (read(bias) + read(weight)).astype(np.float32)

    def new_head() -> NDArray[np.float32]:
        rows, wanted = head.read(0, head.shape[0]), read(head_bias)
        if not wanted.any():
            return rows
        check_finite(rows, head.name, 0, where)
        w, n = read(weight), len(read(weight))
        if np.abs(w).min() * _MAX_RATIO < np.abs(w).max():
            raise CheckpointError(
                f"{where}: the unembedding has a bias (b_U), which GPT-2 does not have, and the "
                "last layer norm has weights too near to 0 to include it; expected b_U of zeros"
            )
        scale = 1 + (read(bias) / w).sum() / n
        if abs(scale) < 1 / _MAX_RATIO:
            raise CheckpointError(f"{where}: b_U cannot be included in the last layer norm's bias")
        for at in range(0, len(rows), _CHUNK):
            part = rows[at : at + _CHUNK].astype(np.float64)
            c = (wanted[at : at + _CHUNK] - part @ w) / scale
            rows[at : at + _CHUNK] = part + c[:, None] / n / w
        return rows

    sources["ln_f.bias"] = WholeReadSource(bias.name, bias.shape, "F32", new_bias)
    sources["lm_head.weight"] = WholeReadSource(head.name, head.shape, "F32", new_head)
