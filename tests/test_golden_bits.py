"""A change detector: the bits on record are those of the scalar build of arithmetic 1.

It says nothing about what is right; that is the oracle's part. Where a change of the arithmetic is
meant, raise ARITHMETIC and run tools/make_golden_bits.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_models import digests

import gpt2c

RECORD = json.loads((Path(__file__).parent / "golden_bits.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_bits_are_those_on_record(any_isa, dtype):
    assert RECORD["arithmetic"] == gpt2c.ARITHMETIC
    assert dict(digests(any_isa, dtype)) == RECORD[dtype]
