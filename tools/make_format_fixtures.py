"""Makes files in tests/fixtures/formats: one small model as transformers and torch write it.

Needs torch and transformers; run from the repository's root:

    python tools/make_format_fixtures.py

The model is tests/fixtures/transformers/tiny, whose logits are in its expected.json. Each folder
is the output of `save_pretrained` or `torch.save`; names with "sharded" are in shards.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from fixtures import FIXTURES, new_folder
from transformers import GPT2LMHeadModel

TINY = FIXTURES / "transformers" / "tiny"
OUT = FIXTURES / "formats"
INDEX = "pytorch_model.bin.index.json"


def folder_with_config(name: str) -> Path:
    folder = new_folder(OUT / name)
    shutil.copy(TINY / "config.json", folder)
    return folder


def main() -> None:
    model = GPT2LMHeadModel.from_pretrained(TINY)
    model.save_pretrained(folder_with_config("safetensors_sharded"), max_shard_size="4KB")
    for name in ("config.json", "generation_config.json"):
        (OUT / "safetensors_sharded" / name).unlink(missing_ok=True)
    shutil.copy(TINY / "config.json", OUT / "safetensors_sharded")

    state = model.state_dict()  # with the head, as transformers 4 saved it
    torch.save(state, folder_with_config("torch_zip") / "pytorch_model.bin")
    torch.save(
        state, folder_with_config("torch_legacy") / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )  # fmt: skip
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    torch.save(halves, folder_with_config("torch_bfloat16") / "pytorch_model.bin")

    folder = folder_with_config("torch_sharded")
    names = sorted(state)
    shards = {
        f"pytorch_model-{i + 1:05}-of-00003.bin": names[i::3] for i in range(3)
    }  # spreads the tensors of one module over shards, as in large models
    for file, part in shards.items():
        torch.save({name: state[name].clone() for name in part}, folder / file)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in state.values())},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (OUT / "made_with.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
