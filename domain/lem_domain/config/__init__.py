"""The configuration of campaigns and experiments, and their expansion into runs."""
