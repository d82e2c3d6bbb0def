"""State dicts of GPTs that are written with nn.Linear layers under names of their own.

One is the GPTModel of the book "Build a Large Language Model (From Scratch)" by Sebastian Raschka
(package llms-from-scratch), another minGPT's GPT before June 2022. Their files have no
configuration: the sizes come from the tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show, show_list
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError, ConfigError
from gpt2c.formats.raw_file import RawTensor
from gpt2c.formats.tensors import BackingFile, TensorSource
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors
from gpt2c.weights.checkpoint.layouts.joined import (
    joined,
    linear_part,
    plain_part,
    viewed,
    zeros_unless,
)
from gpt2c.weights.checkpoint.shared.hparams import HPARAMS_FILE, read_hparams
from gpt2c.weights.checkpoint.shared.names import bare_name

HEAD_WIDTH: Final = 64  # of every GPT-2 that OpenAI published


@dataclass(frozen=True)
class LinearLayout:
    """The names of a GPT's tensors.

    `modules` and `block_modules` map the names of modules to GPT-2's. `qkv` has the names of the
    three linear layers that GPT-2 keeps as one, attn.c_attn, in GPT-2's order.
    """

    kind: str  # what messages call it
    first: str  # the name of a tensor that only this layout has
    blocks: str  # the list of blocks
    modules: Mapping[str, str]
    block_modules: Mapping[str, str]
    qkv: tuple[str, str, str]
    mask: str  # a stored causal mask, which is not a weight
    activation: str
    head_width: int | None  # None: the number of heads must be given


BOOK: Final = LinearLayout(
    kind='the book "Build a Large Language Model (From Scratch)"',
    first="trf_blocks.0.norm1.",
    blocks="trf_blocks",
    modules={"tok_emb": "wte", "pos_emb": "wpe", "final_norm": "ln_f", "out_head": "lm_head"},
    block_modules={
        "norm1": "ln_1",
        "att.qkv": "attn.c_attn",  # of GPTModelFast
        "att.proj": "attn.c_proj",  # of GPTModelFast
        "att.out_proj": "attn.c_proj",
        "norm2": "ln_2",
        "ff.layers.0": "mlp.c_fc",
        "ff.layers.2": "mlp.c_proj",
    },
    qkv=("att.W_query", "att.W_key", "att.W_value"),
    mask="att.mask",
    activation="gelu_new",
    head_width=HEAD_WIDTH,
)
OLD_MINGPT: Final = LinearLayout(
    kind="minGPT before June 2022",
    first="blocks.0.attn.query.",
    blocks="blocks",
    modules={"tok_emb": "wte", "pos_emb": "wpe", "ln_f": "ln_f", "head": "lm_head"},
    block_modules={
        "ln1": "ln_1",
        "attn.proj": "attn.c_proj",
        "ln2": "ln_2",
        "mlp.0": "mlp.c_fc",
        "mlp.2": "mlp.c_proj",
    },
    qkv=("attn.query", "attn.key", "attn.value"),
    mask="attn.mask",
    activation="gelu",
    head_width=None,
)
_LAYOUTS: Final = (BOOK, OLD_MINGPT)
_LEAVES: Final = {"weight": "weight", "bias": "bias", "scale": "weight", "shift": "bias"}


def layout_of(bare_names: set[str]) -> LinearLayout | None:
    """Return the layout of a state dict with these names, without wrappers' prefixes, or None."""
    for layout in _LAYOUTS:
        if any(name.startswith(layout.first) for name in bare_names):
            return layout
    return None


def open_linear(
    layout: LinearLayout,
    stored: Mapping[str, RawTensor],
    path: Path,
    file: BackingFile,
    hparams: Mapping[str, Any] | None,
    *,
    is_tied: bool,
) -> Checkpoint:
    """Return the checkpoint of a state dict, `stored` by its names in the file; it owns the file.

    The number of heads comes from `hparams`, else from an hparams.json beside the file, else from
    the layout's width of a head. `is_tied` says that the head is the embedding, stored once.

    Raises CheckpointError or ConfigError, naming the file and what is wrong.
    """
    where = str(path)
    sources = _sources(layout, stored, where)
    if is_tied:
        sources.pop("lm_head.weight", None)
    wte, wpe = (_matrix(sources, name, layout, where) for name in ("wte.weight", "wpe.weight"))
    n_layer = 1 + max((int(name.split(".")[1]) for name in sources if name[:2] == "h."), default=-1)
    inner = sources.get("h.0.mlp.c_fc.bias")
    config = GPT2Config.from_sizes(
        where,
        vocab_size=wte[0],
        n_positions=wpe[0],
        n_embd=wte[1],
        # Fewer layers than tensors: the names of a million missing ones would fill the memory.
        n_layer=min(n_layer, len(sources)),
        n_head=_n_head(layout, wte[1], path, hparams),
        n_inner=None if inner is None or inner.shape[0] == 4 * wte[1] else inner.shape[0],
        activation_function=layout.activation,
        tie_word_embeddings="lm_head.weight" not in sources,
    )
    head = sources.get("lm_head.weight")
    if head is not None and head.shape != wte:
        raise CheckpointError(
            f"{where}: the head has shape {list(head.shape)}, expected {list(wte)}, a row for each "
            "token: this may be a classifier, which is not a language model"
        )
    width = config.n_embd
    biases: dict[str, tuple[int, ...]] = {
        f"h.{i}.attn.c_attn.bias": (3 * width,) for i in range(config.n_layer)
    }
    has_bias = any(name in sources for name in biases)
    tensors = checked_tensors(config, sources if has_bias else zeros_unless(sources, biases), where)
    return Checkpoint(config, tensors, path.parent, (file,))


