"""Checks of option values and of untrusted files."""
