"""Which drafts a text is generated with: tokens that are guessed cheaply and verified together.

What is verified is what the model itself chooses, so drafts never show in a text, nor in a bit of
its log-probabilities; they are a matter of speed alone (docs/drafts.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gpt2c.checks.options import integer
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import Drafts
from gpt2c.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from gpt2c.model import GPT2

KINDS: Final = ("auto", "packing", "lookup")
MOST_DRAFTED: Final = 24  # tokens at a time
# Smaller weights are read from a processor's caches, and guessing costs what it saves.
_LEAST_BYTES: Final = 32 << 20


def checked_drafts(model: GPT2, draft: Any, n_tokens: Any) -> Drafts | None:
    """The drafts that the options `draft` and `num_assistant_tokens` ask for; None: none.

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
    if model.backend == "numpy":
        if draft == "auto":
            return None
        raise OptionError(f"draft is {show(draft)}, which runs on the compiled engine alone")
    if isinstance(draft, str):
        may_pack = model.dtype in ("float32", "int8")
        if draft == "packing" and not may_pack:
            raise OptionError(
                f"draft is 'packing', the model in 4 bits, and the model is {model.dtype} itself"
            )
        packs = draft == "packing" or (
            draft == "auto" and may_pack and model.n_bytes >= _LEAST_BYTES
        )
        return Drafts(lookup=draft != "packing", packing=packs, n_tokens=fixed)
    return Drafts(lookup=True, model=_other_engine(model, draft), n_tokens=fixed)


def _other_engine(model: GPT2, draft: Any) -> Any:
    from gpt2c.model import GPT2

    if not isinstance(draft, GPT2):
        raise OptionTypeError(
            f"draft is {show(draft)}; it must be {', '.join(map(repr, KINDS))}, a gpt2c.GPT2, or "
            "None"
        )
    if draft.backend == "numpy":
        raise OptionError("draft is a model on NumPy; drafts run on the compiled engine alone")
    if draft.config.vocab_size != model.config.vocab_size:
        raise OptionError(
            f"draft is a model of {draft.config.vocab_size} tokens; it must have this one's "
            f"vocabulary, of {model.config.vocab_size}"
        )
    return draft._engine
