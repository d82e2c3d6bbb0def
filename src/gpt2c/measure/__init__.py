"""What a model says about given text."""
