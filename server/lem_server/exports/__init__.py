"""Exports campaigns as archives, and imports them."""
