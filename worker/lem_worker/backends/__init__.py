"""Adapters of inference engines to the protocol that a rank drives, one folder per engine."""
