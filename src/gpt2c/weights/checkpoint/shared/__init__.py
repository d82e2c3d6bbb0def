"""What several loaders share."""
