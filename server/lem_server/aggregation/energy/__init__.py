"""Energy, power and efficiency of a run."""
