"""Generation calls: their options and prompts, their completions and streams."""
