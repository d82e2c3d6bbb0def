"""Converts one Hugging Face folder with a GPT-2 to the files of each engine.

    python benchmarks/convert.py KIND CHECKPOINT WORK_FOLDER

compare.py runs this when files are missing. Weights stay float32, except in kinds with another
dtype in their name. Prompts are ids, so vocabularies are placeholders ("t0", "t1", ...).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def read_config(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text())


def converted_folder(work: Path, checkpoint: Path, kind: str) -> Path:
    """Return the path of the files of this kind, a folder that exists only if it is complete."""
    return work / checkpoint.resolve().name / kind


def plain(checkpoint: Path, folder: Path) -> None:
    """Link the checkpoint's weights, and write its config.json without BOS and EOS tokens."""
    config = read_config(checkpoint) | {"eos_token_id": None, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(checkpoint.resolve() / "model.safetensors")


def gguf(checkpoint: Path, folder: Path) -> None:
    """Write llama.cpp's file, with the names and shapes of its convert_hf_to_gguf.py."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = read_config(checkpoint)
    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["t 0"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        full_name = name if name.startswith("transformer.") else f"transformer.{name}"
        if full_name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            continue  # causal masks, and the tied head
        if full_name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.T
        to = names.get_name(full_name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(to, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_quantized(checkpoint: Path, folder: Path, kind: int) -> None:
    """Quantise with llama.cpp's own quantizer and its defaults; `kind` is its LLAMA_FTYPE."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as temporary:
        gguf(checkpoint, Path(temporary))
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = kind
        names = [str(Path(place, "model.gguf")).encode() for place in (temporary, folder)]
        if llama_cpp.llama_model_quantize(*names, options):
            raise RuntimeError(f"llama.cpp could not quantise {checkpoint} (file type {kind})")


def gpt2c_quantized(checkpoint: Path, folder: Path, dtype: str) -> None:
    """Quantise with gpt2c."""
    import gpt2c

    with tempfile.TemporaryDirectory() as temporary:
        plain(checkpoint, Path(temporary))
        gpt2c.GPT2.from_pretrained(temporary, dtype=dtype).save_pretrained(folder)


def with_vocabulary(checkpoint: Path, folder: Path) -> None:
    """Add the tokenizer files that a converter requires.

    The last token becomes the EOS token, as in GPT-2, because OpenVINO fails without one. The
    engines are told to ignore it.
    """
    plain(checkpoint, folder)
    end = {"eos_token_id": read_config(checkpoint)["vocab_size"] - 1}
    (folder / "config.json").write_text(json.dumps(read_config(checkpoint) | end))
    vocab = [f"t{i}" for i in range(read_config(checkpoint)["vocab_size"])]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    specials = dict.fromkeys(("bos_token", "eos_token", "unk_token"), vocab[-1])
    tokenizer = {"tokenizer_class": "GPT2Tokenizer"} | specials
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def ctranslate2(checkpoint: Path, folder: Path, dtype: str = "float32") -> None:
    """Convert with CTranslate2's converter for transformers."""
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as temporary:
        with_vocabulary(checkpoint, Path(temporary))
        TransformersConverter(temporary).convert(folder, quantization=dtype, force=True)


def openvino(checkpoint: Path, folder: Path) -> None:
    """Convert with optimum-intel to OpenVINO's stateful form."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    with tempfile.TemporaryDirectory() as temporary:
        with_vocabulary(checkpoint, Path(temporary))
        main_export(
            temporary, folder, task="text-generation-with-past", stateful=True,
            ov_config=OVConfig(dtype="fp32"), convert_tokenizer=False,
        )  # fmt: skip


def openvino_quantized(checkpoint: Path, folder: Path, bits: int) -> None:
    """Quantise weights to 8 or 4 bits with the defaults of optimum-intel and nncf."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    with tempfile.TemporaryDirectory() as temporary:
        with_vocabulary(checkpoint, Path(temporary))
        model = OVModelForCausalLM.from_pretrained(
            temporary, export=True, compile=False,
            quantization_config=OVWeightQuantizationConfig(bits=bits),
        )  # fmt: skip
        model.save_pretrained(folder)
        for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
            shutil.copyfile(Path(temporary, name), folder / name)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "plain": plain,
    "gguf": gguf,
    "ctranslate2": ctranslate2,
    "openvino": openvino,
    "gguf-f16": partial(gguf_quantized, kind=1),  # llama.h's LLAMA_FTYPE_MOSTLY_F16
    "gguf-bf16": partial(gguf_quantized, kind=32),
    "gguf-q8_0": partial(gguf_quantized, kind=7),
    "gguf-q4_0": partial(gguf_quantized, kind=2),
    "gpt2c-int8": partial(gpt2c_quantized, dtype="int8"),
    "gpt2c-int4": partial(gpt2c_quantized, dtype="int4"),
    "ctranslate2-int8": partial(ctranslate2, dtype="int8"),
    "openvino-int8": partial(openvino_quantized, bits=8),
    "openvino-int4": partial(openvino_quantized, bits=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=CONVERTERS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work_folder", type=Path)
    options = parser.parse_args()
    folder = converted_folder(options.work_folder, options.checkpoint, options.kind)
    if folder.exists():
        return
    half_made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half_made, ignore_errors=True)
    half_made.mkdir(parents=True)
    CONVERTERS[options.kind](options.checkpoint, half_made)
    half_made.rename(folder)


if __name__ == "__main__":
    main()
