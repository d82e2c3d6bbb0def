"""Constants that both Python and C define are equal; the compiled engine exports C's.

Python defines them too, because NumPy's fallback and the file readers work without the engine.
"""

from __future__ import annotations

import pytest
from conftest import ISAS

import gpt2c
from gpt2c import config
from gpt2c.engine import protocol, select, threads
from gpt2c.generate import drafting, sampling
from gpt2c.weights.checkpoint import quantized

if ISAS:
    from gpt2c.engine import _engine

pytestmark = pytest.mark.skipif(not ISAS, reason="the engine is not compiled")

POINTS = (*protocol.BLOCK_POINTS, *protocol.MODEL_POINTS)


def packed_bytes(dtype: str) -> int:
    """Return the bytes of one block: one group in a panel."""
    shape = quantized.packed_shape("h.0.mlp.c_fc.weight", (1, 1), dtype)
    assert shape is not None
    return shape[2]


NUMBERS = {
    "arithmetic": gpt2c.ARITHMETIC,
    "max_threads": threads.MAX_THREADS,
    "max_rows": protocol.MAX_ROWS,
    "max_top": protocol.MAX_LOGPROBS,
    "max_drafts": drafting._MAX_DRAFTED,
    "page_positions": protocol.PAGE_POSITIONS,
    "group": quantized.GROUP,
    "panel": quantized.PANEL,
    "int8_block_bytes": packed_bytes("int8"),
    "int4_block_bytes": packed_bytes("int4"),
    "n_points": len(POINTS),
    "first_model_point": len(protocol.BLOCK_POINTS),
    "last_penalty": len(sampling.PENALTIES),  # the first is allowed_ids, which is not an option
}


def test_numbers() -> None:
    """C exports no number that is missing here, and none differs."""
    assert _engine.NUMBERS == NUMBERS


@pytest.mark.parametrize(
    ("name", "ordered"),
    [("points", POINTS), ("stages", (protocol.ALLOWED_IDS, *sampling.SAMPLER_ORDER))],
)
def test_order(name: str, ordered: tuple[str, ...]) -> None:
    """C numbers the entries in Python's order, from 0."""
    assert _engine.ENUMS[name] == {entry: i for i, entry in enumerate(ordered)}


def test_names() -> None:
    untied = gpt2c.GPT2Config(n_layer=1, tie_word_embeddings=False)
    tensors = {name.removeprefix("h.0.") for name in config.tensor_shapes(untied)}
    assert set(_engine.ENUMS["tensors"]) == tensors
    assert set(_engine.ENUMS["activations"]) == set(config.ACTIVATIONS.values())
    assert set(_engine.ENUMS["dtypes"]) == {"float32", *select.QUANTIZED}
    assert {"auto", "float64", *_engine.ENUMS["dtypes"]} == set(select.DTYPES)


def test_layouts() -> None:
    """NumPy's dtypes have the names, types, offsets and size of C's structs."""
    assert _engine.LAYOUTS == {"score": protocol.SCORE_TYPE, "top": protocol.TOP_TYPE}
