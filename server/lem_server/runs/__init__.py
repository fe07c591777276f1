"""Runs: reading them, cancelling them, and who may move them from state to state."""
