"""Readers of file formats, each checked against untrusted input."""
