"""Writes tests/golden_bits.json with the scalar kernels: python tools/make_golden_bits.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpt2c

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from golden_models import digests  # noqa: E402


def main() -> None:
    record: dict[str, object] = {"arithmetic": gpt2c.ARITHMETIC}
    record |= {dtype: dict(digests("scalar", dtype)) for dtype in ("float32", "int8", "int4")}
    (TESTS / "golden_bits.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
