"""Campaigns: planning, submitting, following and cancelling them, and their results over cycles."""
