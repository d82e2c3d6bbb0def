"""A hash of a loaded model: of its shape and of the values of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import EngineModel
from gpt2c.formats.tensors import TensorSource
from gpt2c.weights.loading import loaded_checkpoint

_CHUNK: Final = 8 << 20  # bytes of float32
# What the logits of given ids depend on, besides the tensors and their shapes.
_FIELDS: Final = (
    "activation_function",
    "layer_norm_epsilon",
    "n_head",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
)


def fingerprint(
    engine: EngineModel, config: GPT2Config, head: Mapping[str, NDArray[np.float32]]
) -> str:
    """Return the SHA-256 of a model, 64 hexadecimal digits.

    It is the hash of one line of text for each tensor, sorted: its name, its shape, and the SHA-256
    of its values as little-endian float32 in GPT-2's layout, [in, out]; and of a line of JSON with
    the configuration's fields that change logits. So it depends neither on the format of the
    checkpoint's file nor on the backend. A quantised model has the hash of its own weights. The
    tensors of a classifier's `head`, if there are any, have lines too, after the others.

    Raises ClosedError.
    """
    with engine.held():
        sources = sorted(loaded_checkpoint(engine, config).tensors.items())
        with ThreadPoolExecutor(max(engine.n_threads, 1)) as pool:
            hashes = pool.map(_hash_of, (source for _, source in sources))
            lines = [
                f"{name} {list(source.shape)} {digest}"
                for (name, source), digest in zip(sources, hashes, strict=True)
            ]
    for name, array in sorted(head.items()):
        digest = hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()
        lines.append(f"{name} {list(array.shape)} {digest}")
    values = asdict(config)
    lines.append(json.dumps({name: values[name] for name in _FIELDS}, sort_keys=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_of(source: TensorSource) -> str:
    digest = hashlib.sha256()
    for part in _parts(source):
        digest.update(part)
    return digest.hexdigest()


def _parts(source: TensorSource) -> Iterable[bytes]:
    n_rows = source.shape[0]
    step = max(1, _CHUNK // (4 * int(np.prod(source.shape[1:]))))
    for begin in range(0, n_rows, step):
        rows = source.read(begin, min(begin + step, n_rows))
        yield rows.astype("<f4", copy=False).tobytes()
