"""Attempts: a worker's try at a run, its endpoints, and how it ends."""
