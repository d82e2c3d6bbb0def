"""Hints for unknown options, from the names that other libraries give to gpt2c's options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from gpt2c.checks.options import did_you_mean

# gpt2c's name of each option -> names of this option or of similar ones in OpenAI's API,
# transformers, llama.cpp, Ollama, vLLM, CTranslate2, lm-evaluation-harness, gpt-2-simple, OpenAI's
# gpt-2 and picoGPT.
_ALIASES: Final = {
    "max_new_tokens": "max_tokens max_length max_completion_tokens max_output_tokens max_gen_toks "
    "max_gen_len num_predict n_predict num_tokens n_tokens length gen_length "
    "n_tokens_to_generate max_generation_tokens",
    "min_new_tokens": "min_tokens min_length min_generation_tokens",
    "stop_strings": "stop stop_sequences stop_sequence stop_words stopping_strings until "
    "truncate_text",
    "stop_token_ids": "stop_tokens stop_token",
    "eos_token_id": "eos_token_ids eos_token end_token eos_id",
    "num_return_sequences": "n n_samples nsamples num_samples num_hypotheses num_texts",
    "repetition_penalty": "repeat_penalty rep_pen",
    "num_beams": "beam_size beam_width n_beams beams",
    "temperature": "temp",
    "typical_p": "typical typ_p",
    "mirostat_tau": "mirostat mirostat_ent mirostat_mode",
    "mirostat_eta": "mirostat_lr",
    "seed": "random_seed random_state rng_seed sampling_seed",
    "bad_words": "bad_words_ids banned_tokens banned_strings",
    "suppress_tokens": "suppress_sequences begin_suppress_tokens banned_token_ids",
    "logit_bias": "sequence_bias logits_bias",
    "logits_processor": "logits_processors",
    "callback": "stopping_criteria on_token",
    "max_time": "timeout time_limit",
    "batch_size": "max_batch_size n_batch",
    "num_assistant_tokens": "num_draft_tokens num_speculative_tokens prompt_lookup_num_tokens",
    "draft": "assistant_model draft_model speculative_model",
    "no_repeat_ngram_size": "no_repeat_ngram no_repeat_ngrams",
    "truncate": "truncation truncate_prompt_tokens",
    "logprobs": "output_scores output_logits top_logprobs",
}
_GPT2C_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {alias: gpt2c_name for gpt2c_name, aliases in _ALIASES.items() for alias in aliases.split()}
)

# Names of options that have no equivalent in gpt2c -> what to do instead.
_INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "stream": "use the method stream",
        "streamer": "use the method stream",
        "return_full_text": "only the new text is returned",
        "use_cache": "the KV cache is always used",
        "attention_mask": "prompts of different lengths need no padding",
        "pad_token_id": "prompts of different lengths need no padding",
        "pad_token": "prompts of different lengths need no padding",
    }
)
# Differences between an alias and gpt2c's option, to append to the option's name.
_NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_length": ", which does not count the prompt",
        "min_length": ", which does not count the prompt",
    }
)


def option_hint(name: str, known: Collection[str], of_complete: Collection[str] = ()) -> str:
    """Return the hint to append to a message about an unknown option; empty if there is no hint.

    `known` are the options of the called method. `of_complete` are the options of ``complete``,
    which the hint mentions if the called method lacks the option.
    """
    normalized = name.lower().replace("-", "_")
    gpt2c_name = _GPT2C_NAMES.get(normalized, normalized)
    note = _NOTES.get(normalized, "")
    if gpt2c_name in known and gpt2c_name != name:
        return f"; did you mean {gpt2c_name}{note}?"
    if gpt2c_name in of_complete and gpt2c_name not in known:
        if gpt2c_name == name:
            return ", but complete() accepts it"
        return f"; complete() accepts {gpt2c_name}{note}"
    if normalized in _INSTEAD:
        return f"; {_INSTEAD[normalized]}"
    return did_you_mean(name, known)


# gpt2c's options whose flag on the command line has another name.
_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {"stop_strings": "--stop", "return_full_text": "--echo", "overflow": "--slide"}
)


def flag_hint(flag: str, known: Collection[str]) -> str:
    """Return the hint for an unknown flag, such as "--max_tokens=5"; empty if there is no hint.

    `known` are the command's flags.
    """
    flag = flag.partition("=")[0]
    normalized = flag.lstrip("-").lower().replace("-", "_")
    gpt2c_name = _GPT2C_NAMES.get(normalized, normalized)
    gpt2c_flag = _FLAGS.get(gpt2c_name, "--" + gpt2c_name.replace("_", "-"))
    if gpt2c_flag in known:
        return f"; did you mean {gpt2c_flag}{_NOTES.get(normalized, '')}?"
    return did_you_mean(flag, known)
