"""Makes tests/fixtures/transformers_sampling.json and transformers_scores.json.

Needs torch and transformers; run from the repository's root:

    python tools/make_sampling_fixtures.py

The first holds logits, the ids before them, options, and the logits that transformers' processors
return for them, in the chain that generate itself builds. The second holds log-probabilities of
texts of different lengths, computed by transformers in float64 for the checkpoints in
tests/fixtures/transformers. Each is computed in a batch padded on the left and in one padded on the
right, with an attention mask.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import transformers
from fixtures import FIXTURES, encoded, transformers_options
from transformers import GPT2Config, GPT2LMHeadModel

N_VOCAB = 120
EOS = 7

# gpt2c's options.
CASES: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 11},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 0.004},
    {"epsilon_cutoff": 0.03},
    {"eta_cutoff": 0.002},
    {"eta_cutoff": 0.02},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"bad_words": [[3], [2, 5], [5, 6, 1], [1, 2, 3, 4]]},
    {"min_new_tokens": 4},
    {"suppress_tokens": [0, 9, 119]},
    {"logit_bias": {"4": 2.5, "8": -3.0}},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.3, "typical_p": 0.9, "epsilon_cutoff": 0.001, "eta_cutoff": 0.01},
    {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words": [[3]],
        "suppress_tokens": [5], "logit_bias": {"4": 2.5}, "min_new_tokens": 9,
        "temperature": 0.9, "top_k": 40, "top_p": 0.9,
    },
]  # fmt: skip


def processed_logits(
    model: GPT2LMHeadModel, options: dict[str, Any], ids: list[int], logits: Any
) -> Any:
    """Return logits [n_vocab] after transformers' processors; the prompt is ids[:-3]."""
    config = transformers.GenerationConfig(
        do_sample=True, top_k=options.get("top_k", 0), eos_token_id=EOS, pad_token_id=EOS,
        **{k: v for k, v in transformers_options(options).items() if k != "top_k"},
    )  # fmt: skip
    model._prepare_special_tokens(config, device="cpu")
    chain = model._get_logits_processor(
        generation_config=config, input_ids_seq_length=len(ids) - 3,
        encoder_input_ids=torch.tensor([ids[:-3]]), prefix_allowed_tokens_fn=None,
        logits_processor=transformers.LogitsProcessorList(), device="cpu",
    )  # fmt: skip
    return chain(torch.tensor([ids]), torch.tensor(logits)[None].clone())[0].numpy()


def sampling_fixture() -> dict[str, Any]:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=N_VOCAB))
    rng = np.random.default_rng(5)
    cases = []
    for options in CASES:
        for ids in ([1, 2, 3, 5, 6, 1, 2, 5], [4, 4, 4, 9, 4, 4]):
            logits = (3 * rng.standard_normal(N_VOCAB)).astype(np.float32)
            result = processed_logits(model, options, ids, logits)
            cases.append(
                {"options": options, "ids": ids, "logits": encoded(logits),
                 "processed": encoded(result)}
            )  # fmt: skip
    return {
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
        "n_prompt": "all but the last three ids",
        "eos_token_id": EOS,
        "cases": cases,
    }


def log_probabilities(model: GPT2LMHeadModel, texts: list[list[int]], left: bool) -> list[Any]:
    """Return log p(ids[i] | ids[:i]) for i >= 1 of each text, in one batch padded on a side.

    The side is the left if `left`, else the right.
    """
    longest = max(map(len, texts))
    ids = torch.zeros((len(texts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if left else slice(0, len(text))
        ids[row, place] = torch.tensor(text)
        mask[row, place] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    result = []
    for row, text in enumerate(texts):
        begin = longest - len(text) if left else 0
        result.append([float(log_probs[row, begin + i - 1, text[i]]) for i in range(1, len(text))])
    return result


def scores_fixture() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    models = {}
    for name in ("plain", "untied_inverse", "relu_inner"):
        folder = FIXTURES / "transformers" / name
        # Upcasting is meant for half precision and fails in float64.
        model = GPT2LMHeadModel.from_pretrained(
            folder, attn_implementation="eager", reorder_and_upcast_attn=False
        )
        model = model.double().eval()
        n_vocab, longest = model.config.vocab_size, model.config.n_positions
        lengths = [longest, 2, 5, 17, 3, longest - 1, 1]
        texts = [rng.integers(0, n_vocab, n).tolist() for n in lengths]
        right, left = (log_probabilities(model, texts, left) for left in (False, True))
        for a, b in zip(right, left, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)
        models[name] = {"texts": texts, "logprobs": right}
    return {
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
        "models": models,
    }


def main() -> None:
    for name, fixture in (("sampling", sampling_fixture()), ("scores", scores_fixture())):
        text = json.dumps(fixture, indent=1)
        (FIXTURES / f"transformers_{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
