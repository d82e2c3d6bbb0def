"""GPT-2 in NumPy: what every other part is tested against."""
