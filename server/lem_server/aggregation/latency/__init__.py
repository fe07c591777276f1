"""Latency distributions and inter-token intervals."""
