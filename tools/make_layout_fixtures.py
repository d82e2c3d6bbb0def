"""Makes tests/fixtures/layouts: state dicts whose tensors have other names than GPT-2's.

Each runs in an environment with the package of its kind; run from the repository's root:

    python tools/make_layout_fixtures.py book    # llms-from-scratch
    python tools/make_layout_fixtures.py lens    # transformer-lens before 4.0
    python tools/make_layout_fixtures.py mingpt PATH   # mingpt/model.py of minGPT before June 2022
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import sys
from typing import Any

import torch
from fixtures import FIXTURES, new_folder, write_expected

OUT = FIXTURES / "layouts"
N_VOCAB, N_POSITIONS = 61, 12
IDS = [(5 * i + 3) % N_VOCAB for i in range(N_POSITIONS)]


def randomize(model: torch.nn.Module, skipped: str = "-") -> None:
    """Add noise to all parameters, so that no bias stays zero and no norm's weight one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(skipped):
                parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def save(name: str, model: Any, saved: object, package: str, version: str) -> None:
    """Write model.pth with `saved`, and expected.json with the model's logits."""
    folder = new_folder(OUT / name)
    torch.save(saved, folder / "model.pth")
    logits = model.eval()(torch.tensor([IDS]))
    logits = logits[0] if isinstance(logits, tuple) else logits
    write_expected(folder, {package: version, "torch": torch.__version__}, IDS, logits[0])


def make_book() -> None:
    from llms_from_scratch.ch04 import GPTModel, GPTModelFast

    package = "llms-from-scratch"
    version = importlib.metadata.version(package)
    for name, kind, qkv_bias, width, n_head in (
        ("book", GPTModel, False, 64, 1),
        ("book_heads", GPTModel, True, 12, 3),
        ("book_fast", GPTModelFast, True, 12, 3),
        ("book_fast_unbiased", GPTModelFast, False, 12, 3),
    ):
        torch.manual_seed(6)
        model = kind({
            "vocab_size": N_VOCAB, "context_length": N_POSITIONS, "emb_dim": width,
            "n_heads": n_head, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": qkv_bias,
        })  # fmt: skip
        randomize(model)
        save(name, model, model.state_dict(), package, version)
        if name == "book_heads":
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
            model(torch.tensor([IDS])).sum().backward()
            optimizer.step()  # changes nothing, but creates the optimizer's state
            both = {
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
            }
            save("book_optimizer", model, both, package, version)


def make_lens() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    package = "transformer-lens"
    version = importlib.metadata.version(package)
    config = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=N_POSITIONS, d_head=4, n_heads=4, d_vocab=N_VOCAB,
        act_fn="gelu_new", normalization_type="LN", seed=7, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config)
    randomize(model, skipped="b_U")
    save("lens", model, model.state_dict(), package, version)
    folded = copy.deepcopy(model)
    folded.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    save("lens_folded", folded, folded.state_dict(), package, version)
    relu = HookedTransformer({**config.to_dict(), "act_fn": "relu"})
    randomize(relu, skipped="b_U")
    both = {"model": relu.state_dict(), "config": relu.cfg}
    save("lens_config", relu, both, package, version)
    with torch.no_grad():
        model.unembed.b_U.normal_()
    save("lens_trained_bias", model, model.state_dict(), package, version)


def make_mingpt(path: str) -> None:
    spec = importlib.util.spec_from_file_location("mingpt_model", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(8)
    settings = module.GPTConfig(N_VOCAB, N_POSITIONS, n_layer=2, n_head=3, n_embd=12)
    model = module.GPT(settings)
    randomize(model)
    save(
        "old_mingpt",
        model,
        model.state_dict(),
        "minGPT",
        "3ed14b2, its model without the training code",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = {"book": make_book, "lens": make_lens, "mingpt": make_mingpt}
    kinds[sys.argv[1]](*sys.argv[2:])
