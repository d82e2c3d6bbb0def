"""Makes tests/fixtures/classifiers: small classifiers as transformers saves them, with its logits.

Needs torch and transformers; run from the repository's root:

    python tools/make_classifier_fixtures.py

expected.json has the logits of each of a few sequences of ids alone, which is one batch of its own.
"""

from __future__ import annotations

import json

import torch
import transformers
from fixtures import FIXTURES, encoded, new_folder
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2ForTokenClassification

OUT = FIXTURES / "classifiers"
SIZES = {"n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 12, "vocab_size": 20}
# Some end with, begin with or consist of the padding token of "padding", 0.
TEXTS = [[3, 1, 4, 15, 9], [7], [2, 0, 6, 0, 0], [0, 0], [0, 5], list(range(12)), [19, 18]]
NAMES = {0: "bad", 1: "so, so", 2: "good"}

# Names of folders -> the class and the options of GPT2Config.
KINDS = {
    "plain": (GPT2ForSequenceClassification, {"num_labels": 2}),
    "padding": (GPT2ForSequenceClassification, {"id2label": NAMES, "pad_token_id": 0}),
    "multi_label": (
        GPT2ForSequenceClassification,
        {"id2label": NAMES, "problem_type": "multi_label_classification"},
    ),
    "regression": (GPT2ForSequenceClassification, {"num_labels": 2, "problem_type": "regression"}),
    "one_label": (GPT2ForSequenceClassification, {"num_labels": 1}),
    "tokens": (GPT2ForTokenClassification, {"id2label": NAMES}),
}


def main() -> None:
    expected = {}
    for seed, (name, (kind, options)) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        config = GPT2Config(**SIZES, bos_token_id=None, eos_token_id=None, **options)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
            model.save_pretrained(new_folder(OUT / name))
            logits = [model(torch.tensor([ids])).logits[0] for ids in TEXTS]
        expected[name] = [encoded(values) for values in logits]
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__}
    values = {"made_with": made_with, "texts": TEXTS, "logits": expected}
    (OUT / "expected.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
