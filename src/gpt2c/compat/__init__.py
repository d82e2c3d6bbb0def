"""Other libraries' interfaces."""
