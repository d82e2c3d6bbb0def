"""Checks of options and of untrusted input."""
