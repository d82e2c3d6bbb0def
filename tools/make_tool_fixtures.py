"""Makes tests/fixtures/formats/{nanogpt*,build_nanogpt,mingpt,llmc_*,gguf}: other tools' files.

Needs torch, gguf and llama-cpp-python; run from the repository's root:

    python tools/make_tool_fixtures.py

nanoGPT's family and llm.c are scripts, not packages. nanogpt_model.py rewrites their modules, and
this script writes what their train.py, trainer.py and train_gpt2.py write. The package gguf writes
GGUF, with the names of llama.cpp's converter. llama.cpp itself quantises these files and
dequantises them again; tests compare gpt2c's reader with samples of the result.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import struct
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from fixtures import FIXTURES, byte_alphabet, new_folder, write_expected
from nanogpt_model import GPT, GPTConfig

OUT = FIXTURES / "formats"
GGUF_VERSION = importlib.metadata.version("gguf")
SAMPLES = 24  # recorded elements of each matrix


@torch.no_grad()
def write_logits(folder: Path, model: GPT) -> None:
    """Write expected.json with the model's logits for a full context."""
    ids = [(5 * i + 3) % model.config.vocab_size for i in range(model.config.block_size)]
    versions = {"torch": torch.__version__, "gguf": GGUF_VERSION}
    write_expected(folder, versions, ids, model(torch.tensor([ids]))[0])


# ---- nanoGPT's family ----


def write_nanogpt(name: str, *, bias: bool, compiled: bool, mask: bool) -> None:
    """Save as train.py does, with the optimizer and the settings."""
    torch.manual_seed(1)
    config = GPTConfig()
    model = GPT(config, bias=bias, mask=mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()  # changes nothing, but creates the optimizer's state
    state = {("_orig_mod." if compiled else "") + k: v for k, v in model.state_dict().items()}
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": {**vars(config), "bias": bias, "dropout": 0.0},
        "iter_num": 5,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": compiled, "betas": None},
    }
    folder = new_folder(OUT / name)
    torch.save(checkpoint, folder / "ckpt.pt")
    write_logits(folder, model)


def write_build_nanogpt() -> None:
    """Save as train_gpt2.py does: the configuration is an object of the script's own class."""
    torch.manual_seed(2)
    config = GPTConfig(vocab_size=128)
    model = GPT(config, exact_gelu=False)
    GPTConfig.__module__ = "__main__"
    sys.modules["__main__"].GPTConfig = GPTConfig  # as if the running script defined it
    folder = new_folder(OUT / "build_nanogpt")
    checkpoint = {"model": model.state_dict(), "config": config, "step": 19072, "val_loss": 3.1}
    torch.save(checkpoint, folder / "model_19072.pt")
    write_logits(folder, model)


def write_mingpt() -> None:
    """Save as minGPT's projects do: the weights, and the settings from before the training."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(n_head=3, n_embd=12, n_layer=3), exact_gelu=False, tied=False, mask=True)
    folder = new_folder(OUT / "mingpt")
    torch.save(model.state_dict(), folder / "model.pt")
    settings = {
        "system": {"seed": 3407, "work_dir": "./out/chargpt"},
        "model": {
            "model_type": "gpt-nano", "n_layer": None, "n_head": None, "n_embd": None,
            "vocab_size": None, "block_size": None, "embd_pdrop": 0.1,
        },
        "trainer": {"learning_rate": 0.0005, "device": "auto", "betas": [0.9, 0.95]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings, indent=4))
    write_logits(folder, model)


# ---- llm.c ----


def write_llmc(name: str, version: int, dtype: torch.dtype) -> None:
    """Save as llm.c's train_gpt2.py does, with the rows of wte padded to 128."""
    torch.manual_seed(4)
    config = GPTConfig(vocab_size=100)
    model = GPT(config, exact_gelu=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    state = model.state_dict()
    state["transformer.wte.weight"] = pad_rows(state["transformer.wte.weight"], 128)
    header = [20240326, version, config.block_size, config.vocab_size, config.n_layer,
              config.n_head, config.n_embd, 128]  # fmt: skip
    folder = new_folder(OUT / name)
    with open(folder / "model.bin", "wb") as file:
        file.write(struct.pack("<256i", *header, *[0] * 248))
        modules = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
        kinds = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
        names = ["wte.weight", "wpe.weight"]
        names += [f"h.{i}.{kind}" for kind in kinds for i in range(config.n_layer)]
        for tensor in [*names, "ln_f.weight", "ln_f.bias"]:
            values = state[f"transformer.{tensor}"].to(dtype).contiguous()
            file.write(values.view(torch.uint8 if dtype == torch.float32 else torch.int16).numpy())
    write_logits(folder, model)


def pad_rows(wte: torch.Tensor, n_rows: int) -> torch.Tensor:
    return torch.nn.functional.pad(wte, (0, 0, 0, n_rows - wte.shape[0]))


# ---- GGUF ----


def vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens (256 bytes, three merged, <|endoftext|>, two padding) and the merges."""
    merges = ["t h", "th e", "Ġ the"]
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    return [*tokens, "[PAD260]", "[PAD261]"], merges


def write_gguf(path: Path, model: GPT, inner: int) -> None:
    """Write a float32 GGUF file; `inner` is the width of the MLP."""
    tokens, merges = vocabulary()
    kinds = [gguf.TokenType.NORMAL] * 259 + [gguf.TokenType.CONTROL] + [gguf.TokenType.UNUSED] * 2
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("fixture")
    writer.add_block_count(model.config.n_layer)
    writer.add_context_length(model.config.block_size)
    writer.add_embedding_length(model.config.n_embd)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(model.config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(259)
    writer.add_eos_token_id(259)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            to = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(to, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, to: Path, file_type: int, embedding: int | None = None) -> None:
    """Convert a GGUF file with llama.cpp; `embedding` is the type of the token embedding."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.pure, options.allow_requantize, options.nthread = (
        file_type,
        True,
        True,
        1,
    )
    if embedding is not None:
        options.token_embedding_type = embedding
    paths = str(source).encode(), str(to).encode()
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)):
        raise SystemExit(f"llama.cpp could not quantise {source} to {to} (file type {file_type})")


