"""Which requests run together, and in what order."""
