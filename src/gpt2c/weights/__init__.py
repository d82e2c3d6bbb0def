"""Where models are from: configurations, checkpoints, the hub."""
