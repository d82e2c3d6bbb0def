"""The version, the version of the arithmetic, and the time of the import."""

from time import time_ns

__version__ = "0.2.0"

# Raised when any logit's bits change (CONTRIBUTING.md, contract 2).
ARITHMETIC = 1

# When this process imported gpt2c, in nanoseconds; no other module of gpt2c is imported before.
IMPORTED_AT = time_ns()
