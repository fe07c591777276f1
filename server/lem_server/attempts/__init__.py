"""Attempts: one worker's try at a run, from its claim to its end."""
