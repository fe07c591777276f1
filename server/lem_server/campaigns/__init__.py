"""Campaigns: planning, submitting, reading and cancelling them, and their results over cycles."""
