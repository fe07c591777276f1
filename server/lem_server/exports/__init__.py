"""Campaigns as archives: written from what is stored here, and taken in from elsewhere."""
