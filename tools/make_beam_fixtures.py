"""Makes tests/fixtures/transformers_beams.json, or transformers_beam_groups.json.

Needs torch and transformers; run from the repository's root:

    python tools/make_beam_fixtures.py

Records transformers' own beam search on the checkpoints in tests/fixtures/transformers: the new
ids with the EOS token, sequences_scores, best first, and the number of steps. Transformers has
groups of beams up to version 4.56.2. With such a version, this script makes the fixture of groups;
with a later one, that of plain beam search.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import transformers
from fixtures import FIXTURES, transformers_options
from transformers import GPT2LMHeadModel

HAS_GROUPS = hasattr(transformers.GenerationMixin, "_group_beam_search")
MODELS = ("plain", "relu_inner", "untied_inverse", "unscaled_silu", "tanh")

# gpt2c's options.
PLAIN: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4},
    {"num_beams": 5, "num_return_sequences": 5},
    {"num_beams": 20, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -1.5},
    {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never"},
    {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": 0.0},
    {"num_beams": 3, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 3.0},
    {"num_beams": 2, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": -0.2},
    {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True, "max_new_tokens": 3},
    {"num_beams": 4, "num_return_sequences": 2, "repetition_penalty": 1.4},
    {"num_beams": 4, "num_return_sequences": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "num_return_sequences": 3, "min_new_tokens": 7},
    {"num_beams": 3, "num_return_sequences": 3, "bad_words": [[3], [2, 5]], "suppress_tokens": [1]},
    {"num_beams": 3, "num_return_sequences": 3, "logit_bias": {"4": 3.5, "8": -2.0}},
    {
        "num_beams": 5, "num_return_sequences": 5, "repetition_penalty": 1.2, "min_new_tokens": 4,
        "no_repeat_ngram_size": 3, "logit_bias": {"7": 2.5}, "length_penalty": 1.3,
    },
]  # fmt: skip
GROUPS: list[dict[str, Any]] = [
    {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 2.0, "num_return_sequences": 6},
    {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 0.3, "num_return_sequences": 4},
    {
        "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "num_return_sequences": 4,
        "early_stopping": True, "length_penalty": 0.0,
    },
    {
        "num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 6,
        "early_stopping": "never", "length_penalty": 2.0,
    },
    {
        "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 2,
        "early_stopping": "never", "length_penalty": -1.0,
    },
    {
        "num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.5, "num_return_sequences": 2,
        "early_stopping": True, "length_penalty": 4.0, "max_new_tokens": 4,
    },
    {
        "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "num_return_sequences": 4,
        "early_stopping": True, "length_penalty": 4.0, "max_new_tokens": 4,
    },
    {
        "num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1.0, "num_return_sequences": 6,
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3,
        "logit_bias": {"7": 1.5}, "bad_words": [[3]],
    },
]  # fmt: skip


def until_end(ids: list[int], eos: list[int]) -> list[int]:
    """Return the ids up to the first EOS token, which padding follows.

    The lengths cannot come from beam_indices, which lack them for groups.
    """
    ends = [i + 1 for i, id in enumerate(ids) if id in eos]
    return ids[: ends[0]] if ends else ids


def search_case(
    model: GPT2LMHeadModel, ids: list[int], eos: list[int], pad: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return one case of the fixture: a prompt, its options, and transformers' results."""
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False, return_dict_in_generate=True, output_scores=True,
        eos_token_id=eos or None, pad_token_id=pad, **transformers_options(options),
    )  # fmt: skip
    new = [until_end(row[len(ids) :].tolist(), eos) for row in out.sequences]
    return {
        "ids": ids, "eos": eos, "pad": pad, "options": options, "new": new,
        "scores": out.sequences_scores.tolist(), "steps": len(out.scores),
    }  # fmt: skip


def cases_of(model: GPT2LMHeadModel, seed: int) -> list[dict[str, Any]]:
    """Return the cases of one model: every set of options with no, one and several EOS tokens."""
    rng = np.random.default_rng(seed)
    n_vocab, n_positions = model.config.vocab_size, model.config.n_positions
    cases = []
    for number, options in enumerate(GROUPS if HAS_GROUPS else PLAIN):
        n_prompt = (1, 5, 9)[number % 3]
        ids = rng.integers(0, n_vocab, n_prompt).tolist()
        options = {"max_new_tokens": min(14, n_positions - n_prompt), **options}
        # EOS tokens are ids that the model generates here, so that beams end at different lengths.
        free = search_case(model, ids, [], None, {"num_beams": 4, "num_return_sequences": 4,
                                               "max_new_tokens": 10})  # fmt: skip
        generated = list(dict.fromkeys(row[i] for i in (3, 5, 8) for row in free["new"]))
        for eos in ([], generated[:1], generated[:3]):
            cases.append(search_case(model, ids, eos, None, options))
        if HAS_GROUPS:  # a finished group counts as if it chose padding
            cases.append(search_case(model, ids, generated[1:3], int(free["new"][1][1]), options))
    return cases


def main() -> None:
    torch.set_num_threads(1)
    models = {}
    for seed, name in enumerate(MODELS):
        # In 4.56, only eager attention honours GPT2Config's options for scaling scores.
        model = GPT2LMHeadModel.from_pretrained(
            FIXTURES / "transformers" / name, attn_implementation="eager"
        ).eval()
        models[name] = cases_of(model, seed)
    fixture = {
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
        "models": models,
    }
    name = "transformers_beam_groups" if HAS_GROUPS else "transformers_beams"
    text = json.dumps(fixture).replace('{"ids"', '\n{"ids"')  # one case per line
    (FIXTURES / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
