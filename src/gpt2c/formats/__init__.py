"""Readers of file formats. Every file is untrusted, so readers check it before its use."""
