"""``gen_text``: one function that continues a prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gpt2c.errors import OptionTypeError
from gpt2c.forks import IMPORTING

if TYPE_CHECKING:
    from gpt2c.model import GPT2


class EncoderLike(Protocol):
    """What gen_text needs of a tokenizer, such as picoGPT's encoder or gpt2c's Tokenizer."""

    def encode(self, text: str, /) -> list[int]: ...  # noqa: D102

    def decode(self, ids: list[int], /) -> str: ...  # noqa: D102


def _model_class() -> type[GPT2]:
    """Return GPT2, which is imported at its first use, as in ``gpt2c/__init__.py``."""
    with IMPORTING:
        from gpt2c.model import GPT2

        return GPT2


@cache
def _embedded_model() -> GPT2:
    return _model_class().from_pretrained()


PicoTriple: TypeAlias = tuple[EncoderLike, Mapping[str, Any], Mapping[str, Any]]


def gen_text(
    prompt: str,
    n_tokens_to_generate: int = 40,
    *,
    model: GPT2 | str | os.PathLike[str] | PicoTriple | None = None,
) -> str:
    """Continue prompt greedily; return only the new text.

    model is a :class:`GPT2`, an argument of :meth:`GPT2.from_pretrained`, or picoGPT's triple
    (encoder, hparams, params). In the triple, encoder is any object with encode(str) -> list[int]
    and decode(list[int]) -> str, and params is a nested dict of arrays, packed again at each call.
    With a triple, as in picoGPT, no EOS token ends the text: it has n_tokens_to_generate tokens
    unless the context ends it.

    The default is the embedded model, which is loaded once and kept.

    Raises the errors of :meth:`GPT2.from_pretrained` and :meth:`GPT2.complete`.
    """
    if model is None:
        model = _embedded_model()
    model_class = _model_class()
    if isinstance(model, model_class):
        return model.generate(
            prompt, max_new_tokens=n_tokens_to_generate, do_sample=False, num_beams=1
        )
    if isinstance(model, str | os.PathLike):
        with model_class.from_pretrained(model) as loaded:
            return gen_text(prompt, n_tokens_to_generate, model=loaded)
    if not isinstance(model, tuple) or len(model) != 3:
        raise OptionTypeError(
            f"model is of type {type(model).__name__}; it must be a GPT2, a path or name, or a "
            "tuple (encoder, hparams, params)"
        )
    encoder, hparams, params = model
    with model_class.from_picogpt(hparams, params) as loaded:
        new_ids = loaded.generate([encoder.encode(prompt)], max_new_tokens=n_tokens_to_generate)
        return encoder.decode(new_ids[0])
