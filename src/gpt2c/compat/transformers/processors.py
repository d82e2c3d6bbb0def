"""Run transformers' own logits processors, for options that gpt2c's stages do not have.

transformers applies its processors in a fixed order. So when one of them must run here, all options
that change the logits of single ids become processors of transformers, in its order. Temperature
and the filters come after them, and stay with gpt2c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import INT32_MAX, integer, number
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.model import GPT2

# (ids int64 [1, n_tokens], scores float32 [1, n_vocab]) -> scores
Processor = Callable[[Any, Any], Any]
# Options that only transformers' processors have -> the values without effect, besides None.
PROCESSOR_OPTIONS: Final[Mapping[str, tuple[object, ...]]] = {
    "guidance_scale": (1.0,),
    "sequence_bias": (),
    "prefix_allowed_tokens_fn": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "begin_suppress_tokens": ([],),
}
# The options of gpt2c that must become processors too, because transformers applies them among the
# others or before a user's logits_processor; and the values without effect.
PENALTIES: Final[Mapping[str, tuple[object, ...]]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words": ([],),
    "min_new_tokens": (0,),
    "suppress_tokens": ([],),
}
_MAX_GUIDANCE: Final = 1e4


class ProcessorRecipe:
    """The processors of one call; `build` makes those of a row."""

    def __init__(
        self, given: Mapping[str, Any], penalties: Mapping[str, Any], width: int, max_new: int,
        end_ids: Sequence[int], n_vocab: int,
    ) -> None:  # fmt: skip
        """Take the options in PROCESSOR_OPTIONS and PENALTIES that have an effect.

        `width` is the number of columns of input_ids, with padding. Raises OptionError or
        OptionTypeError for a value that transformers refuses.
        """
        self._given, self._penalties = given, penalties
        self._width, self._max_new = width, max_new
        self._end_ids, self._n_vocab = list(end_ids), n_vocab
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if name in given:
                self._check_ids(name, given[name])
        if "begin_suppress_tokens" in given:
            self._check_ids("begin_suppress_tokens", given["begin_suppress_tokens"])
        if "exponential_decay_length_penalty" in given and not self._end_ids:
            raise OptionError(
                "exponential_decay_length_penalty is given without an EOS token, whose logit it "
                "raises; pass eos_token_id"
            )
        if "guidance_scale" in given:
            number("guidance_scale", given["guidance_scale"], -_MAX_GUIDANCE, _MAX_GUIDANCE)

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is on, which needs a second text for each row."""
        return "guidance_scale" in self._given

    def build(
        self, row: int, prompt: Sequence[int], gpt2: GPT2, unconditional: Sequence[int]
    ) -> list[Processor]:
        """Return the processors of a row, in transformers' order.

        `prompt` are the row's ids without padding. Guidance runs `gpt2` on `unconditional`, the ids
        of the row's other prompt, and then on the new ids.

        Raises OptionError for a value that a processor refuses.
        """
        processors: list[Processor] = []
        if self.is_guided:
            scale = float(self._given["guidance_scale"])
            processors.append(Guidance(scale, gpt2, len(prompt), unconditional))
        for name, make in self._makers(row, len(prompt)):
            try:
                processor = make()
                if name != "prefix_allowed_tokens_fn":  # the user's own code
                    self._try(processor, prompt)
            except (TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
                value = self._given.get(name, self._penalties.get(name))
                raise OptionError(
                    f"{name} is {show(value)}; transformers' processor refuses it: {error}"
                ) from None
            processors.append(processor)
        return processors

    def _try(self, processor: Processor, prompt: Sequence[int]) -> None:
        """Call a processor once: some check their values only then."""
        import torch

        processor(torch.tensor([list(prompt)]), torch.zeros(1, self._n_vocab))

    def _makers(self, row: int, n_prompt: int) -> list[tuple[str, Callable[[], Processor]]]:
        """Return the option and the maker of each processor that has an effect, in order."""
        import transformers.generation.logits_process as classes
        from torch import tensor

        given, penalties = self._given, self._penalties
        eos = tensor(self._end_ids)
        makers: dict[str, Callable[[], Processor]] = {
            "sequence_bias": lambda: classes.SequenceBiasLogitsProcessor(given["sequence_bias"]),
            "repetition_penalty": lambda: classes.RepetitionPenaltyLogitsProcessor(
                penalties["repetition_penalty"]
            ),
            "no_repeat_ngram_size": lambda: classes.NoRepeatNGramLogitsProcessor(
                penalties["no_repeat_ngram_size"]
            ),
            "bad_words": lambda: classes.NoBadWordsLogitsProcessor(
                [list(map(int, word)) for word in penalties["bad_words"]]
            ),
            "min_new_tokens": lambda: classes.MinNewTokensLengthLogitsProcessor(
                n_prompt, penalties["min_new_tokens"], eos
            ),
            "prefix_allowed_tokens_fn": lambda: classes.PrefixConstrainedLogitsProcessor(
                lambda _, ids: given["prefix_allowed_tokens_fn"](row, ids), 1
            ),
            "forced_bos_token_id": lambda: classes.ForcedBOSTokenLogitsProcessor(
                given["forced_bos_token_id"]
            ),
            "forced_eos_token_id": lambda: classes.ForcedEOSTokenLogitsProcessor(
                n_prompt + self._max_new, given["forced_eos_token_id"]
            ),
            "exponential_decay_length_penalty": lambda: classes.ExponentialDecayLengthPenalty(
                given["exponential_decay_length_penalty"], eos, n_prompt
            ),
            "suppress_tokens": lambda: classes.SuppressTokensLogitsProcessor(
                list(map(int, penalties["suppress_tokens"]))
            ),
            "begin_suppress_tokens": lambda: classes.SuppressTokensAtBeginLogitsProcessor(
                given["begin_suppress_tokens"], n_prompt + self._forces_bos
            ),
        }
        is_on = given.keys() | penalties.keys()
        if not self._forces_bos:
            is_on -= {"forced_bos_token_id"}
        if not self._end_ids:
            is_on -= {"min_new_tokens"}
        return [(name, make) for name, make in makers.items() if name in is_on]

    @property
    def _forces_bos(self) -> bool:
        """Whether the first new token is forced: transformers does it after a prompt of one."""
        return "forced_bos_token_id" in self._given and self._width == 1

    def _check_ids(self, name: str, value: Any) -> None:
        ids = value.tolist() if hasattr(value, "tolist") else value
        for id in ids if isinstance(ids, list | tuple) else [ids]:
            integer(name, id, 0, self._n_vocab - 1)


class Guidance:
    """Classifier-free guidance (Sanchez et al. 2023), as transformers computes it.

    The logits become s * (log p - log q) + log q, where s is the scale, p follows the prompt, and q
    follows another prompt with the same new tokens.
    """

    def __init__(
        self, scale: float, gpt2: GPT2, n_prompt: int, unconditional: Sequence[int]
    ) -> None:
        """`n_prompt` is the length of the prompt, and `unconditional` are the other one's ids."""
        self._scale, self._session = scale, gpt2.session()
        self._n_prompt, self._unconditional = n_prompt, list(unconditional)

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Return the guided scores [1, n_vocab] of ids [1, n_tokens]."""
        import torch

        wanted = [*self._unconditional, *ids[0, self._n_prompt :].tolist()]
        other = torch.from_numpy(self._logits_after(wanted).copy())[None]
        log_p, log_q = (torch.nn.functional.log_softmax(x, dim=-1) for x in (scores, other))
        return self._scale * (log_p - log_q) + log_q

    def _logits_after(self, ids: list[int]) -> NDArray[np.float32]:
        """Feed what the session lacks; several texts of a prompt take turns in it."""
        fed = self._session.ids
        n = next((i for i, pair in enumerate(zip(fed, ids, strict=False)) if pair[0] != pair[1]),
                 min(len(fed), len(ids)))  # fmt: skip
        n = min(n, len(ids) - 1)  # the last id is fed, because its logits are needed
        self._session.rollback(len(fed) - n)
        return self._session.feed(ids[n:])


def unconditional_prompts(
    negative: Any, mask: Any, prompts: Sequence[Sequence[int]], n_vocab: int
) -> list[list[int]]:
    """Return the ids from which guidance computes the other logits of each prompt.

    `negative` is negative_prompt_ids [n_prompts, n_tokens], and `mask` its attention mask, 0 for
    padding. Without them, each text begins with the prompt's last token, as in transformers.

    Raises OptionError or OptionTypeError.
    """
    import torch

    if negative is None:
        return [[int(prompt[-1])] for prompt in prompts]
    if not isinstance(negative, torch.Tensor) or negative.is_floating_point():
        raise OptionTypeError(
            f"negative_prompt_ids is {show(negative)}; it must be a tensor of integers "
            "[n_prompts, n_tokens]"
        )
    if negative.ndim != 2 or len(negative) != len(prompts) or not negative.shape[1]:
        raise OptionError(
            f"negative_prompt_ids has the shape {list(negative.shape)}; it must have a row for "
            f"each of the {len(prompts)} prompts"
        )
    kept = torch.ones_like(negative) if mask is None else mask
    if not isinstance(kept, torch.Tensor) or kept.shape != negative.shape:
        raise OptionError("negative_prompt_attention_mask must have negative_prompt_ids' shape")
    rows = [row[keep != 0].tolist() for row, keep in zip(negative, kept, strict=True)]
    for row in rows:
        if not row:
            raise OptionError("a row of negative_prompt_ids is only padding")
        for id in row:
            integer("an id in negative_prompt_ids", id, 0, min(n_vocab - 1, INT32_MAX))
    return rows
