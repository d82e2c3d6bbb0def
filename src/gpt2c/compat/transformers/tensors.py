"""Check the tensors that transformers' generate accepts, and make the sequences it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt2c.checks.untrusted import show
from gpt2c.compat.transformers.options import MergedOptions, ResolvedOptions
from gpt2c.errors import ContextError, OptionError, OptionTypeError


def checked_ids(ids: Any, merged: MergedOptions) -> Any:
    """Return input_ids as int64 [n_prompts, n_tokens] on the CPU; for None, [[bos_token_id]].

    Raises OptionTypeError or OptionError for anything but a tensor of integers.
    """
    import torch

    if ids is None:
        return torch.tensor([[merged.bos_id]])
    if not isinstance(ids, torch.Tensor):
        hint = "call the tokenizer with return_tensors='pt'"
        if isinstance(ids, Mapping):
            hint = "pass a tokenizer's output as generate(**inputs)"
        raise OptionTypeError(
            f"input_ids is of type {type(ids).__name__}; it must be a tensor ({hint})"
        )
    _check_has_values("input_ids", ids)
    is_integer = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim != 2 or not is_integer:
        raise OptionTypeError(
            f"input_ids is a tensor of {ids.dtype} and shape {list(ids.shape)}; it must be "
            "integers [n_prompts, n_tokens]"
        )
    if ids.numel() == 0:
        raise OptionError(
            f"input_ids has the shape {list(ids.shape)}; there must be at least one token"
        )
    return ids.cpu().long()


def checked_mask(mask: Any, ids: Any, pad_id: int | None) -> Any:
    """Return the attention mask as bool [n_prompts, n_tokens] on the CPU; False means padding.

    Without a mask, each `pad_id` in `ids` is padding. Raises OptionTypeError or OptionError for an
    invalid mask, and OptionError for padding on the right.
    """
    import torch

    if mask is None:
        kept = torch.ones_like(ids, dtype=torch.bool) if pad_id is None else ids != pad_id
    elif not isinstance(mask, torch.Tensor):
        raise OptionTypeError(f"attention_mask is {show(mask)}; it must be a tensor")
    elif mask.shape != ids.shape:
        raise OptionError(
            f"attention_mask has the shape {list(mask.shape)}, and input_ids {list(ids.shape)}; "
            "they must be the same"
        )
    else:
        _check_has_values("attention_mask", mask)
        kept = mask.cpu() != 0
    # A row of only padding is an empty prompt.
    padded_right = (~kept[:, -1] & kept.any(dim=1)).nonzero()
    if len(padded_right):
        raise OptionError(
            f"row {int(padded_right[0])} of input_ids ends in padding: pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    return kept


def _check_has_values(name: str, tensor: Any) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.is_meta:
        raise OptionTypeError(
            f"{name} is a tensor of layout {tensor.layout} on {tensor.device}; it must be dense "
            "and hold values"
        )


def unpadded_prompts(
    ids: Any, mask: Any, n_positions: int, merged: MergedOptions
) -> list[list[int]]:
    """Return each prompt's ids without padding; an empty prompt becomes [bos_token_id].

    Raises ContextError for a prompt longer than the context, and OptionError for an empty prompt
    if bos_token_id is None.
    """
    prompts = [
        row[kept].tolist() if kept.any() else [merged.bos_id]
        for row, kept in zip(ids, mask, strict=True)
    ]
    for number, prompt in enumerate(prompts):
        if len(prompt) > n_positions:
            raise ContextError(
                f"row {number} of input_ids has {len(prompt)} tokens, more than the context's "
                f"{n_positions} positions; shorten it"
            )
    return prompts


def padded_sequences(ids: Any, new_ids: list[list[int]], resolved: ResolvedOptions) -> Any:
    """Return int64 [n_rows, n_tokens + n_new]: for each row its prompt, new ids and padding.

    There are num_return_sequences rows per prompt; n_new is the max number of new ids. Raises
    OptionError if padding is needed but no id is given for it.
    """
    import torch

    n_new = max(map(len, new_ids))
    if resolved.pad_id is None and any(len(row) < n_new for row in new_ids):
        raise OptionError(
            "pad_token_id and eos_token_id are None, and sequences have different lengths: pass "
            "pad_token_id to fill the shorter ones"
        )
    prompts = ids.repeat_interleave(resolved.n_sequences, dim=0)
    padded = [[*row, *[resolved.pad_id] * (n_new - len(row))] for row in new_ids]
    return torch.cat([prompts, ids.new_tensor(padded).reshape(len(prompts), n_new)], dim=1)
