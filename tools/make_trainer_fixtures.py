"""Makes tests/fixtures/trainers: models as trainers and their libraries save them.

Needs torch, transformers, accelerate, pytorch-lightning, peft, safetensors and omegaconf; run from
the repository's root:

    python tools/make_trainer_fixtures.py

Each folder is the output of its library. If gpt2c should load the model, expected.json holds the
logits of transformers' GPT2LMHeadModel, or of nanoGPT's module (nanogpt_model.py).
"""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import omegaconf
import peft
import pytorch_lightning
import safetensors.torch
import torch
import transformers
from fixtures import FIXTURES, new_folder, write_expected
from nanogpt_model import GPT, GPTConfig
from torch import nn

OUT = FIXTURES / "trainers"
IDS = [3, 1, 4, 1, 5]
VERSIONS = {
    module.__name__: module.__version__
    for module in (torch, transformers, accelerate, pytorch_lightning, peft, safetensors)
}
CONFIG = transformers.GPT2Config(
    vocab_size=13, n_positions=6, n_embd=8, n_layer=2, n_head=2, initializer_range=0.4,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def language_model() -> Any:
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(CONFIG).eval()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model.eval()(torch.tensor([IDS])).logits[0]


class Texts(torch.utils.data.Dataset):
    """Four texts with the same ids."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, _: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor(IDS), "labels": torch.tensor(IDS)}


# ---- heads ----


def save_other_heads() -> None:
    """Save models with other heads, which transformers loads as language models."""
    for name in ("DoubleHeadsModel", "ForSequenceClassification", "ForTokenClassification",
                 "ForQuestionAnswering", "Model"):  # fmt: skip
        torch.manual_seed(2)
        folder = new_folder(OUT / f"GPT2{name}")
        getattr(transformers, f"GPT2{name}")(CONFIG).save_pretrained(folder)
        loaded = transformers.GPT2LMHeadModel.from_pretrained(folder)
        write_expected(folder, VERSIONS, IDS, logits_of(loaded))


def save_tied_model() -> None:
    """Save a tied model with safetensors' save_model, which stores tied weights under one name."""
    model, folder = language_model(), new_folder(OUT / "save_model")
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    CONFIG.save_pretrained(folder)
    write_expected(folder, VERSIONS, IDS, logits_of(model))


# ---- trainers ----


def save_trainer_checkpoint() -> None:
    """Save a checkpoint of transformers' Trainer, without the weights."""
    with tempfile.TemporaryDirectory() as work:
        arguments = transformers.TrainingArguments(
            output_dir=work, max_steps=1, save_steps=1, use_cpu=True, report_to=[],
        )  # fmt: skip
        transformers.Trainer(language_model(), arguments, train_dataset=Texts()).train()
        folder = new_folder(OUT / "trainer")
        for name in ("config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
                     "training_args.bin", "trainer_state.json"):  # fmt: skip
            shutil.copy(Path(work, "checkpoint-1", name), folder)


class Lightning(pytorch_lightning.LightningModule):
    """A model inside a LightningModule, as users write it."""

    def __init__(self, lr: float, config: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = language_model()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def save_lightning_checkpoint() -> None:
    folder = new_folder(OUT / "lightning")
    trained = Lightning(lr=1e-3, config=CONFIG)
    with tempfile.TemporaryDirectory() as work:
        trainer = pytorch_lightning.Trainer(
            max_steps=1, accelerator="cpu", logger=False, default_root_dir=work,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(trained, torch.utils.data.DataLoader(Texts(), batch_size=2))
        trainer.save_checkpoint(folder / "last.ckpt")
    CONFIG.save_pretrained(folder)
    write_expected(folder, VERSIONS, IDS, logits_of(trained.model))


def save_adapter() -> None:
    folder = new_folder(OUT / "adapter")
    model = language_model()
    model.name_or_path = "openai-community/gpt2"
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", fan_in_fan_out=True, r=2, base_model_name_or_path="gpt2"
    )
    peft.get_peft_model(model, config).save_pretrained(folder)
    (folder / "README.md").unlink()


def save_with_extras() -> None:
    """Save in both formats of torch.save, with objects that people save beside the weights."""
    model = language_model()
    wrapped = nn.DataParallel(torch.compile(model))
    others = {
        "loss": np.float64(2.5), "steps": np.int64(7), "dtype": np.dtype("f4"),
        "numpy state": np.random.default_rng(0).bit_generator.state,
        "numpy legacy state": np.random.get_state()[:1], "python state": random.getstate()[:1],
        "array": np.arange(3), "torch state": torch.get_rng_state()[:8],
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("out")),
        "device": torch.device("cuda:0"), "torch dtype": torch.bfloat16, "size": torch.Size([2]),
        "history": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
        "set": {1, "a"}, "frozen": frozenset([1]), "time": datetime.datetime(2024, 1, 2),
        "hydra": omegaconf.OmegaConf.create({"lr": 1e-3, "layers": [1, 2]}), "config": CONFIG,
        "keys": {(1, 2): 1, None: 2, 2**40: 3, 1.5: 4, torch.float32: 5},
        "strided": torch.ones(2, 3).t(), "complex": torch.ones(2, dtype=torch.complex64),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        "sparse": torch.eye(2).to_sparse(), "float8": torch.ones(2).to(torch.float8_e4m3fn),
    }  # fmt: skip
    for name, protocol, is_archive in (("archive", 2, True), ("archive_4", 4, True),
                                       ("legacy", 2, False), ("legacy_1", 1, False)):  # fmt: skip
        folder = new_folder(OUT / f"extras_{name}")
        torch.save(
            {**others, "model_state_dict": wrapped.state_dict()}, folder / "pytorch_model.bin",
            pickle_protocol=protocol, _use_new_zipfile_serialization=is_archive,
        )  # fmt: skip
        CONFIG.save_pretrained(folder)
        write_expected(folder, VERSIONS, IDS, logits_of(model))


def save_whole_modules() -> None:
    folder = new_folder(OUT / "whole")
    module = nn.Linear(2, 2)
    torch.save(module, folder / "archive.pt")
    torch.save({"model": module, "epoch": 1}, folder / "in_a_dict.pt")
    # The old format stores the source of a class if there is any; this class has none.
    Bare = type("Bare", (nn.Module,), {"__module__": "__main__"})
    sys.modules["__main__"].Bare = Bare  # type: ignore[attr-defined]
    torch.save(Bare(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 2)), folder / "script.pt")


# ---- nanoGPT ----


def save_old_nanogpt() -> None:
    """Save as nanoGPT did before it had `bias`: with the tanh form of GELU, without vocab_size."""
    torch.manual_seed(6)
    config = GPTConfig(vocab_size=13)
    model = GPT(config, exact_gelu=False)
    with torch.no_grad():
        for parameter in model.parameters():  # large, so that the two forms of GELU differ
            parameter.mul_(8)
    arguments = {k: v for k, v in vars(config).items() if k != "vocab_size"} | {"dropout": 0.0}
    folder = new_folder(OUT / "nanogpt_old")
    torch.save({"model": model.state_dict(), "model_args": arguments}, folder / "ckpt.pt")
    with torch.no_grad():
        write_expected(folder, VERSIONS, IDS, model(torch.tensor([IDS]))[0])


def main() -> None:
    torch.set_num_threads(1)
    save_other_heads()
    save_tied_model()
    save_trainer_checkpoint()
    save_lightning_checkpoint()
    save_adapter()
    save_with_extras()
    save_whole_modules()
    save_old_nanogpt()


if __name__ == "__main__":
    main()
