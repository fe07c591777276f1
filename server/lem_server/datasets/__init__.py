"""Sets of prompts, built in or uploaded."""
