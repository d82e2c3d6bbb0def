"""Interfaces of other libraries, on gpt2c's engine."""
