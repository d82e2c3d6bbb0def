"""Maps the names of stored tensors to GPT-2's, and recognises tensors of other models.

GPT-2's names are "wte.weight", "wpe.weight", "h.0.ln_1.weight", ..., "ln_f.bias" and
"lm_head.weight". Wrappers such as DataParallel put prefixes before them; a name without prefixes is
called bare here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Final

from gpt2c.checks.untrusted import show_list

_log = logging.getLogger(__name__)

# Prefixes: attributes in which DataParallel, TRL and others keep the model that they wrap.
_PREFIXES: Final = ("module", "model", "transformer", "pretrained_model", "base_model")
# Parts that wrappers of submodules insert anywhere in a name.
_INSERTED: Final = (
    "_orig_mod",  # torch.compile
    "_forward_module",  # Lightning's Fabric
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
_PARTS: Final = ("h", "wte", "wpe", "ln_f", "lm_head")
_BODY = re.compile(r"(wte|wpe|ln_f|h\.[0-9]{1,7}\.[a-z0-9_]+(\.[a-z0-9_]+)?)\.(weight|bias)")

# Names in the state dicts of checkpoint/layouts, without prefixes.
_OTHER_LAYOUT = re.compile(
    r"(trf_blocks|blocks)\.[0-9]{1,7}\.(att|attn|ff|mlp|norm1|norm2|ln1|ln2)\.[A-Za-z0-9_.]+"
    r"|(tok_emb|final_norm|out_head)\.[a-z]+|pos_emb(\.weight)?|embed\.W_E|unembed\.[Wb]_U"
)

# The causal mask and its fill value, which old versions of transformers and nanoGPT stored. The
# regex must match the whole name: "h.0.attn.c_attn.bias" is a weight.
_BUFFER = re.compile(r"h\.(0|[1-9][0-9]{0,6})\.attn\.(bias|masked_bias)", re.ASCII)

# Tensors outside the blocks that would change what GPT-2 computes: another model's embeddings,
# norms and positions, and the tensors of an adapter or a tuned prompt.
_OTHER_MODEL = re.compile(
    r"(^|\.)(crossattention|cross_attn|ln_cross_attn|lora_|adapter|rotary|inv_freq|alibi"
    r"|relative_attention|rel_pos|prompt_enc|prompt_emb|prefix_enc)"
    r"|^(emb|embed\w*|ln_\w+|layer_?norm\w*|norm\w*|pos_\w+|position\w*|token_type\w*|wt\w+|wp\w+)\."
)


def bare_name(stored: str) -> str:
    """Return a stored name without the parts that wrappers add. It may be a name outside GPT-2.

    "module.transformer.wte.weight" becomes "wte.weight".
    """
    parts = [part for part in stored.split(".") if part not in _INSERTED]
    first = 0
    while first < len(parts) - 1 and parts[first] in _PREFIXES:
        first += 1
    return ".".join(parts[first:])


def is_gpt2_name(name: str) -> bool:
    """Return whether a bare name is in GPT-2's blocks, embeddings, final layer norm or head."""
    return name.split(".", 1)[0] in _PARTS


def is_body_name(name: str) -> bool:
    """Return whether a bare name is a tensor of GPT-2's body, which is everything but the head."""
    return _BODY.fullmatch(name) is not None


def is_other_layout_name(name: str) -> bool:
    """Return whether a bare name is a tensor in one of the layouts of checkpoint/layouts."""
    return _OTHER_LAYOUT.fullmatch(name) is not None and not name.endswith((".mask", ".IGNORE"))


def is_buffer(name: str, n_layer: int | None = None) -> bool:
    """Return whether a bare name is the stored causal mask of one of the n_layer blocks.

    n_layer None accepts any block. Otherwise the result is False for a block that the model does
    not have, because the mask of such a block is an unexpected tensor.
    """
    match = _BUFFER.fullmatch(name)
    return match is not None and (n_layer is None or int(match[1]) < n_layer)


def count_blocks(names: Iterable[str]) -> int:
    """Return the number of blocks that have an ln_1 among these bare names."""
    return sum(name.endswith(".ln_1.weight") for name in names)


def gpt2_names(stored: Iterable[str], where: str) -> dict[str, str]:
    """Map stored names to bare names, without the tensors that are safe to ignore.

    The tensors of other heads (a value head, a classifier) are safe to ignore; a warning, which
    begins with `where`, names them, as in transformers. Unknown names inside GPT-2's body and names
    that look like another model's are kept, so that later checks refuse them.
    """
    bare = {name: bare_name(name) for name in stored}
    body_prefixes = {_prefix(name, bare[name]) for name in bare if is_body_name(bare[name])}
    ignored = [
        name
        for name, short in bare.items()
        if not is_gpt2_name(short)
        and not _OTHER_MODEL.search(short)
        and not any(body and name.startswith(body) for body in body_prefixes)
    ]
    if ignored and body_prefixes:
        _log.warning(
            "%s: tensors that the GPT-2 language model does not have are left out: %s",
            where,
            show_list(sorted(ignored)),
        )
        for name in ignored:
            del bare[name]
    return bare


def _prefix(stored: str, bare: str) -> str:
    """Return the part of the stored name before the bare name; "" without such a part."""
    return stored.removesuffix(bare) if stored.endswith(bare) else ""
