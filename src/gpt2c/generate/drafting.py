"""Which drafts a text is generated with: tokens that are guessed cheaply and verified together.

What is verified is what the model itself chooses, so drafts never show in a text, nor in a bit of
its log-probabilities; they are a matter of speed alone (docs/drafts.md).
"""

from __future__ import annotations

from typing import Any, Final

from gpt2c.checks.options import integer
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import Drafts, EngineModel
from gpt2c.errors import OptionError, OptionTypeError

KINDS: Final = ("auto", "packing", "lookup")
MOST_DRAFTED: Final = 24  # tokens at a time
# Smaller weights are read from a processor's caches, and guessing costs what it saves.
_LEAST_BYTES: Final = 32 << 20


def checked_drafts(engine: EngineModel, draft: Any, n_tokens: Any) -> Drafts | None:
    """The drafts that the options `draft` and `num_assistant_tokens` ask for; None: none.

    draft is what the option is, a draft model by its engine's.

    Raises OptionError or OptionTypeError for what is none of GPT2.complete's, and where there is no
    compiled engine.
    """
    fixed = 0
    if n_tokens is not None:
        fixed = integer("num_assistant_tokens", n_tokens, 1, MOST_DRAFTED)
        if draft is None:
            raise OptionError("num_assistant_tokens is given without a draft, whose length it is")
    if draft is None:
        return None
    if isinstance(draft, str) and draft not in KINDS:
        raise OptionError(
            f"draft is {show(draft)}; it must be {', '.join(map(repr, KINDS))}, a gpt2c.GPT2, or "
            "None"
        )
    if engine.isa == "numpy":
        if draft == "auto":
            return None
        raise OptionError(f"draft is {show(draft)}, which runs on the compiled engine alone")
    if isinstance(draft, str):
        may_pack = engine.dtype in ("float32", "int8")
        if draft == "packing" and not may_pack:
            raise OptionError(
                f"draft is 'packing', the model in 4 bits, and the model is {engine.dtype} itself"
            )
        packs = draft == "packing" or (
            draft == "auto" and may_pack and engine.n_bytes >= _LEAST_BYTES
        )
        return Drafts(lookup=draft != "packing", packing=packs, n_tokens=fixed)
    return Drafts(lookup=True, model=_draft_model(engine, draft), n_tokens=fixed)


def _draft_model(engine: EngineModel, draft: Any) -> EngineModel:
    if not isinstance(draft, EngineModel):
        raise OptionTypeError(
            f"draft is {show(draft)}; it must be {', '.join(map(repr, KINDS))}, a gpt2c.GPT2, or "
            "None"
        )
    if draft.isa == "numpy":
        raise OptionError("draft is a model on NumPy; drafts run on the compiled engine alone")
    if draft.n_vocab != engine.n_vocab:
        raise OptionError(
            f"draft is a model of {draft.n_vocab} tokens; it must have this one's vocabulary, of "
            f"{engine.n_vocab}"
        )
    return draft
