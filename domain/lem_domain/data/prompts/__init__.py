"""Built-in sets of prompts, one JSON object per line."""
