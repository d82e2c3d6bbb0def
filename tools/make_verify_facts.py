"""Write a file of facts for `gpt2c verify`: what transformers computes for a checkpoint.

    pip install torch transformers
    python tools/make_verify_facts.py CHECKPOINT NAME > facts.toml

gpt2c takes no part in it. Everything is computed in float64. The file for the embedded model,
src/gpt2c/data/published/tales.toml, was made with src/gpt2c/models/tales and the name tales.
"""

from __future__ import annotations

import argparse
import json

import torch
import transformers
from transformers import GPT2LMHeadModel, GPT2Tokenizer

PROMPTS = ("Once upon a time there was", "The old king looked at his three sons and said")
TEXT = 'The wolf came to the door of the little house, and knocked. "Who is there?" said the pig.'
N_NEW = 24
FIELDS = (
    "n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "activation_function",
    "layer_norm_epsilon", "tie_word_embeddings", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
# float32 has 24 bits. Its rounding errors grow on the way through the blocks, so each check allows
# many units in the last place.
TOLERANCES = {"greedy": 1e-3, "loss": 2e-5, "logit": 5e-4, "logprobs": 1e-4, "next": 0.01}
WHY = {
    "greedy": "a near tie in another order of float32 sums",
    "loss": "float32 instead of float64; a mean of many tokens",
    "logit": "float32 instead of float64; logits are about 10",
    "logprobs": "float32 instead of float64",
    "next": "percentages with 2 decimals",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("name")
    options = parser.parse_args()
    model = GPT2LMHeadModel.from_pretrained(options.checkpoint, dtype=torch.float64).eval()
    tokenizer = GPT2Tokenizer.from_pretrained(options.checkpoint)
    print(
        "# What transformers computes for a model, in float64. Made by tools/make_verify_facts.py."
    )
    print(f"\n[models.{options.name}]")
    for field in FIELDS:
        print(f"{field} = {json.dumps(getattr(model.config, field))}")
    for check in checks(model, tokenizer):
        kind, version = check["kind"], torch.__version__
        check |= {
            "source": f"transformers {transformers.__version__}, torch {version}, float64",
            "tolerance": TOLERANCES[kind],
            "why": WHY[kind],
        }
        print("\n[[check]]")
        for name, value in {"model": options.name, **check}.items():
            print(f"{name} = {json.dumps(value)}")


@torch.no_grad()
def checks(model, tokenizer):
    """Yield the entries of each check."""
    bos = model.config.bos_token_id
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        new = []
        for _ in range(N_NEW):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        yield {"kind": "greedy", "prompt": prompt, "prompt_ids": ids, "new_ids": new}
        logits = model(torch.tensor([ids + new])).logits[0]  # [n, n_vocab]
        logprobs = logits.log_softmax(-1)
        n = len(ids) - 1
        expected = [round(float(logprobs[n + i, id]), 8) for i, id in enumerate(new[:6])]
        yield {"kind": "logprobs", "prompt_ids": ids, "new_ids": new[:6], "expected": expected}
        yield {
            "kind": "logit",
            "prompt": prompt,
            "id": new[0],
            "expected": float(logits[n, new[0]]),
        }
        top = logprobs[n].exp().topk(5)
        yield {
            "kind": "next", "prompt": prompt,
            "words": [tokenizer.decode([id]).strip() for id in top.indices.tolist()],
            "expected": [round(100 * p, 2) for p in top.values.tolist()],
        }  # fmt: skip
    text = torch.tensor([[bos, *tokenizer.encode(TEXT)]])
    yield {
        "kind": "loss", "text": TEXT, "bos": True, "expected": float(model(text, labels=text).loss)
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    size = (4, min(64, model.config.n_positions))
    rows = torch.randint(0, model.config.vocab_size, size, generator=generator)
    loss = float(model(rows, labels=rows).loss)
    yield {"kind": "loss", "rows": rows.tolist(), "bos": False, "expected": loss}


if __name__ == "__main__":
    main()
