"""The commands that compare with published results: ``verify`` and ``zero-shot``."""
