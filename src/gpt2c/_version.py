"""The version, and the version of the arithmetic."""

__version__ = "0.2.0"

# Raised when any logit's bits change (CONTRIBUTING.md, contract 2).
ARITHMETIC = 1
