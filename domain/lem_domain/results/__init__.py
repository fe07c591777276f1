"""Results of runs: figures, energy, findings and verdicts."""
