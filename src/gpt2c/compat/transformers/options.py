"""Map the options of transformers' generate to those of GPT2.complete, without torch.

Here "transformers" means GenerationMixin.generate and GenerationConfig of version 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gpt2c.checks.options import INT32_MAX, did_you_mean, flag, integer, is_integer, items
from gpt2c.checks.untrusted import show
from gpt2c.compat.transformers.processors import PENALTIES, PROCESSOR_OPTIONS
from gpt2c.config import GPT2Config
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.generate.beam_options import NEUTRAL
from gpt2c.generate.generation_config import IGNORED, NOT_SUPPORTED, SAMPLING, has_effect

# Options with the same name and meaning in GPT2.complete.
_SAME: Final = ("repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "max_time")
# Options of beam search -> the values without effect.
_BEAM_OPTIONS: Final[Mapping[str, tuple[object, ...]]] = {
    name: (neutral,) for name, neutral in NEUTRAL.items() if name != "num_beams"
}
# Options that MergedOptions converts one by one.
_CONVERTED = """
    max_length max_new_tokens min_length min_new_tokens do_sample num_beams bad_words_ids
    stop_strings bos_token_id eos_token_id pad_token_id return_dict_in_generate output_scores
    output_logits renormalize_logits num_return_sequences output_hidden_states negative_prompt_ids
    negative_prompt_attention_mask
"""
_SUPPORTED: Final = frozenset(_CONVERTED.split()) | {
    *SAMPLING, *_SAME, *_BEAM_OPTIONS, *PROCESSOR_OPTIONS
}  # fmt: skip
# Options that gpt2c lacks -> the values without effect, which are accepted besides None.
_UNSUPPORTED: Final[Mapping[str, tuple[object, ...]]] = {
    **{name: neutral for name, neutral in NOT_SUPPORTED.items() if name not in _SUPPORTED},
    "remove_invalid_values": (False,),
    "output_attentions": (False,),
    "use_mtp": (False,),
    "assistant_model": (),
    "assistant_tokenizer": (),
    "custom_generate": (),
    "position_ids": (),
    "token_type_ids": (),
    "past_key_values": (),
    "cache": (),
    "inputs_embeds": (),
}


@dataclass(frozen=True)
class ResolvedOptions:
    """The options of one call of transformers' generate, resolved for its prompts' length.

    options
        Options of GPT2.complete, except seeds, EOS tokens and stop strings.
    eos_ids
        The ids of the EOS tokens; some may not be in the vocabulary.
    pad_id
        The id that pads shorter rows on the right: pad_token_id, else the first EOS id, else None.
    stop_strings, returns_dict, output_scores, output_logits, output_hidden_states
        Options of transformers that GPT2.complete does not get. returns_dict is
        return_dict_in_generate.
    for_processors
        The options that have an effect and that only transformers' processors have.
    negative_prompt
        negative_prompt_ids and negative_prompt_attention_mask, as given.
    """

    options: Mapping[str, Any]
    eos_ids: tuple[int, ...]
    pad_id: int | None
    stop_strings: tuple[str, ...]
    returns_dict: bool
    output_scores: bool
    output_logits: bool
    output_hidden_states: bool
    for_processors: Mapping[str, Any]
    negative_prompt: tuple[Any, Any]

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled."""
        return bool(self.options["do_sample"])

    @property
    def n_sequences(self) -> int:
        """The number of sequences per prompt."""
        return int(self.options["num_return_sequences"])

    @property
    def n_beams(self) -> int:
        """The number of beams; 1 without beam search."""
        return int(self.options.get("num_beams", 1))

    def end_ids(self, n_vocab: int) -> list[int]:
        """Return the EOS ids that are in a vocabulary of n_vocab ids."""
        return sorted({id for id in self.eos_ids if 0 <= id < n_vocab})

    def penalties(self) -> dict[str, Any]:
        """Return the options in PENALTIES that have an effect."""
        return {
            name: self.options[name]
            for name, neutral in PENALTIES.items()
            if has_effect(self.options, name, neutral)
        }

    def without_penalties(self) -> ResolvedOptions:
        """Return the options without those in PENALTIES."""
        kept = {name: value for name, value in self.options.items() if name not in PENALTIES}
        return replace(self, options=kept)


