"""How likely a model finds a given text."""