def _sources(
    layout: LinearLayout, stored: Mapping[str, RawTensor], where: str
) -> dict[str, TensorSource]:
    """Return the tensors by GPT-2's names, with q, k and v joined and matrices as [in, out]."""
    block = re.compile(rf"{layout.blocks}\.(0|[1-9][0-9]{{0,6}})\.(.+)", re.ASCII)
    sources: dict[str, TensorSource] = {}
    thirds: dict[str, dict[int, tuple[str, RawTensor]]] = {}
    unknown: list[str] = []
    for full, source in stored.items():
        name = bare_name(full)
        match = block.fullmatch(name)
        module, _, leaf = (match[2] if match else name).rpartition(".")
        if match and match[2] == layout.mask:
            continue
        if name == "pos_emb" and len(source.shape) == 3 and source.shape[0] == 1:
            module, leaf, source = "pos_emb", "weight", replace(source, shape=source.shape[1:])
        prefix = f"h.{match[1]}." if match else ""
        to = (layout.block_modules if match else layout.modules).get(module)
        if match and module in layout.qkv and leaf in ("weight", "bias"):
            third = thirds.setdefault(f"{prefix}attn.c_attn.{leaf}", {})
            third[layout.qkv.index(module)] = full, source
        elif to is None or leaf not in _LEAVES or f"{prefix}{to}.{_LEAVES[leaf]}" in sources:
            unknown.append(full)
        else:
            gpt2_name = f"{prefix}{to}.{_LEAVES[leaf]}"
            part = linear_part(full, source) if match else plain_part(full, source)
            sources[gpt2_name] = viewed(
                gpt2_name, part if len(source.shape) == 2 else plain_part(full, source)
            )
    if unknown:
        raise CheckpointError(
            f"{where}: looks like a model of {layout.kind}, and has other tensors: "
            f"{show_list(sorted(unknown))}; this may be a variant with another architecture"
        )
    wte = sources.get("wte.weight")
    width = wte.shape[1] if wte is not None and len(wte.shape) == 2 else 0
    for name, parts in thirds.items():
        if len(parts) != 3:
            missing = [module for at, module in enumerate(layout.qkv) if at not in parts]
            raise CheckpointError(
                f"{where}: missing tensors: {show_list(missing)} of {show(name.split('.attn')[0])}"
            )
        in_order = [linear_part(*parts[at]) for at in range(3)]
        part_shape = (width, width) if name.endswith("weight") else (width,)
        sources[name] = joined(name, in_order, part_shape, where)
    return sources


def _matrix(
    sources: Mapping[str, TensorSource], name: str, layout: LinearLayout, where: str
) -> tuple[int, int]:
    source = sources.get(name)
    if source is None or len(source.shape) != 2:
        module = next(module for module, to in layout.modules.items() if to == name.split(".")[0])
        found = "none" if source is None else f"shape {list(source.shape)}"
        raise CheckpointError(
            f"{where}: tensor {show(module)}: found {found}, expected a matrix, as in a model of "
            f"{layout.kind}"
        )
    return source.shape[0], source.shape[1]


def _n_head(layout: LinearLayout, width: int, path: Path, hparams: Mapping[str, Any] | None) -> Any:
    """Return the number of heads that is given, beside the file, or follows from their width."""
    if hparams is None and os.path.lexists(path.parent / HPARAMS_FILE):
        hparams = read_hparams(path.parent)
    if hparams is not None and "n_head" in hparams:
        return hparams["n_head"]
    if layout.head_width is not None and width and width % layout.head_width == 0:
        return width // layout.head_width
    reason = (
        f"its width {width} is not a multiple of {layout.head_width}, the usual width of a head"
        if layout.head_width
        else "the file does not say it"
    )
    raise ConfigError(
        f"{path}: the number of heads of this model of {layout.kind} is unknown, because {reason}; "
        "pass n_head= (--n-head)"
    )