class MergedOptions:
    """The options of one call of transformers' generate, merged with all defaults."""

    def __init__(
        self,
        given: Mapping[str, Any],
        config: Mapping[str, Any],
        model_config: Mapping[str, Any],
        defaults: Mapping[str, Any],
    ) -> None:
        """Merge options; earlier arguments take precedence over later ones.

        `given` are the call's own options, `config` is the call's generation_config, and
        `model_config` the model's; both hold only values that differ from an empty
        GenerationConfig. `defaults` are transformers' defaults. An option that `given` sets to None
        is off, whatever the configurations say; a max_length of None counts as not given.

        Raises OptionTypeError for an unknown option, and OptionError for one that gpt2c lacks.
        """
        known = _SUPPORTED | IGNORED | _UNSUPPORTED.keys()
        for name in given:
            if name not in known:
                raise OptionTypeError(
                    f"generate has no option {show(name)}{did_you_mean(name, known)}"
                )
        self._values: dict[str, Any] = {**defaults, **model_config, **config, **given}
        self._default_max_new_tokens = int(defaults["max_length"])
        # An explicit max_length also counts the prompt, but transformers' default counts only new
        # tokens. So the two are separate attributes. None in one source means: use the next source.
        lengths = (source.get("max_length") for source in (given, config, model_config))
        self._max_length = next((n for n in lengths if n is not None), None)
        for name, neutral in _UNSUPPORTED.items():
            if has_effect(self._values, name, neutral):
                raise OptionError(
                    f"{name} is {show(self._values[name])}; gpt2c does not support this option of "
                    "transformers' generate: leave it out, or call transformers' own model"
                )

    @property
    def bos_id(self) -> int:
        """The first token of an empty prompt. Raises OptionError if bos_token_id is None."""
        if (id := self._values.get("bos_token_id")) is None:
            raise OptionError(
                "bos_token_id is None and the prompt is empty; pass bos_token_id or a prompt"
            )
        return integer("bos_token_id", id, 0, INT32_MAX)

    @property
    def prompt_pad_id(self) -> int | None:
        """The id that is padding in prompts without an attention_mask; None if no id is.

        It is pad_token_id, unless that is also an EOS token.
        """
        pad_id = self._pad_id()
        return None if pad_id is None or pad_id in self._eos_ids() else pad_id

    def resolve(self, n_prompt: int, config: GPT2Config) -> ResolvedOptions:
        """Resolve the options for prompts of n_prompt tokens, including padding.

        Raises OptionError or OptionTypeError naming the option, its value and its range.
        """
        v, eos = self._values, self._eos_ids()
        options: dict[str, Any] = {name: v[name] for name in _SAME if v.get(name) is not None}
        n = v.get("num_return_sequences")
        options["num_return_sequences"] = (
            1 if n is None else integer("num_return_sequences", n, 1, INT32_MAX)
        )
        max_new = self._max_new_tokens(n_prompt, config.n_positions)
        options["max_new_tokens"] = max_new
        # transformers allows a min above the max: then no EOS token ends a sequence.
        options["min_new_tokens"] = min(self._min_new_tokens(n_prompt), max_new)
        options |= self._sampling_options() | self._beam_options()
        if words := self._bad_words(eos):
            options["bad_words"] = words
        pad_id = self._pad_id()
        resolved = ResolvedOptions(
            options=options,
            eos_ids=eos,
            pad_id=eos[0] if pad_id is None and eos else pad_id,
            stop_strings=_stop_strings(v.get("stop_strings")),
            returns_dict=self._flag("return_dict_in_generate"),
            output_scores=self._flag("output_scores"),
            output_logits=self._flag("output_logits"),
            output_hidden_states=self._flag("output_hidden_states"),
            for_processors={
                name: v[name]
                for name, neutral in PROCESSOR_OPTIONS.items()
                if has_effect(v, name, neutral)
            },
            negative_prompt=(v.get("negative_prompt_ids"), v.get("negative_prompt_attention_mask")),
        )
        # Renormalising subtracts a constant from all logits, which changes only the scores of beams
        # and output_scores.
        shows_scores = resolved.n_beams > 1 or resolved.output_scores
        if self._flag("renormalize_logits") and shows_scores:
            raise OptionError(
                "renormalize_logits is True; gpt2c does not support it with beam search or "
                "output_scores"
            )
        return resolved

    def _flag(self, name: str) -> bool:
        value = self._values.get(name)
        return False if value is None else flag(name, value)

    def _max_new_tokens(self, n_prompt: int, n_positions: int) -> int:
        if (n := self._values.get("max_new_tokens")) is not None:
            return integer("max_new_tokens", n, 1, INT32_MAX)
        if self._max_length is None:
            limit = min(n_prompt + self._default_max_new_tokens, n_positions)
            what = "the context"
        else:
            limit, what = integer("max_length", self._max_length, 1, INT32_MAX), "max_length"
        if n_prompt >= limit:
            raise OptionError(
                f"input_ids are {n_prompt} tokens long, and {what}, which counts them, is {limit}: "
                "nothing can be generated; pass max_new_tokens"
            )
        return limit - n_prompt

    def _min_new_tokens(self, n_prompt: int) -> int:
        if (n := self._values.get("min_new_tokens")) is not None:
            return integer("min_new_tokens", n, 0, INT32_MAX)
        n = self._values.get("min_length")
        return 0 if n is None else max(integer("min_length", n, 0, INT32_MAX) - n_prompt, 0)

    def _sampling_options(self) -> dict[str, Any]:
        """Return the sampling options; if do_sample is off, only do_sample."""
        v = self._values
        if not self._flag("do_sample"):
            return {"do_sample": False}
        if has_effect(v, "temperature", (1.0,)) and v["temperature"] == 0:
            raise OptionError(
                "temperature is 0; it must be positive. For greedy decoding pass do_sample=False"
            )
        given = {
            name: v[name] for name, neutral in SAMPLING.items() if has_effect(v, name, neutral)
        }
        return {"do_sample": True, **given}

    def _beam_options(self) -> dict[str, Any]:
        """Return the options of beam search; an empty dict if there is only one beam."""
        v = self._values
        n_beams = v.get("num_beams")
        if n_beams is None or integer("num_beams", n_beams, 1, INT32_MAX) == 1:
            return {}
        if self._flag("do_sample"):
            raise OptionError(
                f"do_sample is True and num_beams is {n_beams}; gpt2c's beam search does not "
                "sample: pass do_sample=False, or num_beams=1"
            )
        given = {
            name: v[name] for name, neutral in _BEAM_OPTIONS.items() if has_effect(v, name, neutral)
        }
        return {"num_beams": n_beams, **given}

    def _bad_words(self, eos: tuple[int, ...]) -> list[Any]:
        """Return the bad words except single EOS tokens, as in transformers."""
        given = self._values.get("bad_words_ids")
        if given is None:
            return []
        name, what = "bad_words_ids", "lists of token ids"
        words = [items(name, word, what) for word in items(name, given, what)]
        return [word for word in words if not (len(word) == 1 and word[0] in eos)]

    def _pad_id(self) -> int | None:
        id = self._values.get("pad_token_id")
        return None if id is None else integer("pad_token_id", id, -INT32_MAX, INT32_MAX)

    def _eos_ids(self) -> tuple[int, ...]:
        """Return the EOS ids. Some models have a negative id, which is never generated."""
        given = self._values.get("eos_token_id")
        if given is None:
            return ()
        if hasattr(given, "tolist"):  # an array or a tensor
            given = given.tolist()
        ids = [given] if is_integer(given) else items("eos_token_id", given, "token ids")
        return tuple(integer("eos_token_id", id, -INT32_MAX, INT32_MAX) for id in ids)


def _stop_strings(given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    strings = [given] if isinstance(given, str) else items("stop_strings", given, "strings")
    for string in strings:
        if not isinstance(string, str):
            raise OptionTypeError(f"stop_strings has {show(string)}; it must hold strings")
        if not string:
            raise OptionError("stop_strings has an empty string, which every text contains")
    return tuple(strings)
