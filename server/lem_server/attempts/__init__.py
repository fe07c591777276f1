"""Attempts: a worker's execution of a run, its endpoints, and how it ends."""
