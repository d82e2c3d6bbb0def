"""Builds the C core without Python, with the programs of tests/c, for this machine and others."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from runpy import run_path

import numpy as np
from conftest import ISAS, ROOT, config_of
from golden_models import CONFIGS, ids_of, weights_of

from gpt2c import GPT2Config

_FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]


def sources(platform: str) -> list[Path]:
    """Return the C core's files for a platform, named as csrc/sources.py names it."""
    c_sources = run_path(str(ROOT / "csrc/sources.py"))["c_sources"]
    return [ROOT / name for name in c_sources(platform)]


def build(compiler: Sequence[str], files: Sequence[Path], to: Path, *flags: str) -> Path:
    """Compile the files to a program."""
    command = [*compiler, *_FLAGS, f"-I{ROOT / 'csrc'}", *map(str, files), "-o", str(to), *flags]
    subprocess.run(command, check=True)
    return to


def build_engine_bits(compiler: Sequence[str], platform: str, to: Path, *flags: str) -> Path:
    return build(compiler, [*sources(platform), ROOT / "tests/c/engine_bits.c"], to, *flags)


def output(*command: str | int | Path) -> str:
    """Return what the command prints; check that it succeeds."""
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def digests_here(folder: Path) -> str:
    """Return what engine_bits prints on this Linux machine, the same on every instruction set."""
    here = build_engine_bits(["cc"], "linux", folder / "engine_bits", "-lm", "-lpthread")
    digests = output(here, ISAS[0], 1)
    assert "logits 2 64 " in digests
    for isa in ISAS:
        assert output(here, isa, 2) == digests
    return digests


def model_file(config: GPT2Config, dtype: str) -> bytes:
    """Return a model of golden_models.py, and its token ids, as engine_bits.c reads them."""
    from gpt2c.engine._engine import ENUMS

    c, is_quantised, n_scales = config, dtype != "float32", 16
    parts = [
        struct.pack(
            "<14if", ENUMS["dtypes"][dtype], ENUMS["dtypes"]["int8" if is_quantised else dtype],
            is_quantised, n_scales, c.vocab_size, c.n_positions, c.n_embd, c.n_layer, c.n_head,
            c.inner, ENUMS["activations"][c.activation], c.tie_word_embeddings,
            c.scale_attn_weights, c.scale_attn_by_inverse_layer_idx, c.layer_norm_epsilon,
        ),
        ids_of(config).astype("<i4").tobytes(),
    ]  # fmt: skip
    weights = weights_of(config)
    parts.append(struct.pack("<i", len(weights)))
    for name, values in weights.items():
        _, layer, tensor = name.split(".", 2) if name.startswith("h.") else ("", 0, name)
        shape = np.atleast_2d(values).shape
        parts.append(struct.pack("<4i", ENUMS["tensors"][tensor], int(layer), *shape))
        parts.append(values.astype("<f4").tobytes())
    return b"".join(parts)


def check_recorded_bits(command: Sequence[str | Path], isa: str, folder: Path) -> None:
    """Check that engine_bits, run by the command, computes the logits of golden_bits.json."""
    record = json.loads((ROOT / "tests/golden_bits.json").read_text())
    model, logits = folder / "model", folder / "logits"
    for dtype in ("float32", "int8", "int4"):
        for name, options in CONFIGS.items():
            model.write_bytes(model_file(config_of(**options), dtype))
            output(*command, isa, 2, model, logits)
            digest = hashlib.sha256(logits.read_bytes()).hexdigest()
            assert digest == record[dtype][f"{name}, logits"]