def sample_of(path: Path) -> dict[str, list[float]]:
    """Return evenly spaced elements of each matrix, as llama.cpp dequantises them to float32."""
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder, "wide.gguf")
        quantize(path, wide, llama_cpp.LLAMA_FTYPE_ALL_F32)
        sample = {}
        for tensor in gguf.GGUFReader(wide).tensors:
            if len(tensor.shape) == 2:
                items = np.asarray(tensor.data, dtype=np.float32).reshape(-1)
                chosen = np.linspace(0, items.size - 1, SAMPLES).astype(int)
                sample[tensor.name] = items[chosen].tolist()
        return sample


def write_gguf_files() -> None:
    """Write a float32 file, llama.cpp's quantised files, and samples of their matrices."""
    folder = new_folder(OUT / "gguf")
    torch.manual_seed(5)
    small = GPT(GPTConfig(vocab_size=262, n_embd=32, n_head=4), exact_gelu=False)
    write_gguf(folder / "f32.gguf", small, 128)
    write_logits(folder, small)
    types = {
        "f16": (llama_cpp.LLAMA_FTYPE_MOSTLY_F16, None),
        "bf16": (llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, None),
        "q8_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, None),
        "q4_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, None),
        "q4_1": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1, None),
        "q5_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_0, None),
        "q5_1": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_1, None),
        "q4_k": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S, None),
        "q5_k_q6_k": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_S, 14),
    }
    wide_config = GPTConfig(vocab_size=262, n_embd=256, n_head=4, n_layer=1)
    wide = GPT(wide_config, exact_gelu=False)
    block = wide.transformer.h[0]
    block.mlp.c_fc = torch.nn.Linear(256, 256)  # the min width for quantised blocks of 256
    block.mlp.c_proj = torch.nn.Linear(256, 256)
    samples = {}
    with tempfile.TemporaryDirectory() as temporary:
        write_gguf(Path(temporary, "wide.gguf"), wide, 256)
        for name, (file_type, embedding) in types.items():
            source = Path(temporary, "wide.gguf") if "k" in name else folder / "f32.gguf"
            quantize(source, folder / f"{name}.gguf", file_type, embedding)
            samples[name] = sample_of(folder / f"{name}.gguf")
    made_with = {"llama-cpp-python": llama_cpp.__version__, "gguf": GGUF_VERSION}
    text = json.dumps({"made_with": made_with, "samples": samples})
    (folder / "samples.json").write_text(text + "\n")


def main() -> None:
    torch.set_num_threads(1)
    write_nanogpt("nanogpt", bias=True, compiled=False, mask=True)
    write_nanogpt("nanogpt_no_bias", bias=False, compiled=True, mask=False)
    write_build_nanogpt()
    write_mingpt()
    write_llmc("llmc_float32", 3, torch.float32)
    write_llmc("llmc_bfloat16", 5, torch.bfloat16)
    write_gguf_files()


if __name__ == "__main__":
    main()
