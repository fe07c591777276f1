"""Requests, outputs, windows, warm-up and arithmetic: the work that a run did."""
