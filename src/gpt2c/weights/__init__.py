"""A model's weights: configuration, checkpoints, and where they are found."""
