"""The command ``gpt2c``."""
