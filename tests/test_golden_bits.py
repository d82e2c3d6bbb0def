"""A change detector: the bits on record are those of the scalar build of arithmetic 1.

It says nothing about what is right; that is the oracle's part. Where a change of the arithmetic is
meant, raise ARITHMETIC and run tools/make_golden_bits.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from golden_models import digests

import gpt2c

RECORD = json.loads((Path(__file__).parent / "golden_bits.json").read_text())


def test_bits_are_those_on_record(isa):
    assert RECORD["arithmetic"] == gpt2c.ARITHMETIC
    assert dict(digests(isa)) == RECORD["float32"]
