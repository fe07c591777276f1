"""Sets of prompts: the built-in ones and those that users uploaded."""
