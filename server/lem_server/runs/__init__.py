"""Runs: queueing, reading, cancelling and retrying them, and the actor of their transitions."""
