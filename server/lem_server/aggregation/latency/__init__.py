"""Requests, tokens, windows and latency distributions of a run."""
