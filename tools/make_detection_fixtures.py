"""Makes tests/fixtures/detection.json: what detectors of generated text compute for some texts.

Needs torch, transformers and tokenizers; run from the repository's root:

    python tools/make_detection_fixtures.py

The observer is the embedded model, tales; the performer is tales with other weights in two places.
Both run in float64. The formulas are those of the papers' public programs, written anew. These
programs are no packages, and cannot be installed:

- Fast-DetectGPT, github.com/baoguangsheng/fast-detect-gpt at 018fb645:
  get_sampling_discrepancy_analytic (scripts/fast_detect_gpt.py, line 52), with one model for
  sampling and scoring; get_likelihood, get_logrank and get_entropy (scripts/baselines.py); get_lrr
  (scripts/detect_llm.py)
- DetectLLM, github.com/mbzuai-nlp/DetectLLM at 8775cb08: get_ll (baselines/loss.py, line 4),
  get_rank with log=True (baselines/rank.py, line 9), get_entropy (baselines/entropy.py, line 9),
  and their ratio, LRR (baselines/all_baselines.py)
- Binoculars, github.com/ahans30/Binoculars at 418ca74a: perplexity and entropy
  (binoculars/metrics.py, lines 9 and 30), called as in compute_score (binoculars/detector.py)
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers
import torch
import transformers
from fixtures import FIXTURES
from transformers import GPT2LMHeadModel

TALES = "src/gpt2c/models/tales"
# Tensors of the performer: those of tales, multiplied by a number.
CHANGES = {
    "transformer.ln_f.weight": 0.8,
    "transformer.ln_f.bias": 0.8,
    "transformer.h.3.mlp.c_proj.weight": 0.5,
}
TEXTS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    "no pictures or conversations in it.",
    "The minister said on Tuesday that the budget for 2027 would rise by 4.3 %, a figure that "
    "na\u00efve observers in Z\u00fcrich \u2014 and in \u6771\u4eac \u2014 "
    "called \u201cunlikely\u201d.",
    "The kitchen",
    "buffalo Buffalo  buffalo\n\tBUFFALO buffalo " * 8,
]


def log_likelihood(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Fast-DetectGPT's get_likelihood; DetectLLM's get_ll is minus transformers' loss."""
    log_p = torch.log_softmax(logits[:-1], dim=-1)  # [n - 1, n_vocab]
    return float(log_p.gather(1, ids[1:, None]).mean())


def log_rank(logits: torch.Tensor, ids: torch.Tensor) -> float:
    order = torch.argsort(logits[:-1], dim=-1, descending=True)  # [n - 1, n_vocab]
    places = (order == ids[1:, None]).nonzero()[:, 1]
    return float(torch.log(places.double() + 1).mean())


def entropy(logits: torch.Tensor) -> float:
    log_p = torch.log_softmax(logits[:-1], dim=-1)
    return float(-(log_p.exp() * log_p).sum(-1).mean())


def discrepancy(logits: torch.Tensor, ids: torch.Tensor) -> float:
    log_p = torch.log_softmax(logits[:-1], dim=-1)
    p = log_p.exp()
    means = (p * log_p).sum(-1)
    variances = (p * log_p**2).sum(-1) - means**2
    found = log_p.gather(1, ids[1:, None])[:, 0]
    return float((found.sum() - means.sum()) / variances.sum().sqrt())


def binoculars(observer: torch.Tensor, performer: torch.Tensor, ids: torch.Tensor) -> float:
    """The performer's mean loss, by the mean cross-entropy, which has a position more: the last."""
    loss = torch.nn.functional.cross_entropy(performer[:-1], ids[1:])
    crossed = torch.nn.functional.cross_entropy(performer, torch.softmax(observer, dim=-1))
    return float(loss / crossed)


def values_of(observer: torch.Tensor, performer: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    mean, rank = log_likelihood(observer, ids), log_rank(observer, ids)
    return {
        "mean_logprob": mean,
        "mean_log_rank": rank,
        "mean_entropy": entropy(observer),
        "lrr": -mean / rank,
        "curvature": discrepancy(observer, ids),
        "binoculars": binoculars(observer, performer, ids),
    }


@torch.no_grad()
def main() -> None:
    tokenizer = tokenizers.ByteLevelBPETokenizer(f"{TALES}/vocab.json", f"{TALES}/merges.txt")
    observer, performer = (GPT2LMHeadModel.from_pretrained(TALES).double().eval() for _ in "12")
    for name, factor in CHANGES.items():
        performer.get_parameter(name).mul_(factor)
    begin = torch.tensor([tokenizer.encode("Once upon a time").ids])
    generated = observer.generate(begin, max_new_tokens=80, do_sample=False, pad_token_id=0)
    texts = [*TEXTS, tokenizer.decode(generated[0].tolist())]
    cases = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text).ids)
        logits = [model(ids[None]).logits[0] for model in (observer, performer)]
        cases.append({"text": text, "ids": ids.tolist(), "values": values_of(*logits, ids)})
    fixture = {
        "made_with": {
            each.__name__: each.__version__ for each in (torch, transformers, tokenizers)
        },
        "performer": CHANGES,
        "texts": cases,
    }
    text = json.dumps(fixture, indent=1)
    (FIXTURES / "detection.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
