"""Makes tests/fixtures/adapters: LoRA adapters as peft saves them, and the logits of their merge.

Needs torch, transformers and peft; run from the repository's root:

    python tools/make_adapter_fixtures.py

Each folder is the output of `save_pretrained` of peft, for a small random base model. For each of
them, expected.json has what `merge_and_unload` gives after `PeftModel.from_pretrained`: logits, and
ids of greedy generation. `refused` has adapters that gpt2c does not support.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from fixtures import FIXTURES, encoded, new_folder
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, GPT2Model

OUT = FIXTURES / "adapters"
IDS = [3, 1, 4, 15, 9, 2, 6, 5, 3, 27]
N_NEW = 5
SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 30}

EVERYWHERE = ["c_attn", "c_proj", "c_fc"]
# Names of cases -> options of LoraConfig. "r" is 3 and "lora_alpha" 5 if they are not given.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},  # peft's default target modules for GPT-2: c_attn
    "everywhere": {"target_modules": EVERYWHERE, "r": 2, "fan_in_fan_out": True},
    "rslora": {"target_modules": EVERYWHERE, "use_rslora": True},
    "patterns": {
        "target_modules": EVERYWHERE,
        # peft sorts the keys of a file, and the first match counts: these are in sorted order.
        "rank_pattern": {
            r"^transformer\.h\.1\.mlp\.c_fc$": 5,
            "h.0.attn.c_attn": 2,
            r"h\.[^0]\.(attn|mlp)\.c_(fc|attn)": 4,
            r"h\.\d+\.mlp\.c_proj": 1,
        },
        "alpha_pattern": {r"[^1]*\.c_fc": 2, "attn.c_proj": 7, "h.1.*": 3},
    },
    "bias_all": {"bias": "all"},
    "bias_lora_only": {"bias": "lora_only", "target_modules": ["c_attn", "c_fc"]},
    "saved_norm": {"modules_to_save": ["ln_f", "ln_1"]},
    "saved_embedding": {"modules_to_save": ["wte"]},
    "saved_head": {"modules_to_save": ["lm_head"]},
    "layers": {"layers_to_transform": [1], "layers_pattern": "h"},
    "one_layer": {"layers_to_transform": 0, "target_modules": EVERYWHERE},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["mlp.c_proj"]},
    "regex": {"target_modules": r".*\.h\.[0-1]\.(attn|mlp)\.c_proj"},
    "embeddings": {"target_modules": ["wte", "wpe", "c_attn"]},
    "head": {"target_modules": ["lm_head", "c_attn"]},
    "embedding_and_head": {"target_modules": ["wte", "lm_head"]},
    "torch": {"target_modules": EVERYWHERE},
    "half": {"target_modules": EVERYWHERE},
    "body": {"target_modules": EVERYWHERE},
    "resized": {},
    "untied": {"target_modules": ["wte", "lm_head", "c_fc"]},
    "classifier": {"task_type": "SEQ_CLS", "target_modules": ["c_attn"]},
}
# What gpt2c refuses, by name.
REFUSED: dict[str, Any] = {
    "dora": LoraConfig(r=2, use_dora=True),
    "lora_bias": LoraConfig(r=2, lora_bias=True),
    "tokens": LoraConfig(r=2, trainable_token_indices=[1, 5]),
    "parameters": LoraConfig(r=2, target_modules=[], target_parameters=["mlp.c_fc.weight"]),
    "tied": LoraConfig(r=2, modules_to_save=["wte"], ensure_weight_tying=True),
    "pissa": LoraConfig(r=2, init_lora_weights="pissa"),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
}


def base_model(name: str) -> Any:
    if name == "resized":
        model = GPT2LMHeadModel.from_pretrained(OUT / "base")
        torch.manual_seed(8)
        model.resize_token_embeddings(32, mean_resizing=False)
        return model
    kind = {"body": GPT2Model, "classifier": AutoModelForSequenceClassification}.get(
        name, GPT2LMHeadModel
    )
    options = {"num_labels": 3, "pad_token_id": 0} if name == "classifier" else {}
    return kind.from_pretrained(OUT / ("base_untied" if name == "untied" else "base"), **options)


def randomize(model: PeftModel, seed: int) -> None:
    """Fill every trainable tensor with random numbers: a new adapter changes nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def make_adapter(name: str, options: dict[str, Any], seed: int) -> None:
    model = base_model(name)
    options = {"task_type": "FEATURE_EXTRACTION" if name == "body" else "CAUSAL_LM", **options}
    adapted = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 5, **options}))
    randomize(adapted, seed)
    if name == "half":
        adapted = adapted.half()
    save(adapted, OUT / name, safe_serialization=name != "torch")


def save(adapted: PeftModel, folder: Path, **options: Any) -> None:
    adapted.save_pretrained(folder, **options)
    (folder / "README.md").unlink()


def make_bases() -> None:
    for name, is_tied in (("base", True), ("base_untied", False)):
        torch.manual_seed(1)
        config = GPT2Config(
            **SIZES, initializer_range=0.2, tie_word_embeddings=is_tied, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(new_folder(OUT / name))


def results(model: Any) -> dict[str, Any]:
    """Return the logits of IDS and what greedy generation adds, of a merged model in eval mode."""
    model = model.float().eval()
    if isinstance(model, GPT2Model):  # it has no head of its own
        head = base_model("plain")
        head.transformer = model
        head.tie_weights()
        model = head.eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = model(ids).logits[0]
        found = {"logits": encoded(logits), "tied": model.config.tie_word_embeddings}
        if isinstance(model, GPT2LMHeadModel):
            greedy = model.generate(ids, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)
            found["greedy"] = greedy[0, len(IDS) :].tolist()
    return found


def merged(name: str) -> dict[str, Any]:
    adapted = PeftModel.from_pretrained(base_model(name), OUT / name)
    return results(adapted.merge_and_unload())


def merged_with_weights(names: list[str], weights: list[float]) -> dict[str, Any]:
    """Return the results of several adapters; "cat" adds weight * scale * B A of each of them."""
    adapted = PeftModel.from_pretrained(base_model(""), OUT / names[0], adapter_name=names[0])
    for name in names[1:]:
        adapted.load_adapter(OUT / name, adapter_name=name)
    adapted.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    adapted.set_adapter("sum")
    return {
        "adapters": [list(pair) for pair in zip(names, weights, strict=True)],
        **results(adapted.merge_and_unload()),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    new_folder(OUT)
    make_bases()
    for seed, (name, options) in enumerate(CASES.items(), start=10):
        make_adapter(name, options, seed)
    for seed, (name, config) in enumerate(REFUSED.items(), start=50):
        adapted = get_peft_model(base_model(name), config)
        randomize(adapted, seed)
        save(adapted, OUT / "refused" / name)
    for folder in OUT.rglob("generation_config.json"):
        folder.unlink()
    expected = {
        "made_with": {
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "ids": IDS,
        "cases": {name: merged(name) for name in CASES},
        "several": [
            merged_with_weights(["plain", "everywhere", "rslora"], [1.0, 1.0, 1.0]),
            merged_with_weights(["plain", "patterns"], [0.7, 0.25]),
        ],
    }
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree(OUT / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
