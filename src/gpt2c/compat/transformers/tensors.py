"""Check the tensors that transformers' generate takes, and make those that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.compat.transformers.options import Call, GenerateOptions
from gpt2c.errors import ContextError, OptionError, OptionTypeError


def checked_ids(ids: Any, merged: GenerateOptions) -> Any:
    """Return input_ids as int64 [n_prompts, n_tokens] on the CPU; without any, bos_token_id."""
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


def checked_mask(mask: Any, ids: Any, padding: int | None) -> Any:
    """Return bool [n_prompts, n_tokens], False for padding."""
    import torch

    if mask is None:
        kept = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
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
    wrong = (~kept[:, -1] & kept.any(dim=1)).nonzero()
    if len(wrong):
        raise OptionError(
            f"row {int(wrong[0])} of input_ids ends in padding: pad on the left "
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


def prompts_of(ids: Any, mask: Any, n_positions: int, merged: GenerateOptions) -> list[list[int]]:
    """Return each prompt without its padding; an empty one becomes bos_token_id.

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


def sequences_of(ids: Any, new_ids: list[list[int]], call: Call) -> Any:
    """Return int64 [n_rows, n_tokens + n_new]: prompts, new ids and padding."""
    import torch

    n_new = max(map(len, new_ids))
    if call.pad_id is None and any(len(row) < n_new for row in new_ids):
        raise OptionError(
            "pad_token_id and eos_token_id are None, and sequences have different lengths: pass "
            "pad_token_id to fill the shorter ones"
        )
    rows = ids.repeat_interleave(call.n_sequences, dim=0)
    filled = [[*row, *[call.pad_id] * (n_new - len(row))] for row in new_ids]
    return torch.cat([rows, ids.new_tensor(filled).reshape(len(rows), n_new)], dim=1)


def steps_of(
    rows: Sequence[Sequence[NDArray[np.float32]]], n_steps: int, n_vocab: int
) -> tuple[Any, ...]:
    """Regroup each row's logits [n_vocab] into a tensor [n_rows, n_vocab] per step.

    A row that has already ended has zeros.
    """
    import torch

    all_rows = np.zeros((n_steps, len(rows), n_vocab), dtype=np.float32)
    for number, row in enumerate(rows):
        for step, logits in enumerate(row):
            all_rows[step, number] = logits
    return tuple(torch.from_numpy(step) for step in all_rows)
