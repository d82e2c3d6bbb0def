"""How sequences are continued: options, prompts, stops, streams."""
