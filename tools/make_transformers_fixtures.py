"""Makes tests/fixtures/transformers: small random GPT-2s with transformers' own results.

Needs torch and transformers; run from the repository's root:

    python tools/make_transformers_fixtures.py

Each folder is a checkpoint as transformers saves it. expected.json holds, for each prompt, the
logits in base64 (float32 [n_tokens, n_vocab]) and the greedy continuation. precision.json holds the
RMS error of torch's float32 logits against its own float64, which gpt2c may not exceed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from fixtures import FIXTURES, encoded
from transformers import GPT2Config, GPT2LMHeadModel

OUT = FIXTURES / "transformers"
COMMON = {"bos_token_id": None, "eos_token_id": None}

# name: (configuration, stored dtype). Some sizes are not multiples of any vector width.
MODELS = {
    "tiny": (
        {"n_embd": 10, "n_head": 5, "n_layer": 2, "vocab_size": 3, "n_positions": 9},
        "float32",
    ),
    "plain": (
        {"n_embd": 48, "n_head": 4, "n_layer": 2, "vocab_size": 97, "n_positions": 40},
        "float32",
    ),
    "relu_inner": (
        {
            "n_embd": 24,
            "n_head": 2,
            "n_layer": 3,
            "vocab_size": 70,
            "n_positions": 33,
            "n_inner": 37,
            "activation_function": "relu",
            "layer_norm_epsilon": 1e-3,
        },
        "float32",
    ),
    "untied_inverse": (
        {
            "n_embd": 33,
            "n_head": 3,
            "n_layer": 3,
            "vocab_size": 65,
            "n_positions": 70,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
        "float32",
    ),
    "unscaled_silu": (
        {
            "n_embd": 16,
            "n_head": 1,
            "n_layer": 2,
            "vocab_size": 130,
            "n_positions": 24,
            "scale_attn_weights": False,
            "activation_function": "silu",
        },
        "float32",
    ),
    "tanh": (
        {
            "n_embd": 20,
            "n_head": 2,
            "n_layer": 1,
            "vocab_size": 64,
            "n_positions": 130,
            "activation_function": "tanh",
        },
        "float32",
    ),
    "quick_gelu_half": (
        {
            "n_embd": 32,
            "n_head": 2,
            "n_layer": 2,
            "vocab_size": 50,
            "n_positions": 20,
            "activation_function": "quick_gelu",
        },
        "float16",
    ),
    "bfloat16": (
        {"n_embd": 32, "n_head": 8, "n_layer": 2, "vocab_size": 50, "n_positions": 20},
        "bfloat16",
    ),
    "no_blocks": (
        {"n_embd": 12, "n_head": 3, "n_layer": 0, "vocab_size": 11, "n_positions": 5},
        "float32",
    ),
    "one_position": (
        {"n_embd": 6, "n_head": 2, "n_layer": 1, "vocab_size": 5, "n_positions": 1},
        "float32",
    ),
}


def random_model(options: dict, dtype: str, seed: int) -> GPT2LMHeadModel:
    """Return a model with larger weights than GPT-2's initial ones, so that logits differ."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**COMMON, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    # gpt2c and transformers both compute with the stored values.
    return model.to(getattr(torch, dtype)).float()


@torch.no_grad()
def expected_of(model: GPT2LMHeadModel, rng: np.random.Generator) -> list[dict]:
    n_positions, n_vocab = model.config.n_positions, model.config.vocab_size
    cases = []
    for length in sorted({1, n_positions // 2 or 1, n_positions}):
        ids = rng.integers(0, n_vocab, length)
        logits = model(torch.from_numpy(ids)[None]).logits[0]
        case = {"ids": ids.tolist(), "logits": encoded(logits)}
        n_new = min(20, n_positions - length)
        if n_new:
            out = model.generate(
                torch.from_numpy(ids)[None], attention_mask=torch.ones(1, length, dtype=torch.long),
                max_new_tokens=n_new, do_sample=False, pad_token_id=0,
            )  # fmt: skip
            case["greedy"] = out[0, length:].tolist()
        cases.append(case)
    return cases


@torch.no_grad()
def precision_of(options: dict, seed: int) -> dict:
    """Return the RMS error of float32 logits against float64, over all positions of one forward.

    The weights come from NumPy's frozen legacy generator, so a test can recreate them.
    """
    rng = np.random.RandomState(seed)
    model = GPT2LMHeadModel(GPT2Config(**COMMON, **options)).eval()
    for name, parameter in sorted(model.named_parameters()):
        values = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
        scale = 0.2 if "ln_" in name else 0.08
        offset = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.copy_(torch.from_numpy(offset + np.float32(scale) * values))
    ids = torch.from_numpy(rng.randint(0, options["vocab_size"], options["n_positions"]))[None]
    single = model(ids).logits[0].double()
    double = model.double()(ids).logits[0]
    return {
        "config": options,
        "seed": seed,
        "torch_rms_error": float((single - double).square().mean().sqrt()),
        "rms_of_logits": float(double.square().mean().sqrt()),
    }


# Changes of the configuration, all with the same weights: every supported activation function, by
# each of its names, and the switches of GPT2Config.
VARIANTS = [
    *({"activation_function": name} for name in (
        "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh",
        "gelu_accurate", "quick_gelu", "relu", "silu", "swish", "tanh",
    )),
    {"layer_norm_epsilon": 0.01},
    {"reorder_and_upcast_attn": True},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
]  # fmt: skip


@torch.no_grad()
def variant_of(changes: dict, folder: Path) -> dict:
    model = GPT2LMHeadModel.from_pretrained(folder, **changes).eval()
    logits = model(torch.arange(model.config.n_positions)[None] % model.config.vocab_size).logits
    return {"config": changes, "logits": encoded(logits[0])}


def main() -> None:
    torch.set_num_threads(1)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    for seed, (name, (options, dtype)) in enumerate(MODELS.items()):
        model = random_model(options, dtype, seed)
        cases = expected_of(model, np.random.default_rng(seed))
        folder = OUT / name
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        text = json.dumps({"made_with": versions, "cases": cases}, indent=1)
        (folder / "expected.json").write_text(text + "\n")
    variants = [variant_of(changes, OUT / "tiny") for changes in VARIANTS]
    text = json.dumps({"made_with": versions, "variants": variants}, indent=1)
    (OUT / "variants.json").write_text(text + "\n")
    shapes = [
        {"n_embd": 64, "n_head": 4, "n_layer": 4, "vocab_size": 500, "n_positions": 1024},
        {"n_embd": 160, "n_head": 5, "n_layer": 6, "vocab_size": 1000, "n_positions": 1024},
    ]
    precision = [precision_of(shape, 20 + i) for i, shape in enumerate(shapes)]
    text = json.dumps({"made_with": versions, "models": precision}, indent=1)
    (OUT / "precision.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
