"""Writes a GPT-2 with random weights in Hugging Face's format: one file, or shards if it is large.

    python tools/make_random_model.py 1558M FOLDER [--dtype float16]

The model writes gibberish; use it to measure memory and speed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gpt2c import GPT2Config
from gpt2c.weights.checkpoint import tensor_shapes

SIZES = {
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "355M": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "774M": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "1558M": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
MAX_ELEMENTS = 250_000_000  # per shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    options = parser.parse_args()
    config = GPT2Config(**SIZES[options.size])
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    n_elements = 0
    for name, shape in tensor_shapes(config).items():
        n_elements += int(np.prod(shape))
        if n_elements > MAX_ELEMENTS:
            shards.append({})
            n_elements = int(np.prod(shape))
        shards[-1][f"transformer.{name}"] = shape
    options.folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, dtype=np.float32)
            # Similar to GPT-2's initial weights; layer norms near one keep logits finite.
            tensors[name] = (1 + 0.02 * values if name.endswith("weight") and "ln_" in name else
                             0.02 * values).astype(options.dtype)  # fmt: skip
            weight_map[name] = file
        save_file(tensors, options.folder / file, metadata={"format": "pt"})
        print(f"{file}: {sum(t.nbytes for t in tensors.values()) / 1e9:.2f} GB", flush=True)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (options.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (options.folder / "config.json").write_text(json.dumps(config.to_dict()))


if __name__ == "__main__":
    main()
