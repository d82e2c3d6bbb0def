"""State dicts whose tensors have other names and shapes than GPT-2's."""
