"""What runs together, and in what order."""
