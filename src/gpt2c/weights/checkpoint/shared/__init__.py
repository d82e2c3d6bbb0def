"""The modules that several loaders share."""
