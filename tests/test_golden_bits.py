"""Detects changed bits: the recorded bits are those of the scalar kernels with arithmetic 1.

The tests against the oracle check that the bits are right. If you mean to change the arithmetic,
increase ARITHMETIC and run tools/make_golden_bits.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_models import digests

import gpt2c

RECORD = json.loads((Path(__file__).parent / "golden_bits.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_bits_are_as_recorded(any_isa, dtype):
    assert RECORD["arithmetic"] == gpt2c.ARITHMETIC
    assert dict(digests(any_isa, dtype)) == RECORD[dtype]
