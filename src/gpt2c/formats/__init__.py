"""Readers of file formats. Every file is untrusted: it is checked before its content is used."""
