"""Speculative decoding: how a call drafts tokens.

The model accepts only the drafted tokens that it would have chosen itself. So drafting changes the
speed, but neither the tokens nor the bits of their log-probabilities (docs/drafts.md).
"""

from __future__ import annotations

from typing import Any, Final

from gpt2c.checks.options import integer
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import DraftSettings, EngineModel
from gpt2c.errors import OptionError, OptionTypeError

DRAFT_NAMES: Final = ("auto", "packing", "lookup")  # the values of draft that are strings
_MAX_DRAFTED: Final = 24  # the max number of tokens drafted at a time
# The min size of a model that drafts with its 4-bit copy. Smaller weights stay in the processor's
# caches, where drafting costs as much as it saves.
_MIN_PACKING_BYTES: Final = 32 << 20


def check_drafts(engine: EngineModel, draft: Any, n_tokens: Any) -> DraftSettings | None:
    """Return the settings of drafting for the options `draft` and `num_assistant_tokens`.

    `draft` is a name, None, or the EngineModel of a draft model; `n_tokens` is the value of
    num_assistant_tokens. The result is None if no tokens are drafted: if `draft` is None, or
    "auto" on NumPy. Raises OptionError or OptionTypeError for invalid values, and for any other
    draft on NumPy.
    """
    n_fixed = 0
    if n_tokens is not None:
        n_fixed = integer("num_assistant_tokens", n_tokens, 1, _MAX_DRAFTED)
        if draft is None:
            raise OptionError(
                "num_assistant_tokens is given without a draft; leave num_assistant_tokens out, or "
                "pass a draft"
            )
    if draft is None:
        return None
    if isinstance(draft, str) and draft not in DRAFT_NAMES:
        raise OptionError(_wrong_draft(draft))
    if engine.isa == "numpy":
        if draft == "auto":
            return None
        raise OptionError(
            f"draft is {show(draft)}, which needs the compiled engine; it must be 'auto' or None"
        )
    if isinstance(draft, str):
        may_pack = engine.dtype in ("float32", "int8")
        if draft == "packing" and not may_pack:
            raise OptionError(
                f"draft is 'packing', a 4-bit copy of the model, but the model is {engine.dtype} "
                "itself; pass draft='lookup' or leave draft out"
            )
        uses_packing = draft == "packing" or (
            draft == "auto" and may_pack and engine.n_bytes >= _MIN_PACKING_BYTES
        )
        return DraftSettings(lookup=draft != "packing", packing=uses_packing, n_tokens=n_fixed)
    return DraftSettings(lookup=True, model=_draft_model(engine, draft), n_tokens=n_fixed)


def _draft_model(engine: EngineModel, draft: Any) -> EngineModel:
    """Return the draft model, after checking that it fits the model."""
    if not isinstance(draft, EngineModel):
        raise OptionTypeError(_wrong_draft(draft))
    if draft.isa == "numpy":
        raise OptionError("draft is a model on NumPy; it must be on the compiled engine")
    if draft.n_vocab != engine.n_vocab:
        raise OptionError(
            f"draft is a model with {draft.n_vocab} token ids; it must have this model's "
            f"vocabulary, with {engine.n_vocab}"
        )
    return draft


def _wrong_draft(draft: Any) -> str:
    """Return the message for a draft that is neither a name, a model nor None."""
    names = ", ".join(map(repr, DRAFT_NAMES))
    return f"draft is {show(draft)}; it must be {names}, a gpt2c.GPT2, or None"
