"""Checks of the evidence and the list of checks that a result reports."""
